"""Measured rows: as JSON between processes, and in `benchmarks/README.md` between the markers of their section."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

README = Path(__file__).with_name("README.md")


def write_rows(path: str, rows: Iterable[Sequence[str]]) -> None:
    """Write `rows` as JSON."""
    Path(path).write_text(json.dumps(list(rows)), encoding="utf-8")


def read_rows(path: str) -> list[list[str]]:
    """Return the rows that `write_rows` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_table(section: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table, and put it between `<!-- section:begin -->` and `<!-- section:end -->`.

    Raises:
        ValueError: When the README lacks one of the markers.
    """
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"<!-- {section}:begin -->\n")
    _, end, after = rest.partition(f"<!-- {section}:end -->")
    if not (begin and end):
        raise ValueError(f"benchmarks/README.md has no markers for the section. Received: section={section!r}")
    unfinished = README.with_suffix(".tmp")
    unfinished.write_text(before + begin + table + "\n" + end + after, encoding="utf-8")
    unfinished.replace(README)
    print(table)
