"""What `constrain` did to a module, kernel by kernel, as a table that prints itself and can be undone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, overload

from opnorm.rules import Constraint
from opnorm.showing import html_table, table


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


class Attachments(Sequence[Attachment]):
    """The rows of `constrain`'s report, in the module's order; `print` shows them, and so does a notebook."""

    def __init__(self, rows: Iterable[Attachment], undo: Callable[[], None]) -> None:
        self._rows = tuple(rows)
        self._undo = undo

    def remove(self) -> None:
        """Constrain no more; the kernels stay as they are, and the optimizer forgets the vectors."""
        self._undo()

    @overload
    def __getitem__(self, index: int) -> Attachment: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Attachment]: ...

    def __getitem__(self, index: int | slice) -> Attachment | Sequence[Attachment]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return table(Attachment._fields, map(_cells, self._rows))

    def _repr_html_(self) -> str:
        return html_table(Attachment._fields, map(_cells, self._rows))


def _cells(row: Attachment) -> tuple[str, ...]:
    constraint: Any = "" if row.constraint is None else row.constraint
    return row.path, " x ".join(map(str, row.shape)), row.operator, str(constraint), row.note
