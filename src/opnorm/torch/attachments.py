"""What `constrain` did to a module, kernel by kernel, as a table that prints itself and can be undone."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from opnorm.rules import Constraint
from opnorm.showing import Rows


class Attachment(NamedTuple):
    """One kernel, or one parameter that may be one, and what became of it.

    Args:
        path: Its name in the module: `"encoder.0.weight"`.
        shape: Its shape.
        operator: What is constrained, `"matrix"` or `"convolution"`; empty where nothing is.
        constraint: The constraint with the module's geometry; None where nothing was attached.
        note: Why nothing was attached, or what else is to be known.
    """

    path: str
    shape: tuple[int, ...]
    operator: str
    constraint: Constraint | None
    note: str


class Attachments(Rows[Attachment]):
    """The rows of `constrain`'s report, in the module's order; `print` shows them, and so does a notebook."""

    headings = Attachment._fields

    def __init__(self, rows: Iterable[Attachment], undo: Callable[[], None]) -> None:
        super().__init__(rows)
        self._undo = undo

    @staticmethod
    def cells(row: Attachment) -> tuple[str, ...]:
        """Return the texts of a row."""
        constraint = "" if row.constraint is None else str(row.constraint)
        return row.path, " x ".join(map(str, row.shape)), row.operator, constraint, row.note

    def remove(self) -> None:
        """Constrain no more; the kernels stay as they are, and the optimizer forgets the vectors."""
        self._undo()

    def __reduce__(self) -> tuple[type["Attachments"], tuple[tuple[Attachment, ...], Callable[[], None]]]:
        # A model that keeps its table is copied and pickled with it: a copy of an optimizer has no hooks to take off.
        return Attachments, (self._rows, _nothing)


def _nothing() -> None:
    """Undo nothing."""
