"""The commands on checkpoints: `opnorm audit`, `opnorm check`, `opnorm diff`. Nothing in a file is executed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opnorm.cli import frameworks as backends
from opnorm.cli.output import BAD_INPUT, STDOUT, emit, fail, one_line_errors, progress_bar, require_folder, show

if TYPE_CHECKING:
    from opnorm.auditing.report import Report, Row

VIOLATED = 1  # exit status of a check
_SLACK = 2e-6  # a proved upper end of a matrix lies up to 1e-6 above its norm

File = Annotated[str, typer.Argument(help="A checkpoint: .keras .h5 .safetensors .onnx .npz .pt ...", metavar="FILE")]
Include = Annotated[list[str] | None, typer.Option(help="Only tensors whose name matches this glob; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="No tensor whose name matches this glob; repeatable.")]
Json = Annotated[str | None, typer.Option("--json", help='Write JSON to this file; "-" is stdout.', metavar="OUT")]
Jobs = Annotated[int, typer.Option(min=1, help="Tensors measured at the same time; memory grows with it.")]
Limit = Annotated[float | None, typer.Option(min=0, help="Seconds a tensor, after which its bracket stays wider.")]
Tolerance = Annotated[float | None, typer.Option(help="Aim for upper / lower - 1.  [1e-6, convolutions 1e-2]")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("audit")(run_audit)
    app.command("check")(run_check)
    app.command("diff")(run_diff)


def run_audit(
    file: File,
    json: Json = None,
    csv: Annotated[str | None, typer.Option(help='Write CSV; "-" is stdout.', metavar="OUT")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page of plots and a table.", metavar="OUT")] = None,
    include: Include = None,
    exclude: Exclude = None,
    jobs: Jobs = 1,
    time_limit: Limit = None,
    tolerance: Tolerance = None,
) -> None:
    """Show a certified bracket of the norm of every tensor in a checkpoint, or why there is none."""
    outputs = [output for output in (json, csv, html) if output is not None]
    if outputs.count(STDOUT) > 1:
        fail("only one of --json, --csv and --html can go to stdout")
    with one_line_errors(ValueError):
        for output in outputs:
            require_folder(output)
        if html is not None:
            backends.require(["jinja2"], extra="audit")
        from opnorm.auditing.audits import audit

        with progress_bar("auditing") as progress:
            report = audit(
                file,
                include=include,
                exclude=exclude,
                jobs=jobs,
                time_limit=time_limit,
                tolerance=tolerance,
                spectra=html is not None,
                progress=progress,
            )
        _write(report, json, csv, html)


def _write(report: Report, json: str | None, csv: str | None, html: str | None) -> None:
    forms = ((json, report.to_json), (csv, report.to_csv), (html, report.to_html))
    for output, form in forms:
        if output is not None:
            emit(form(), output)
    if json is None and csv is None and html is None:
        show(report.to_text, report.__rich__)


def run_check(
    file: File,
    max_norm: Annotated[float, typer.Option(help="The norm that no tensor may exceed.")],
    include: Include = None,
    exclude: Exclude = None,
    jobs: Jobs = 1,
    time_limit: Limit = None,
    tolerance: Tolerance = None,
) -> None:
    """Prove that no norm exceeds a number: exit 0 holds, 1 violated or not proved, 2 nothing could be checked."""
    if not 0 < max_norm < float("inf"):
        fail(f"--max-norm must be a positive finite number. Received: {max_norm}")
    with one_line_errors(ValueError):
        from opnorm.auditing.audits import audit

        with progress_bar("checking") as progress:
            report = audit(
                file,
                include=include,
                exclude=exclude,
                jobs=jobs,
                time_limit=time_limit,
                tolerance=tolerance,
                network=False,
                progress=progress,
            )
    raise typer.Exit(_judge(report, max_norm))


def _judge(report: Report, max_norm: float) -> int:
    """Print what does not hold and the count, and return the exit status."""
    from opnorm.auditing.text import printable

    checked = [row for row in report.rows if row.status != "skipped"]
    if not checked:
        typer.echo(f"opnorm: nothing to check: {len(report.rows)} tensors, none of them a linear map", err=True)
        return BAD_INPUT
    verdicts = [(row, verdict(row, max_norm)) for row in checked]
    for row, text in verdicts:
        if text:
            typer.echo(f"{printable(row.name)}: {printable(text)}")
    bad = sum(1 for _, text in verdicts if text)
    skipped = len(report.rows) - len(checked)
    others = f"; {skipped} are no linear map and were not checked" if skipped else ""
    typer.echo(f"{len(checked) - bad} of {len(checked)} norms are proved to be at most {max_norm:g}{others}")
    return VIOLATED if bad else 0


def verdict(row: Row, max_norm: float) -> str:
    """Return why a row does not hold, or "" when it does."""
    limit = max_norm * (1 + _SLACK)
    if row.upper is not None and row.upper <= limit:
        return ""
    if row.lower is not None and row.lower > limit:
        return f"violated: the norm is at least {row.lower:.9g}"
    if row.lower is None or row.upper is None:
        return f"not proved: {row.reason}"
    return f"not proved: the norm is between {row.lower:.9g} and {row.upper:.9g}"


def run_diff(
    base: Annotated[str, typer.Argument(help="The checkpoint to compare with.", metavar="BASE")],
    tuned: Annotated[str, typer.Argument(help="A later checkpoint, or a LoRA adapter.", metavar="TUNED")],
    json: Json = None,
    include: Include = None,
    exclude: Exclude = None,
    time_limit: Limit = None,
    tolerance: Tolerance = None,
) -> None:
    """Show the norms of two checkpoints and of their difference, tensor by tensor; LoRA pairs are multiplied out."""
    with one_line_errors(ValueError):
        require_folder(json)
        from opnorm.auditing.differences import diff

        with progress_bar("comparing") as progress:
            found = diff(
                base,
                tuned,
                include=include,
                exclude=exclude,
                time_limit=time_limit,
                tolerance=tolerance,
                progress=progress,
            )
        if json is not None:
            emit(found.to_json(), json)
        else:
            show(found.to_text, found.__rich__)
