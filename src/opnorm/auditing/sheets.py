"""Reports and comparisons as sheets: the columns of a terminal, marks for what repeats itself, counts for the rest."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from opnorm.auditing.changes import told, turned_cells
from opnorm.auditing.ordering import View, arranged
from opnorm.auditing.parts import brief
from opnorm.auditing.screen import Column, Legend, Line, Sheet, folded
from opnorm.auditing.text import cells, diff_cells, diff_status, how, notes, summary, top_line
from opnorm.tables import number, printable

Row = Mapping[str, Any]
_STYLES = {"bounded": "", "skipped": "dim", "failed": "bold red"}
_COLUMNS = (
    Column("tensor"),
    Column("shape", spared=2),
    Column("lower", right=True),
    Column("upper", right=True),
    Column("matrix\nnorm", right=True, spared=3),
    Column("stable\nrank", right=True, spared=4),
    Column("or\nelse", right=True),
    Column("parts,\nmedian", right=True, spared=1),
    Column("how"),
)
_DIFF_COLUMNS = (
    Column("tensor"),
    Column("shape", spared=2),
    Column("base\n<=", right=True),
    Column("tuned\n<=", right=True),
    Column("differ-\nence <=", right=True),
    Column("rela-\ntive", right=True, spared=1),
    Column("eff.\nrank", right=True),
    Column("over-\nlap", right=True),
    Column("in-\ntruders", right=True),
    Column("how"),
)
_OTHERWISE = "or else", Line("the norm of what else the layer may do with the tensor; the JSON has each reading", "dim")
_ROUNDING = 1e-5  # two brackets of one norm may differ by so much
_NAME = re.compile(r"'[^']*[./]([^'./]+)'")
_AS_IT_SHOULD = "compared"  # the status that needs no mark
_QUIET = frozenset({"skipped", "only in base", "only in tuned"})  # of a comparison: folded to a count


def of_report(document: Mapping[str, Any], view: View) -> Sheet:
    """Return the sheet of a report: `document` is what `Report.to_dict` writes."""
    rows = [row for row in document["rows"] if view.all_rows or row["status"] != "skipped"]
    hidden = Counter(
        _shortened(row["reason"]) for row in document["rows"] if row["status"] == "skipped" and not view.all_rows
    )
    shown, legend = arranged(rows, view.sort)[: view.top], Legend()
    with_matrix = any(_differs(row) for row in shown)
    lines = [(_cells(row, with_matrix, legend), _STYLES[row["status"]]) for row in shown]
    otherwise = [_OTHERWISE] if any(row["readings"] for row in shown) else []
    below = [*map(Line, top_line(len(rows), view)), *folded(hidden), *map(Line, summary(document).split("\n"))]
    return Sheet(_COLUMNS, lines, [*legend.entries(), *otherwise], [*below, *map(Line, notes(document))])


def _shortened(text: str) -> str:
    """Return a text with the tensors that it names cut to the last part of their names, so that layers share it."""
    return _NAME.sub(r"'...\1'", text)


def _differs(row: Row) -> bool:
    """Return whether the norm of the kernel as a matrix is another one than that of what the layer does."""
    matrix, upper = row["matrix_norm"], row["upper"]
    return matrix is not None and upper is not None and abs(matrix - upper) > _ROUNDING * upper


def _cells(row: Row, with_matrix: bool, legend: Legend) -> list[str]:
    name, shape, _, lower, upper, matrix, rank, _ = cells(row)
    text = how(row) if row["status"] == "failed" else _shortened(how(row))
    mark = legend.mark(printable(text), _STYLES[row["status"]])
    numbers = [lower, upper, matrix if with_matrix else "", rank, _otherwise(row)]
    return [name, shape, *numbers, brief(row["parts"]), mark]


def _otherwise(row: Row) -> str:
    """Return the interval that holds the norms of all other readings, to four digits."""
    ends = [end for _, *bracket in row["readings"] for end in bracket]
    if not ends or None in ends:
        return "?" if ends else ""
    low, high = number(min(ends), 4), number(max(ends), 4)
    return low if low == high else f"{low} to {high}"


def of_diff(document: Mapping[str, Any], view: View) -> Sheet:
    """Return the sheet of a comparison: `document` is what `DiffReport.to_dict` writes."""
    rows = [row for row in document["rows"] if view.all_rows or row["status"] not in _QUIET]
    hidden = Counter(_why_quiet(row) for row in document["rows"] if not view.all_rows and row["status"] in _QUIET)
    shown, legend = arranged(rows, view.sort)[: view.top], Legend()
    lines = [(_diff_cells(row, legend), _STYLES.get(row["status"], "")) for row in shown]
    changes = Line(printable(told(document["summary"])))
    below = [*map(Line, top_line(len(rows), view)), *folded(hidden), changes, *map(Line, notes(document))]
    return Sheet(_DIFF_COLUMNS, lines, legend.entries(), below)


def _why_quiet(row: Row) -> str:
    return _shortened(row["reason"]) if row["status"] == "skipped" else str(row["status"])


def _diff_cells(row: Row, legend: Legend) -> Sequence[str]:
    *uppers, _, _ = diff_cells(row)
    status, relative = printable(diff_status(row)), number(row["relative"], 3)
    mark = "" if status == _AS_IT_SHOULD else legend.mark(status, _STYLES.get(row["status"], ""))
    return [*uppers, relative, *turned_cells(row), mark]
