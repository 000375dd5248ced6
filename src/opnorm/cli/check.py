"""`opnorm check`: the exit status is the answer, 0 proved, 1 violated or not proved, 2 could not be checked."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from opnorm.cli.audit import audited
from opnorm.cli.options import File, Jobs, Measuring, Sandbox, spread
from opnorm.cli.output import fail, one_line_errors, progress_bar, require_stdout

if TYPE_CHECKING:
    from opnorm.auditing.report import Reading, Report, Row

VIOLATED = 1  # exit status of a check
_SLACK = 2e-6  # a proved upper end of a matrix lies up to 1e-6 above its norm


@spread
def run_check(
    file: File,
    max_norm: Annotated[float, typer.Option(help="The norm that no tensor may exceed.")],
    measuring: Measuring,
    jobs: Jobs = 1,
    sandbox: Sandbox = None,
    top: Annotated[int | None, typer.Option(min=1, help="Name so many tensors, the largest norms first.")] = None,
) -> None:
    """Prove that no norm exceeds a number: exit 0 holds, 1 violated or not proved, 2 nothing could be checked."""
    if not 0 < max_norm < float("inf"):
        fail(f"--max-norm must be a positive finite number. Received: {max_norm}")
    with one_line_errors(Exception):  # as for an audit; and a traceback would exit as if violated
        with progress_bar("checking") as progress:
            report = audited(file, sandbox, progress, jobs=jobs, network=False, **measuring._asdict())
        require_stdout()
        raise typer.Exit(_judge(report, max_norm, top))


def _judge(report: Report, max_norm: float, top: int | None) -> int:
    """Print what does not hold, the count and the file's notes, and return the exit status."""
    from opnorm.tables import printable

    checked = [row for row in report.rows if row.status != "skipped"]
    if not checked:
        notes = "".join(f"; {printable(note)}" for note in report.notes)
        fail(f"nothing to check: {len(report.rows)} tensors, none of them a linear map{notes}")
    verdicts = [(row, text) for row in checked if (text := verdict(row, max_norm))]
    for row, text in _ordered(verdicts, top):
        typer.echo(f"{printable(row.name)}: {printable(text)}")
    bad = len(verdicts)
    if top is not None and bad > top:
        typer.echo(f"and {bad - top} more, which --top leaves out")
    skipped = len(report.rows) - len(checked)
    others = f"; {skipped} are no linear map and were not checked" if skipped else ""
    typer.echo(f"{len(checked) - bad} of {len(checked)} norms are proved to be at most {max_norm:g}{others}")
    for note in report.notes:
        typer.echo(f"note: {printable(note)}")
    return VIOLATED if bad else 0


def _ordered(verdicts: list[tuple[Row, str]], top: int | None) -> list[tuple[Row, str]]:
    """Return what does not hold by depth; with `top` so many, norms that are not known first, then the largest."""
    if top is not None:
        return sorted(verdicts, key=lambda one: -inf if one[0].upper is None else -one[0].upper)[:top]
    from opnorm.auditing.ordering import depth_order

    return [verdicts[i] for i in depth_order([row.name for row, _ in verdicts])]


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
