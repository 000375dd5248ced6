"""What `constrain` did to a model, kernel by kernel, as a table that prints itself."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

from opnorm.keras.base import OperatorConstraint
from opnorm.showing import html_table, table, written


class Attachment(NamedTuple):
    """One kernel, or one weight that may be one, and what became of it.

    Args:
        path: Its name in the model: `"encoder/dense/kernel"`.
        shape: Its shape; None before its layer is built.
        operator: What is constrained, `"matrix"` or `"convolution"`; empty where nothing is.
        constraint: The constraint with the layer's geometry; None where nothing was attached.
        note: Why nothing was attached, or what else is to be known.
    """

    path: str
    shape: tuple[int, ...] | None
    operator: str
    constraint: OperatorConstraint | None
    note: str


class Attachments(Sequence[Attachment]):
    """The rows of `constrain`'s report, in the model's order; `print` shows them, and so does a notebook."""

    def __init__(self, rows: Iterable[Attachment]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> Attachment: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Attachment]: ...

    def __getitem__(self, index: int | slice) -> Attachment | Sequence[Attachment]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return table(_HEADINGS, map(_cells, self._rows))

    def _repr_html_(self) -> str:
        return html_table(_HEADINGS, map(_cells, self._rows))


_HEADINGS = Attachment._fields


def describe(constraint: Any) -> str:
    """Return the constraint as one would write it: its type, and the arguments that are not the defaults."""
    return written(constraint) if isinstance(constraint, OperatorConstraint) else type(constraint).__name__


def _cells(row: Attachment) -> tuple[str, ...]:
    shape = "" if row.shape is None else " x ".join(map(str, row.shape))
    return row.path, shape, row.operator, "" if row.constraint is None else describe(row.constraint), row.note
