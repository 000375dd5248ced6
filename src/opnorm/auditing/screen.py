"""A report on a terminal of any width: a line a tensor, names in full, and what would be repeated said once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from string import ascii_lowercase
from textwrap import wrap
from typing import Any, NamedTuple

from opnorm.tables import joined, printable

NARROW = 80  # columns of a terminal that does not say
_GAP = 2  # between columns
_INDENT = "  "


class Column(NamedTuple):
    """A column of the table."""

    heading: str  # two lines of it where there is a line break
    right: bool = False
    spared: int = 0  # left out where there is no room, the largest first; 0: never

    @property
    def title(self) -> str:
        """The heading in one line."""
        return self.heading.replace("-\n", "").replace("\n", " ")


class Line(NamedTuple):
    """A line of text, and how Rich paints it."""

    text: str
    style: str = ""


class Sheet(NamedTuple):
    """What is shown, before it is known how wide the screen is."""

    columns: Sequence[Column]
    rows: Sequence[tuple[Sequence[str], str]]  # cells and style
    legend: Sequence[tuple[str, Line]]  # marks, and what they stand for
    below: Sequence[Line]


class Legend:
    """Short marks for texts that stand in many rows: a, b, ... in the order of their first use."""

    def __init__(self) -> None:
        self._marks: dict[str, tuple[str, str]] = {}
        self._uses: Counter[str] = Counter()
        self._names = ("".join(letters) for n in (1, 2, 3, 4) for letters in product(ascii_lowercase, repeat=n))

    def mark(self, text: str, style: str = "") -> str:
        """Return the mark of `text`; the legend has the style of its first use."""
        if text not in self._marks:
            self._marks[text] = next(self._names), style or "dim"
        self._uses[text] += 1
        return self._marks[text][0]

    def entries(self) -> list[tuple[str, Line]]:
        """Return each mark with its text, and how many rows have it."""
        return [(mark, Line(f"{text} ({self._uses[text]})", style)) for text, (mark, style) in self._marks.items()]


def lines(sheet: Sheet, width: int) -> list[Line]:
    """Return the lines for a screen `width` columns wide; a name that leaves no room for numbers has its own line."""
    sheet, left_out = _fitted(sheet, width)
    table = list(_table(sheet, width)) if sheet.rows else []
    notes = [Line(f"no room here for {', '.join(left_out)}", "dim")] if left_out else []
    legend = [Line(text, line.style) for mark, line in sheet.legend for text in _hanging(mark, line.text, width)]
    below = [Line(text, line.style) for line in sheet.below for text in _hanging("", line.text, width)]
    parts = [part for part in (table, [*legend, *notes], below) if part]
    return [Line(text, line.style) for part in parts for line in (Line(""), *part) for text in _cut(line.text, width)][
        1:
    ]


def _cut(text: str, width: int) -> list[str]:
    """Return a text in pieces that fit the screen: nothing is left out, however narrow it is."""
    return [text[start : start + width] for start in range(0, len(text), width)] or [""]


def _hanging(mark: str, text: str, width: int) -> list[str]:
    indent = _INDENT if not mark else " " * (len(mark) + _GAP)
    first = f"{mark:<{len(indent)}}" if mark else ""
    return wrap(
        text, max(width, 2 * len(indent)), initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    ) or [""]


def _fitted(sheet: Sheet, width: int) -> tuple[Sheet, list[str]]:
    """Return the sheet without empty columns and without those that it has no room for, and the headings of these."""
    sheet = _with_columns(sheet, [i for i in range(len(sheet.columns)) if i == 0 or any(r[i] for r, _ in sheet.rows)])
    widths, stay = _widths(sheet.columns, sheet.rows), list(range(len(sheet.columns)))
    for i in sorted((i for i in stay if sheet.columns[i].spared), key=lambda i: -sheet.columns[i].spared):
        if _total(widths[j] for j in stay) > width:
            stay.remove(i)
    if _total(widths[j] for j in stay) > width:  # names get lines of their own, and leave room for all again
        return sheet, []
    gone = [column.title for i, column in enumerate(sheet.columns) if i not in stay]
    return _with_columns(sheet, stay), gone


def _with_columns(sheet: Sheet, kept: Sequence[int]) -> Sheet:
    rows = [([cells[i] for i in kept], style) for cells, style in sheet.rows]
    return sheet._replace(columns=[sheet.columns[i] for i in kept], rows=rows)


def _total(widths: Iterable[int]) -> int:
    return sum(width + _GAP for width in widths) - _GAP


def _widths(columns: Sequence[Column], rows: Sequence[tuple[Sequence[str], str]]) -> list[int]:
    heads = [max(map(len, column.heading.split("\n"))) for column in columns]
    return [max([head, *(len(cells[i]) for cells, _ in rows)]) for i, head in enumerate(heads)]


def _table(sheet: Sheet, width: int) -> Iterator[Line]:
    widths = _widths(sheet.columns, sheet.rows)
    room = max(width - sum(w + _GAP for w in widths[1:]), len(sheet.columns[0].heading))
    alone = widths[0] > room  # some names do not fit beside the numbers
    widths[0] = min(widths[0], room)
    right = [column.right for column in sheet.columns]
    headings = [column.heading.split("\n") for column in sheet.columns]
    for level in range(height := max(map(len, headings))):
        texts = [([""] * (height - len(parts)) + parts)[level] for parts in headings]
        yield Line(joined(texts, widths, right), "bold")
    yield Line("-" * min(width, _total(widths)), "dim")
    for cells, style in sheet.rows:
        if alone and len(cells[0]) > room:
            yield Line(cells[0], style)
            cells = ["", *cells[1:]]
        yield Line(joined(cells, widths, right), style)


def shortened(sheet: Sheet, most: int) -> Sheet:
    """Return the sheet with at most `most` rows, the first and the last ones, for a prompt."""
    if len(sheet.rows) <= most:
        return sheet
    half = most // 2
    gap = [f"... {len(sheet.rows) - 2 * half:,} more"] + [""] * (len(sheet.columns) - 1)
    return sheet._replace(rows=[*sheet.rows[:half], (gap, "dim"), *sheet.rows[-half:]])


def text(sheet: Sheet, width: int) -> str:
    """Return the lines as one text, without colours."""
    return "\n".join(line.text for line in lines(sheet, width))


class Drawing:
    """What Rich prints: the sheet, as wide as the console is."""

    def __init__(self, sheet: Callable[[], Sheet]):
        self._sheet = sheet

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment
        from rich.text import Text

        for line in lines(self._sheet(), options.max_width):
            if line.text.isascii():  # of Rich's texts ten thousand take seconds
                yield from (Segment(line.text, console.get_style(line.style)), Segment.line())
            else:  # letters may be two columns wide
                yield Text(line.text, style=line.style, overflow="fold")


def folded(reasons: Mapping[str, int], most: int = 4) -> list[Line]:
    """Return the line that stands for rows which are not shown, by their reasons, the most frequent first."""
    count = sum(reasons.values())
    if not count:
        return []
    common = Counter(reasons).most_common(most)
    parts = [f"{n} {printable(reason)}" for reason, n in common]
    rest = count - sum(n for _, n in common)
    parts += [f"{rest} for {len(reasons) - len(common)} other reasons"] if rest else []
    return [Line(f"not shown (--all): {'; '.join(parts)}", "dim")]
