"""The commands that show what is in checkpoints: `opnorm audit`, `opnorm diff`. Nothing in a file is executed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opnorm.cli import frameworks as backends
from opnorm.cli.options import Cluster, File, Jobs, Json, Measuring, Sandbox, Showing, ShowingDiff, reads_apart, spread
from opnorm.cli.output import STDOUT, check_outputs, emit, fail, one_line_errors, progress_bar, show

if TYPE_CHECKING:
    from opnorm.auditing.comparison import DiffReport
    from opnorm.auditing.report import Report
    from opnorm.auditing.sandbox import Progress


@spread
def run_audit(
    file: File,
    measuring: Measuring,
    showing: Showing,
    json: Json = None,
    csv: Annotated[str | None, typer.Option(help='Write CSV; "-" is stdout.', metavar="OUT")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page of plots and a table.", metavar="OUT")] = None,
    jobs: Jobs = 1,
    sandbox: Sandbox = None,
    cluster: Cluster = None,
) -> None:
    """Show a certified bracket of the norm of every tensor in a checkpoint, or why there is none."""
    outputs = [output for output in (json, csv, html) if output is not None]
    if outputs.count(STDOUT) > 1:
        fail("only one of --json, --csv and --html can go to stdout")
    with one_line_errors(Exception):  # a file that nobody vouches for may cause any
        check_outputs(outputs, [file])
        if html is not None:
            backends.require(["jinja2"], extra="audit")
        with progress_bar("auditing") as progress:
            options = measuring._asdict() | {"jobs": jobs, "spectra": html is not None}
            report = audited(file, sandbox, progress, cluster, **options)
        forms = ((json, report.to_json), (csv, report.to_csv), (html, report.to_html))
        for output, form in forms:
            if output is not None:
                emit(form(), output)
        if not outputs:
            show(partial(report.to_text, **showing._asdict()), partial(report.drawn, **showing._asdict()))


def audited(
    file: str, sandbox: bool | None, progress: Progress | None, cluster: str | None = None, **options: Any
) -> Report:
    """Return the report on a file, from other processes where that is wanted; `options` as for `audit`."""
    if cluster is None and reads_apart(sandbox, file):
        from opnorm.auditing.sandbox import audit_in_child

        return audit_in_child(file, options, progress)
    from opnorm.auditing.audits import audit

    return audit(file, progress=progress, cluster=cluster, sandbox=bool(sandbox), **options)


@spread
def run_diff(
    base: Annotated[str, typer.Argument(help="The checkpoint to compare with.", metavar="BASE")],
    tuned: Annotated[str, typer.Argument(help="A later checkpoint, or an adapter.", metavar="TUNED")],
    measuring: Measuring,
    showing: ShowingDiff,
    json: Json = None,
    sandbox: Sandbox = None,
    subspaces: Annotated[
        bool, typer.Option("--subspaces", help="Show effective ranks, overlaps, intruder dimensions.")
    ] = False,
) -> None:
    """Show the norms of two checkpoints and of their difference, tensor by tensor; adapters are multiplied out."""
    with one_line_errors(Exception):  # a file that nobody vouches for may cause any
        check_outputs([json], [base, tuned])
        with progress_bar("comparing") as progress:
            found = _compared(base, tuned, sandbox, progress, measuring._asdict() | {"subspaces": subspaces})
        if found.nothing_common:
            fail(found.nothing_common)
        if json is not None:
            emit(found.to_json(), json)
        else:
            show(partial(found.to_text, **showing._asdict()), partial(found.drawn, **showing._asdict()))


def _compared(
    base: str, tuned: str, sandbox: bool | None, progress: Progress | None, options: dict[str, Any]
) -> DiffReport:
    if reads_apart(sandbox, base, tuned):
        from opnorm.auditing.sandbox import diff_in_child

        return diff_in_child(base, tuned, options, progress)
    from opnorm.auditing.differences import diff

    return diff(base, tuned, progress=progress, **options)
