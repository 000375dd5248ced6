"""`opnorm check`: the exit status is the answer, 0 proved, 1 violated or not proved, 2 could not be checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opnorm.cli.audit import audited
from opnorm.cli.options import Exclude, File, Include, Jobs, Limit, Memory, Sandbox, Tolerance
from opnorm.cli.output import fail, one_line_errors, progress_bar, require_stdout

if TYPE_CHECKING:
    from opnorm.auditing.report import Reading, Report, Row

VIOLATED = 1  # exit status of a check
_SLACK = 2e-6  # a proved upper end of a matrix lies up to 1e-6 above its norm


def run_check(
    file: File,
    max_norm: Annotated[float, typer.Option(help="The norm that no tensor may exceed.")],
    include: Include = None,
    exclude: Exclude = None,
    jobs: Jobs = 1,
    time_limit: Limit = None,
    memory_limit: Memory = None,
    tolerance: Tolerance = None,
    sandbox: Sandbox = None,
) -> None:
    """Prove that no norm exceeds a number: exit 0 holds, 1 violated or not proved, 2 nothing could be checked."""
    if not 0 < max_norm < float("inf"):
        fail(f"--max-norm must be a positive finite number. Received: {max_norm}")
    with one_line_errors(Exception):  # as for an audit; and a traceback would exit as if violated
        with progress_bar("checking") as progress:
            report = audited(
                file,
                sandbox,
                progress,
                include=include,
                exclude=exclude,
                jobs=jobs,
                time_limit=time_limit,
                memory_limit=memory_limit,
                tolerance=tolerance,
                network=False,
            )
        require_stdout()
        raise typer.Exit(_judge(report, max_norm))


def _judge(report: Report, max_norm: float) -> int:
    """Print what does not hold, the count and the file's notes, and return the exit status."""
    from opnorm.auditing.text import printable

    checked = [row for row in report.rows if row.status != "skipped"]
    if not checked:
        notes = "".join(f"; {printable(note)}" for note in report.notes)
        fail(f"nothing to check: {len(report.rows)} tensors, none of them a linear map{notes}")
    verdicts = [(row, verdict(row, max_norm)) for row in checked]
    for row, text in verdicts:
        if text:
            typer.echo(f"{printable(row.name)}: {printable(text)}")
    bad = sum(1 for _, text in verdicts if text)
    skipped = len(report.rows) - len(checked)
    others = f"; {skipped} are no linear map and were not checked" if skipped else ""
    typer.echo(f"{len(checked) - bad} of {len(checked)} norms are proved to be at most {max_norm:g}{others}")
    for note in report.notes:
        typer.echo(f"note: {printable(note)}")
    return VIOLATED if bad else 0


def verdict(row: Row, max_norm: float) -> str:
    """Return why a row does not hold, or "" when it does, under every reading of the tensor."""
    limit = max_norm * (1 + _SLACK)
    readings = [(row.geometry, row.lower, row.upper), *row.readings]
    if all(upper is not None and upper <= limit for _, _, upper in readings):
        return ""
    least = [lower for _, lower, _ in readings if lower is not None and lower > limit]
    if len(least) == len(readings):
        return f"violated: the norm is at least {min(least):.9g}" + (", however it is read" if row.readings else "")
    if row.lower is None or row.upper is None:
        return f"not proved: {row.reason}"
    if not row.readings:
        return f"not proved: the norm is {_between(readings[0])}"
    texts = [f"{_between(one)} as {one[0]}" for one in readings]
    return f"not proved: the file does not say what it is; the norm is {'; '.join(texts)}"


def _between(reading: Reading) -> str:
    _, lower, upper = reading
    if lower is None:
        return "not known"
    return f"at least {lower:.9g}" if upper is None else f"between {lower:.9g} and {upper:.9g}"
