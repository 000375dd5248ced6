"""A report's table for people: aligned plain text, or Rich's drawing of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from opnorm.auditing.parts import told

OPTIMIZER = "optimizer state"  # the reason by which readers skip it: `checkpoints.geometry`, without its imports
HEADINGS = ("tensor", "shape", "dtype", "lower", "upper", "matrix norm", "stable rank", "how")
DIFF_HEADINGS = ("tensor", "shape", "base <=", "tuned <=", "difference <=", "relative", "status")
_NUMBERS = frozenset({"lower", "upper", "matrix norm", "stable rank", *DIFF_HEADINGS[2:6]})
_STYLES = {"bounded": "", "skipped": "dim", "failed": "bold red"}
_MARGIN = "  "
_NAMED = 4  # steps without a constant that the last line names
_LONGEST = 36  # of the last column on a terminal; the other forms have it in full


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of the JSON; what a terminal would act on is escaped."""
    shape = "x".join(str(n) for n in row["shape"]) or "()"
    numbers = [number(row[key]) for key in ("lower", "upper", "matrix_norm", "stable_rank")]
    return [printable(text) for text in (row["name"], shape, row["dtype"], *numbers, _how(row))]


def _how(row: Mapping[str, Any]) -> str:
    """Return geometry and method, or the reason why there is no bracket."""
    geometry = row["geometry"] + (" (assumed)" if row["assumed"] else "")
    if row["status"] == "skipped":
        return "; ".join([f"skipped: {row['reason']}", *row["flags"]])
    if row["status"] == "failed":
        return f"not bounded: {row['reason']}"
    parts = [geometry, row["method"], *(flag for flag in row["flags"] if flag not in row["method"])]
    parts += [f"or {number(lower)} to {number(upper)} as {text}" for text, lower, upper in row["readings"]]
    if row["parts"]:
        parts.append(told(row["parts"]))
    if row["constraint"]:
        parts.append(f"{row['constraint']['name']} {row['constraint']['value']}: met: {row['constraint']['met']}")
    return "; ".join(parts)


def number(value: float | None) -> str:
    """Return six significant digits, "-" for None."""
    return "-" if value is None else f"{value:.6g}"


def printable(text: str) -> str:
    """Return `text` with every character that is not printable escaped: names come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines of columns, numbers to the right; nothing is cut or wrapped."""
    lines = [list(headings), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    right = [heading in _NUMBERS for heading in headings]

    def line(texts: Sequence[str]) -> str:
        parts = zip(texts, widths, right, strict=True)
        return _MARGIN.join(f"{text:>{width}}" if side else f"{text:<{width}}" for text, width, side in parts).rstrip()

    return "\n".join(line(texts) for texts in lines) + "\n"


def shown(document: Mapping[str, Any], all_rows: bool) -> tuple[Sequence[Mapping[str, Any]], list[str]]:
    """Return the rows to show, and the line that stands for the others: the state of an optimizer."""
    rows = [row for row in document["rows"] if all_rows or row["reason"] != OPTIMIZER]
    folded = len(document["rows"]) - len(rows)
    return rows, [f"{folded} tensors of {OPTIMIZER} are not shown; --all shows them"] if folded else []


def plain(document: Mapping[str, Any], *, all_rows: bool = False) -> str:
    """Return the report as text without colour or frames, one line a tensor."""
    rows, folded = shown(document, all_rows)
    lines = [*folded, summary(document), *(f"note: {printable(note)}" for note in document["notes"])]
    return f"{aligned(HEADINGS, [cells(row) for row in rows])}\n" + "".join(f"{line}\n" for line in lines)


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


def plain_diff(document: Mapping[str, Any], *, all_rows: bool = False) -> str:
    """Return a comparison as text, one line a tensor."""
    rows, folded = shown(document, all_rows)
    lines = [*folded, *(f"note: {printable(note)}" for note in document["notes"])]
    return aligned(DIFF_HEADINGS, [_diff_cells(row) for row in rows]) + "".join(f"{line}\n" for line in lines)


def _diff_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of a comparison: of each bracket the upper end."""
    uppers = [number(row[key] and row[key]["upper"]) for key in ("base", "tuned", "difference")]
    shape = "x".join(str(n) for n in row["shape"]) or "()"
    what = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
    return [printable(text) for text in (row["name"], shape, *uppers, number(row["relative"]), what)]


def table(document: Mapping[str, Any], *, all_rows: bool = False) -> Any:
    """Return a report as a Rich renderable."""
    chosen, folded = shown(document, all_rows)
    rows = [(cells(row), _STYLES[row["status"]]) for row in chosen]
    failed = [f"{row['name']}: {row['reason']}" for row in document["rows"] if row["status"] == "failed"]
    return _drawn(
        HEADINGS, rows, [*folded, summary(document), *failed, *(f"note: {note}" for note in document["notes"])]
    )


def diff_table(document: Mapping[str, Any], *, all_rows: bool = False) -> Any:
    """Return a comparison as a Rich renderable."""
    chosen, folded = shown(document, all_rows)
    rows = [(_diff_cells(row), _STYLES.get(row["status"], "")) for row in chosen]
    return _drawn(DIFF_HEADINGS, rows, [*folded, *(f"note: {note}" for note in document["notes"])])


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _drawn(headings: Sequence[str], rows: Sequence[tuple[list[str], str]], lines: Sequence[str]) -> Any:
    """Return a table and the lines below it; names are text, never markup."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    kept = [i for i, heading in enumerate(headings) if heading != "dtype"]  # a terminal is narrow
    for heading in (headings[i] for i in kept):
        side = heading in _NUMBERS
        result.add_column(heading, justify="right" if side else "left", no_wrap=side, overflow="fold")
    for texts, style in rows:
        result.add_row(*(Text(texts[i]) for i in kept[:-1]), Text(_shortened(texts[-1])), style=style)
    return Group(result, Text(""), *(Text(printable(line)) for line in lines))
