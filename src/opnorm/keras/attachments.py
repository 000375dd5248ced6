"""What `constrain` did to a model, kernel by kernel, as a table that prints itself."""

from typing import Any, NamedTuple

from opnorm.keras.base import OperatorConstraint
from opnorm.showing import Rows, written


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


class Attachments(Rows[Attachment]):
    """The rows of `constrain`'s report, in the model's order; `print` shows them, and so does a notebook."""

    headings = Attachment._fields

    @staticmethod
    def cells(row: Attachment) -> tuple[str, ...]:
        """Return the texts of a row."""
        shape = "" if row.shape is None else " x ".join(map(str, row.shape))
        return row.path, shape, row.operator, "" if row.constraint is None else describe(row.constraint), row.note


def describe(constraint: Any) -> str:
    """Return the constraint as one would write it: its type, and the arguments that are not the defaults."""
    return written(constraint) if isinstance(constraint, OperatorConstraint) else type(constraint).__name__
