"""Neurons whose slope is open on a ball, each with a variable of its own: what stands between exact and lost.

A neuron with slopes in `m +- h` gives `m y + h v`, where v is `s y` for some number s in [-1, 1] that depends on the
input. Values behind it have a tangent along v as they have along the input. All that is known of v is `|v| <= |y|`, and
so, with g the row of the Jacobian of y, `|v| <= ||g|| |move|`.

Rows of a Jacobian are sums `a + sum_u p_u s_u g_u`. Their norms are at most `||a|| + sum |p_u| ||g_u||`, and, as the
square of a sum is the sum of all inner products, with `g_u = a_u + e_u` also at most

    sqrt(||a||^2 + 2 sum |p_u| |<a, a_u>| + sum |p_u| |p_w| |<a_u, a_w>|) + sum |p_u| ||e_u||,

which sees that in many dimensions directions are nearly orthogonal.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.certificates import gamma
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checks import Array

_WORK = 2**25  # multiplications of all inner products: 10 ms
_SPARE = 1 + 2.0**-28


def flat_of(tangents: Array) -> Array:
    """Return tangents, of which there may be none, with the entries of the value on one axis."""
    return tangents.reshape(len(tangents), prod(tangents.shape[1:]))


class OpenNeurons:
    """The table of open neurons, in the order in which they were met.

    Args:
        inputs: Tangents along the network's input.
        most: The largest number of open neurons.
    """

    def __init__(self, inputs: int, most: int):
        self.inputs, self.room = inputs, most if inputs else 0
        self.tangents = np.zeros((inputs, 0))  # of y: (input + open neurons before, neurons)
        self.rest = np.zeros(0)  # what these leave out of the row of y's Jacobian
        self.bounds = np.zeros(0)  # ||g||
        self.beside = np.zeros(0)  # ||e||
        self.cosines = np.zeros((0, 0))  # at least |<a_u, a_w>|
        self.groups: list[int] = []  # how many were met together
        self.spread = 0.0  # at least the norm of all rows g / ||g|| together

    def __len__(self) -> int:
        return len(self.bounds)

    def padded(self, tangents: Array) -> Array:
        """Return tangents along all open neurons: a value has none along those that were met after it."""
        missing = self.inputs + len(self) - len(tangents)
        return np.concatenate([tangents, np.zeros((missing, *tangents.shape[1:]))]) if missing else tangents

    def sizes(self, tangents: Array) -> Array:
        """Return for each entry the norm of its tangents along the input plus those of the neurons, one by one."""
        along = np.sqrt(np.sum(tangents[: self.inputs] ** 2, axis=0))
        others = tangents[self.inputs :]
        if len(others):
            along = along + np.tensordot(self.bounds[: len(others)], np.abs(others), axes=(0, 0))
        return np.asarray(along * _SPARE)

    def norms(self, tangents: Array) -> Array:
        """Return an upper bound of the norm of `A + P S G` for each entry, without cancellation left out."""
        if len(tangents) == self.inputs or tangents.size * len(tangents) > _WORK:
            return self.sizes(tangents)
        flat = flat_of(tangents)
        a, p = flat[: self.inputs], np.abs(flat[self.inputs :])
        count = len(p)
        own = self.tangents[: self.inputs, :count]
        crossed = 2 * np.sum(p * np.abs(own.T @ a), axis=0) + np.sum(p * (self.cosines[:count, :count] @ p), axis=0)
        lost = gamma(self.inputs + 4) * self.sizes(flat) ** 2  # the inner products' roundings
        squares = np.sum(a**2, axis=0) + crossed + 2 * lost
        return np.asarray((np.sqrt(squares) + self.beside[:count] @ p) * _SPARE).reshape(tangents.shape[1:])

    def norm(self, tangents: Array) -> float:
        """Return an upper bound of the norm of `A + P S G` as a matrix."""
        flat = flat_of(tangents)
        straight, others = flat[: self.inputs], flat[self.inputs :]
        found = norm_above(straight)
        if len(others):
            found += self.spread * norm_above(others * self.bounds[: len(others), None])
        return min(found, float(np.linalg.norm(self.sizes(flat)))) * _SPARE

    def add(self, tangents: Array, rest: Array, bounds: Array) -> None:
        """Note neurons: the tangents of their y, (tangents, neurons), what these leave out, and the norms of all."""
        tangents = self.padded(tangents)
        straight, others = tangents[: self.inputs], tangents[self.inputs :]
        scales = np.maximum(bounds, 1e-290)
        own = norm_above(straight / scales) + float(np.linalg.norm(rest / scales))
        own += self.spread * norm_above(others * self.bounds[:, None] / scales) if len(others) else 0.0
        self.spread = float(np.hypot(self.spread, min(own, np.sqrt(len(bounds))))) * _SPARE
        beside = np.tensordot(self.bounds, np.abs(others), axes=(0, 0)) + rest
        whole = np.hstack([self.tangents[: self.inputs], straight])
        sizes = np.sqrt(np.sum(whole**2, axis=0))
        self.cosines = (np.abs(whole.T @ whole) + gamma(self.inputs + 4) * np.outer(sizes, sizes)) * _SPARE
        self.beside = np.concatenate([self.beside, beside * _SPARE])
        below = np.zeros((len(tangents) - len(self.tangents), len(self)))
        self.tangents = np.hstack([np.vstack([self.tangents, below]), tangents])
        self.rest = np.concatenate([self.rest, rest])
        self.bounds = np.concatenate([self.bounds, bounds])
        self.groups.append(len(bounds))

    def chosen(self, weights: Array) -> NDArray[np.int64]:
        """Return the places of those neurons that get a variable: the heaviest, as long as there is room."""
        flat = weights.ravel()
        open_, left = np.flatnonzero(flat > 0), max(self.room - len(self), 0)
        if len(open_) > left:
            open_ = np.sort(open_[np.argsort(-flat[open_], kind="stable")[:left]])
        return np.asarray(open_, dtype=np.int64)


def norm_above(matrix: Array) -> float:
    """Return a proved upper bound of a matrix's norm, a thousandth above it; inf where it has numbers that are none."""
    if not np.all(np.isfinite(matrix)):
        return np.inf
    return bracket_matrix(matrix, 1e-3)[1] if matrix.size else 0.0
