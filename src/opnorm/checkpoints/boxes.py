"""Tensors that a checkpoint stores in parts: each is a box of the whole, and together they cover it once."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.files import require

_PARTS = 2**12  # of one tensor, which are compared with one another


class Box(NamedTuple):
    """A part of a tensor."""

    starts: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def place(self) -> tuple[slice, ...]:
        """Return it as NumPy's index."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.shape, strict=True))


def check_cover(name: str, whole: tuple[int, ...], parts: Sequence[Box]) -> None:
    """Raise unless boxes cover a tensor, each entry once."""
    require(len(parts) <= _PARTS, f"{name!r} has more than {_PARTS} parts")
    inside = all(_lies_in(part, whole) for part in parts)
    require(inside and _covers(whole, parts), f"the parts of {name!r} do not make the whole")


def _lies_in(part: Box, whole: tuple[int, ...]) -> bool:
    proper = len(part.starts) == len(part.shape) == len(whole)
    return proper and all(a >= 0 and s >= 0 and a + s <= n for a, s, n in zip(*part, whole, strict=True))


def _covers(whole: tuple[int, ...], parts: Sequence[Box]) -> bool:
    parts = [part for part in parts if 0 not in part.shape]
    if sum(prod(part.shape) for part in parts) != prod(whole):
        return False
    starts = np.array([part.starts for part in parts], np.int64).reshape(len(parts), len(whole))
    ends = starts + np.array([part.shape for part in parts], np.int64).reshape(len(parts), len(whole))
    meets = (((starts[:i] < ends[i]) & (starts[i] < ends[:i])).all(1).any() for i in range(1, len(parts)))
    return not any(meets)


def joined(
    shape: tuple[int, ...], dtype: np.dtype[Any], parts: Sequence[tuple[Box, Callable[[], np.ndarray]]]
) -> np.ndarray:
    """Return a tensor from its parts, read one after another."""
    whole = np.zeros(shape, dtype)
    for box, read in parts:
        whole[box.place] = read()
    return whole
