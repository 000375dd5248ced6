"""A report's rows as text: what a cell says, and plain lines for pipes, where nothing is cut or wrapped."""

from collections.abc import Mapping, Sequence
from typing import Any

from opnorm.auditing.changes import told as told_changes
from opnorm.auditing.changes import turned
from opnorm.auditing.ordering import View, arranged
from opnorm.auditing.parts import told
from opnorm.tables import aligned
from opnorm.tables import number as number
from opnorm.tables import printable as printable

OPTIMIZER = "optimizer state"  # the reason by which readers skip it: `checkpoints.geometry`, without its imports
HEADINGS = ("tensor", "shape", "dtype", "lower", "upper", "matrix norm", "stable rank", "how")
DIFF_HEADINGS = ("tensor", "shape", "base <=", "tuned <=", "difference <=", "relative", "status")
NUMBERS = frozenset({"lower", "upper", "matrix norm", "stable rank", *DIFF_HEADINGS[2:6]})
_NAMED = 4  # steps without a constant that the last line names
_ALL = View()


def shape_of(row: Mapping[str, Any]) -> str:
    """Return the shape as it is said: 3x3x64x128."""
    return "x".join(str(n) for n in row["shape"]) or "()"


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of the JSON; what a terminal would act on is escaped."""
    numbers = [number(row[key]) for key in ("lower", "upper", "matrix_norm", "stable_rank")]
    texts = (
        row["name"],
        shape_of(row),
        row["dtype"],
        *numbers,
        "; ".join([how(row), *own_parts(row), *other_readings(row)]),
    )
    return [printable(text) for text in texts]


def how(row: Mapping[str, Any]) -> str:
    """Return geometry and method, or the reason why there is no bracket: what many rows have in common."""
    geometry = row["geometry"] + (" (assumed)" if row["assumed"] else "")
    if row["status"] == "skipped":
        return "; ".join([f"skipped: {row['reason']}", *row["flags"]])
    if row["status"] == "failed":
        return f"not bounded: {row['reason']}"
    parts = [geometry, row["method"], *(flag for flag in row["flags"] if flag not in row["method"])]
    if row["constraint"]:
        parts.append(_declared(row["constraint"]))
    return "; ".join(parts)


def _declared(constraint: Mapping[str, Any]) -> str:
    """Return a constraint that the file declares, and whether it is met: not all have a value."""
    value = "" if constraint["value"] is None else f" {constraint['value']}"
    return f"{constraint['name']}{value}: met: {constraint['met']}"


def own_parts(row: Mapping[str, Any]) -> list[str]:
    """Return what is told of the experts, projections or heads in the tensor, nothing where there are none."""
    return [told(row["parts"])] if row["parts"] else []


def other_readings(row: Mapping[str, Any]) -> list[str]:
    """Return what else the layer may do with the tensor, and the bracket of each."""
    return [f"or {number(lower)} to {number(upper)} as {text}" for text, lower, upper in row["readings"]]


def shown(document: Mapping[str, Any], view: View) -> tuple[Sequence[Mapping[str, Any]], list[str]]:
    """Return the rows to show, and the lines that stand for the others: the state of an optimizer, what `top` cuts."""
    rows = [row for row in document["rows"] if view.all_rows or row["reason"] != OPTIMIZER]
    folded = len(document["rows"]) - len(rows)
    lines = [f"{folded} tensors of {OPTIMIZER} are not shown; --all shows them"] if folded else []
    return arranged(rows, view.sort)[: view.top], lines + top_line(len(rows), view)


def top_line(count: int, view: View) -> list[str]:
    """Return the line that says how many of `count` rows are left out."""
    if view.top is None or count <= view.top:
        return []
    return [f"the first {view.top} of {count} rows by {view.sort}"]


def plain(document: Mapping[str, Any], view: View = _ALL) -> str:
    """Return the report as text without colour or frames, one line a tensor."""
    rows, folded = shown(document, view)
    lines = [*folded, summary(document), *notes(document)]
    return f"{aligned(HEADINGS, [cells(row) for row in rows], NUMBERS)}\n" + "".join(f"{line}\n" for line in lines)


def notes(document: Mapping[str, Any]) -> list[str]:
    """Return a line for each note of the file's."""
    return [f"note: {printable(note)}" for note in document["notes"]]


def summary(document: Mapping[str, Any]) -> str:
    """Return the line that counts the rows by their status, and one on the network where its graph is known."""
    count = dict.fromkeys(("bounded", "skipped", "failed"), 0)
    for row in document["rows"]:
        count[row["status"]] += 1
    text = f"{len(document['rows'])} tensors: {count['bounded']} bounded, {count['skipped']} are no linear map"
    return text + (f", {count['failed']} NOT bounded" if count["failed"] else "") + _network(document["network"])


def _network(network: Mapping[str, Any] | None) -> str:
    if network is None:
        return ""
    if network["upper"] is not None:
        return f"\nnetwork: Lipschitz constant at most {number(network['upper'])}, by {network['method']}"
    unknown = [printable(step) for step in network["unknown"]] or ["an output is not reached"]
    more = f"; and {len(unknown) - _NAMED} more, all in the JSON" if len(unknown) > _NAMED else ""
    return f"\nnetwork: Lipschitz constant unknown: {'; '.join(unknown[:_NAMED])}{more}"


def plain_diff(document: Mapping[str, Any], view: View = _ALL) -> str:
    """Return a comparison as text, one line a tensor."""
    rows, folded = shown(document, view)
    lines = [*folded, printable(told_changes(document["summary"])), *notes(document)]
    return aligned(DIFF_HEADINGS, [diff_cells(row) for row in rows], NUMBERS) + "".join(f"{line}\n" for line in lines)


def diff_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of a comparison: of each bracket the upper end."""
    uppers = [number(row[key] and row[key]["upper"]) for key in ("base", "tuned", "difference")]
    texts = (row["name"], shape_of(row), *uppers, number(row["relative"]), diff_status(row) + turned(row))
    return [printable(text) for text in texts]


def diff_status(row: Mapping[str, Any]) -> str:
    """Return what was done with the tensor, by which adapter, and the reason where there is one."""
    status = f"{row['status']} of {row['adapter']!r}" if row["adapter"] else str(row["status"])
    return f"{status}: {row['reason']}" if row["reason"] else status
