"""Reports as Rich, a prompt and a notebook show them: of many rows the first and the last, and what is counted."""

from abc import ABC, abstractmethod
from enum import StrEnum
from shutil import get_terminal_size
from typing import Any, ClassVar

from opnorm.auditing.ordering import View
from opnorm.auditing.screen import NARROW, Drawing, Sheet, shortened, text
from opnorm.tables import html_lines, html_table, printable

_ROWS = 20  # at a prompt, which shows a report again and again
_NOTEBOOK_ROWS = 60


class Shown(ABC):
    """What has a sheet of rows, in any order of `sorts`, and shows it."""

    sorts: ClassVar[type[StrEnum]]
    largest: ClassVar[str]  # by which the first rows are chosen where no order is asked for

    @abstractmethod
    def _title(self) -> str:
        """Return what stands above the rows."""

    @abstractmethod
    def _sheet(self, view: View) -> Sheet:
        """Return the rows that a view shows."""

    def drawn(self, *, all_rows: bool = False, sort: str | None = None, top: int | None = None) -> Any:
        """Return the rows as Rich draws them, as wide as the console is; arguments as for `to_text`.

        What has no norm, or is in one of two files alone, is a count unless `all_rows`; what many rows have in common
        stands once, below them.
        """
        view = self._view(all_rows, sort, top)
        return Drawing(lambda: self._sheet(view))

    def _view(self, all_rows: bool, sort: str | None, top: int | None) -> View:
        return View(all_rows, sort, top).checked(self.sorts, self.largest)

    def __rich__(self) -> Any:
        return self.drawn()

    def __repr__(self) -> str:
        return prompt_text(self._title(), self._sheet(View()))

    def _repr_html_(self) -> str:
        return prompt_html(self._title(), self._sheet(View()))


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
