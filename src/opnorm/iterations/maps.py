"""Linear operators as pairs of functions on stacks of vectors, and many of them joined into one.

A joined operator is block-diagonal: vectors of different lengths stand in one array, the shorter ones with zeros behind
them, so that whatever is done to vectors is done once for all kernels. Only the products are made kernel by kernel.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from opnorm.backends import Tensor, of

_SMALL = 2**17  # entries of a kernel below which a product costs less than to ask whether it is needed


class Part(NamedTuple):
    """The sizes of one kernel's operator."""

    blocks: int  # diagonal blocks, each with vectors of its own
    rows: int  # of a block: the input side
    columns: int  # the output side
    alone: bool  # whether each block's norm counts by itself; otherwise the largest of the kernel's


class Maps(NamedTuple):
    """A linear operator W, block-diagonal, on stacks of vectors, `(count, blocks, n)`."""

    times: Callable[[Tensor], Tensor]  # u -> W u, from the output side to the input side
    transposed: Callable[[Tensor], Tensor]  # v -> W^T v, back
    parts: tuple[Part, ...]
    several: tuple["Maps", ...] = ()  # of which it was joined

    @property
    def blocks(self) -> int:
        """The number of diagonal blocks."""
        return sum(part.blocks for part in self.parts)

    @property
    def rows(self) -> int:
        """The length of vectors on the input side."""
        return max(part.rows for part in self.parts)

    @property
    def columns(self) -> int:
        """The length of vectors on the output side."""
        return max(part.columns for part in self.parts)

    @property
    def coupled(self) -> bool:
        """Whether some blocks count only together with others."""
        return not all(part.alone or part.blocks == 1 for part in self.parts)


def joined(several: Sequence[Maps]) -> Maps:
    """Return the operator whose blocks are those of `several`, in their order."""
    if len(several) == 1:
        return several[0]
    parts = tuple(part for maps in several for part in maps.parts)
    rows, columns = max(maps.rows for maps in several), max(maps.columns for maps in several)

    def times(u: Tensor) -> Tensor:
        pieces = unstacked(u, several)
        return stacked([maps.times(piece) for maps, piece in zip(several, pieces, strict=True)], rows)

    def transposed(v: Tensor) -> Tensor:
        pieces = unstacked(v, several, [maps.rows for maps in several])
        return stacked([maps.transposed(piece) for maps, piece in zip(several, pieces, strict=True)], columns)

    return Maps(times, transposed, parts, tuple(several))


def only(maps: Maps, going: Tensor) -> Maps:
    """Return the operator with zeros for products of kernels none of whose blocks is `going`, `(1, blocks, 1)`."""
    if not maps.several:
        return maps
    xp = of(going)
    flags = xp.known([xp.any_of(piece) for piece in unstacked(going, maps.several, [1] * len(maps.several))])
    return joined([_only(one, flag) for one, flag in zip(maps.several, flags, strict=True)])


def _only(maps: Maps, flag: Tensor) -> Maps:
    if flag is True or maps.blocks * maps.rows * maps.columns < _SMALL:
        return maps

    def times(u: Tensor) -> Tensor:
        return of(u).cond(flag, lambda: maps.times(u), lambda: _zeros(u, maps.rows))

    def transposed(v: Tensor) -> Tensor:
        return of(v).cond(flag, lambda: maps.transposed(v), lambda: _zeros(v, maps.columns))

    return Maps(times, transposed, maps.parts)


def _zeros(like: Tensor, size: int) -> Tensor:
    xp = of(like)
    return xp.table(like, np.zeros, (*xp.shape(like)[:-1], size))


def stacked(vectors: Sequence[Tensor], size: int) -> Tensor:
    """Return the vectors of several operators in one array, with zeros behind those shorter than `size`."""
    xp = of(vectors[0])
    if len(vectors) == 1:
        return xp.widened(vectors[0], size)
    return xp.concatenate([xp.widened(one, size) for one in vectors], axis=1)


def unstacked(vectors: Tensor, several: Sequence[Maps], sizes: Sequence[int] | None = None) -> list[Tensor]:
    """Return the vectors of each operator without the zeros behind them; of its `columns`, if no other sizes."""
    if len(several) == 1:
        return [vectors]
    sizes = sizes or [maps.columns for maps in several]
    ends = list(accumulate(maps.blocks for maps in several))
    return [vectors[:, end - maps.blocks : end, :size] for maps, end, size in zip(several, ends, sizes, strict=True)]
