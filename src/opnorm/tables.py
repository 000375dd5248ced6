"""Numbers, names and tables as people read them: in text, in a notebook, in a data frame."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

_MARGIN = "  "


def number(value: float | None, digits: int = 6) -> str:
    """Return so many significant digits, "-" for None."""
    return "-" if value is None else f"{value:.{digits}g}"


def printable(text: str) -> str:
    """Return `text` with every character that is not printable escaped: names come from files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return lines of columns, those named in `right` to the right; nothing is cut or wrapped."""
    lines = [list(headings), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    sides = [heading in right for heading in headings]
    return "".join(f"{joined(texts, widths, sides)}\n" for texts in lines)


def joined(texts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    """Return the cells of one line, padded to their columns' widths."""
    parts = zip(texts, widths, right, strict=True)
    return _MARGIN.join(f"{text:>{width}}" if side else f"{text:<{width}}" for text, width, side in parts).rstrip()


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return an HTML table for a notebook, which lends it its colours; every text is escaped."""
    sides = ["right" if heading in right else "left" for heading in headings]

    def line(tag: str, texts: Sequence[str]) -> str:
        style = "white-space: nowrap; text-align:"
        cells = zip(texts, sides, strict=True)
        return (
            "<tr>"
            + "".join(f'<{tag} style="{style} {side}">{escape(printable(text))}</{tag}>' for text, side in cells)
            + "</tr>"
        )

    body = "".join(line("td", texts) for texts in rows)
    return (
        f'<div style="overflow-x: auto"><table><thead>{line("th", headings)}</thead><tbody>{body}</tbody></table></div>'
    )


def html_lines(lines: Iterable[str]) -> str:
    """Return a paragraph for each line; every text is escaped."""
    return "".join(f"<p>{escape(printable(line))}</p>" for line in lines)


def frame(records: Sequence[Mapping[str, Any]], columns: Sequence[str], numbers: Collection[str]) -> Any:
    """Return a pandas DataFrame of `records`; of the columns `numbers` what is not known is NaN.

    Raises:
        ImportError: When pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas. Run: pip install pandas") from error
    made = pd.DataFrame.from_records([dict(record) for record in records], columns=list(columns))
    return made.astype(dict.fromkeys(numbers, float))
