"""Kernels of a model chosen by the patterns that their paths match, or by a function."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar, cast

from opnorm.checks import require

Selection = str | Sequence[str] | Callable[[Any, str], bool]


class Selectable(Protocol):
    """A kernel of a model, whose framework says how it is called."""

    @property
    def path(self) -> str:
        """Its name in the model."""

    @property
    def names(self) -> Iterable[str]:
        """What patterns may match: its paths, and those of the layers on the way to it."""

    @property
    def place(self) -> tuple[Any, str]:
        """The layer that it belongs to, and the attribute's name."""


Kernel = TypeVar("Kernel", bound=Selectable)


def choose(kernels: list[Kernel], include: Selection | None, exclude: Selection | None) -> list[Kernel]:
    """Return those of `kernels` that `include` selects, all by default, and `exclude` does not.

    Raises:
        ValueError: When a pattern matches no kernel.
    """
    include, exclude = to_selection("include", include), to_selection("exclude", exclude)
    wanted = kernels if include is None else _selected("include", include, kernels)
    left = [] if exclude is None else [id(kernel) for kernel in _selected("exclude", exclude, kernels)]
    return [kernel for kernel in wanted if id(kernel) not in left]


def to_selection(name: str, value: Any) -> Selection | None:
    """Return `value`; raise unless it is None, a pattern, a sequence of patterns, or a function."""
    several = isinstance(value, Sequence) and all(isinstance(pattern, str) for pattern in value)
    sound = value is None or callable(value) or several
    require(sound, name, "must be a pattern, a sequence of patterns, or a function", value)
    return cast(Selection | None, value)


def _selected(name: str, selection: Selection, kernels: list[Kernel]) -> list[Kernel]:
    if callable(selection):
        return [kernel for kernel in kernels if selection(*kernel.place)]
    patterns = [selection] if isinstance(selection, str) else list(selection)
    for pattern in patterns:
        known = ", ".join(kernel.path for kernel in kernels)
        found = any(_matches(pattern, kernel) for kernel in kernels)
        require(found, name, f"must match a kernel of the model; it has {known or 'none'}", pattern)
    return [kernel for kernel in kernels if any(_matches(pattern, kernel) for pattern in patterns)]


def _matches(pattern: str, kernel: Selectable) -> bool:
    return any(fnmatchcase(name, pattern) for name in kernel.names)
