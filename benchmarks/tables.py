"""Rows of figures, as JSON between processes and as a Markdown table in `benchmarks/README.md`."""

import json
from pathlib import Path

README = Path(__file__).with_name("README.md")


def write_rows(path, rows):
    """Write `rows` as JSON."""
    Path(path).write_text(json.dumps(rows))


def read_rows(path):
    """Return the rows that `write_rows` wrote."""
    return json.loads(Path(path).read_text())


def write_table(section, header, rows):
    """Print the table, and put it between the section's markers in the README."""
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])
    begin, end = f"<!-- {section}:begin -->", f"<!-- {section}:end -->"
    text = README.read_text()
    before, rest = text.split(begin)
    draft = README.with_suffix(".tmp")
    draft.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")
    draft.replace(README)
    print(table)
