"""Objects shown as one would write them, the type and the arguments that are not the defaults, and tables of them."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from html import escape
from inspect import Parameter, signature
from typing import Any, ClassVar, Generic, TypeVar, overload

Row = TypeVar("Row")


def written(thing: Any, **others: Any) -> str:
    """Return the call that makes an object like `thing`, which has its arguments as attributes.

    Arguments that an object has not got yet are left out: a debugger may ask before its `__init__` has ended.

    Args:
        thing: The object.
        **others: Further arguments to show, such as those that its `__init__` hands on.

    Example:
        >>> written(opnorm.MaxSpectralNorm(0.9, axis=-2))
        'MaxSpectralNorm(max_value=0.9, axis=-2)'
    """
    parameters = signature(type(thing).__init__).parameters.values()
    shown = [_argument(one, getattr(thing, one.name)) for one in parameters if hasattr(thing, one.name)]
    shown += [f"{name}={value!r}" for name, value in others.items()]
    return f"{type(thing).__name__}({', '.join(filter(None, shown))})"


def _argument(parameter: Parameter, value: Any) -> str:
    if parameter.default is Parameter.empty:
        return repr(value)
    traced = hasattr(value, "dtype")  # a tracer's comparison says neither yes nor no
    return "" if not traced and value == parameter.default else f"{parameter.name}={value!r}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the rows as lines of text with aligned columns."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the rows as the HTML table that notebooks show."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


class Rows(Sequence[Row], Generic[Row]):
    """Rows in their order, as a table that `print` shows, and so does a notebook."""

    headings: ClassVar[Sequence[str]]

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    @staticmethod
    @abstractmethod
    def cells(row: Row) -> Sequence[str]:
        """Return the texts of a row, one under each heading."""

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return table(self.headings, map(self.cells, self._rows))

    def _repr_html_(self) -> str:
        return html_table(self.headings, map(self.cells, self._rows))
