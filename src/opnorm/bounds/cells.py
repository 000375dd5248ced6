"""Cells that tile the torus of frequencies, each with the factor by which a norm can fall inside it.

Where a symbol's norm reaches its supremum S, it stays above `S cos(sum_i d_i |t_i|)` at distance t (d: the degrees), so
a cell that contains the maximum has `||M(centre)|| >= S cos(slack)`. Pairs of axes get diamonds, `d_1 |t_1| + d_2 |t_2|
<= slack`: they tile the plane with half as many points as boxes of the same slack.

Reference:
    R. J. Duffin, A. C. Schaeffer, "Some properties of functions of exponential type", Bull. AMS 44 (1938).
"""

from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from opnorm.checks import Array

_OVERLAP = 1e-12  # relative growth of every cell, so that rounded centres leave no gap between neighbours


@dataclass(frozen=True)
class Cells:
    """Cells of one shape, around `centres`, for the symbols of `groups`.

    Args:
        groups: (count,), which symbol each cell belongs to.
        centres: (count, axes), frequencies.
        half_widths: (axes,), from a cell's centre to its border along each axis.
        degrees: (axes,), the symbol's.
    """

    groups: NDArray[np.intp]
    centres: Array
    half_widths: Array
    degrees: Array

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def slack(self) -> float:
        """The largest `sum_i d_i |t_i|` in a cell: a diamond counts once for both its axes."""
        reach = self.half_widths * self.degrees
        parts = [float(np.max(reach[list(pair)])) for pair in _pairs(len(reach))]
        return sum(parts) * (1 + _OVERLAP)

    def where(self, mask: NDArray[np.bool_]) -> "Cells":
        """Return the cells that `mask` selects."""
        return Cells(self.groups[mask], self.centres[mask], self.half_widths, self.degrees)

    def halved(self) -> "Cells":
        """Return the cells of half the size that tile these."""
        parts = [_children(len(pair)) for pair in _pairs(len(self.half_widths))]
        offsets = np.array([np.concatenate(row) for row in product(*parts)]) * self.half_widths
        centres = (self.centres[:, None] + offsets).reshape(-1, len(self.half_widths))
        return Cells(np.repeat(self.groups, len(offsets)), centres, self.half_widths / 2, self.degrees)


def tiling_size(degrees: Array, slack: float) -> float:
    """Return how many cells of at most `slack` tile half of the torus, nearly."""
    pairs = _pairs(len(degrees))
    shifts = prod(len(_interlaced(len(pair))) for pair in pairs)
    return float(np.prod(np.pi * degrees * len(pairs) / slack + 1.0)) * shifts / 2


def tiling(groups: NDArray[np.intp], degrees: Array, slack: float) -> Cells:
    """Return cells of at most `slack` that tile half of the torus for each group.

    The kernel is real, so the norm at -w is the norm at w: half of the frequencies tell everything.
    """
    pairs = _pairs(len(degrees))
    counts = np.ceil(np.pi * degrees * len(pairs) / slack - 1e-9)
    steps = 2 * np.pi / counts
    corners = np.indices([int(n) for n in counts]).reshape(len(counts), -1).T * steps
    shifts = [np.concatenate(row) for row in product(*[_interlaced(len(pair)) for pair in pairs])]
    centres = np.concatenate([corners + shift * steps for shift in shifts])
    centres = _one_of_each_sign(centres)
    repeated = np.repeat(groups, len(centres))
    return Cells(repeated, np.tile(centres, (len(groups), 1)), steps / 2, degrees)


def _pairs(axes: int) -> list[tuple[int, ...]]:
    """Return the axes two by two, a single one last."""
    return [tuple(range(first, min(first + 2, axes))) for first in range(0, axes, 2)]


def _interlaced(axes: int) -> list[list[float]]:
    """Return the shifted copies of the square lattice whose cells tile: diamonds need a second one."""
    return [[0.0]] if axes == 1 else [[0.0, 0.0], [0.5, 0.5]]


def _children(axes: int) -> list[list[float]]:
    """Return the centres of a cell's children, in half-widths: four diamonds at its corners' midpoints."""
    return [[-0.5], [0.5]] if axes == 1 else [[-0.5, 0.0], [0.5, 0.0], [0.0, -0.5], [0.0, 0.5]]


def _one_of_each_sign(centres: Array) -> Array:
    """Keep one of w and -w (modulo 2 pi)."""
    turns = np.round(centres / (2 * np.pi), 9)  # nine digits tell lattice points apart and forgive rounding
    mine, other = turns % 1, np.round(-turns % 1, 9) % 1
    keep = np.ones(len(centres), dtype=bool)
    for axis in reversed(range(centres.shape[1])):  # in the order of dictionaries: the first axis decides, if it can
        keep = (mine[:, axis] < other[:, axis]) | ((mine[:, axis] == other[:, axis]) & keep)
    return np.asarray(centres[keep])
