"""Reports as a prompt and a notebook show them: the first and the last rows, and what is counted."""

from shutil import get_terminal_size

from opnorm.auditing.screen import NARROW, Sheet, shortened, text
from opnorm.tables import html_lines, html_table, printable

_ROWS = 20  # at a prompt, which shows a report again and again
_NOTEBOOK_ROWS = 60


def prompt_text(title: str, sheet: Sheet) -> str:
    """Return what a prompt shows, as wide as the terminal is."""
    width = max(NARROW, get_terminal_size((NARROW, 24)).columns)
    return f"{printable(title)}\n\n{text(shortened(sheet, _ROWS), width)}"


def prompt_html(title: str, sheet: Sheet) -> str:
    """Return what a notebook shows; every text is escaped."""
    sheet = shortened(sheet, _NOTEBOOK_ROWS)
    headings = [column.title for column in sheet.columns]
    right = [column.title for column in sheet.columns if column.right]
    table = html_table(headings, [cells for cells, _ in sheet.rows], right)
    legend = [f"{mark}: {line.text}" for mark, line in sheet.legend]
    return html_lines([printable(title)]) + table + html_lines([*legend, *(line.text for line in sheet.below)])
