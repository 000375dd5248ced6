"""Operators that are known by their products alone: written out where that is cheap, else estimated from below."""

from contextlib import suppress
from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, svds

from opnorm.bounds.deadlines import NEVER, Deadline, OutOfTimeError
from opnorm.bounds.memory import Memory
from opnorm.checks import Array, real_array

_DENSE_ENTRIES = 2**24  # 128 MiB in float64: a matrix that may be written out
_BLOCK = 2**21  # entries of the unit vectors that are multiplied at once
_SIDE = 2**14  # unit vectors, one product each, beyond which a matrix is not written out
_ITERATED = 1 - 1e-6  # svds iterates to roundoff, but the products are unknown code


def can_be_written_out(shape: tuple[int, ...], memory: Memory) -> bool:
    """Return whether the matrix of an operator of that shape, its blocks and a Gram matrix of it fit."""
    rows, columns = shape
    entries, short = rows * columns, min(rows, columns)
    block = min(entries, max(_BLOCK, rows, columns))
    size = 8.0 * (2 * entries + 4 * block + 3 * short**2)
    return entries <= _DENSE_ENTRIES and short <= _SIDE and memory.holds(size)


def written_out(operator: LinearOperator, deadline: Deadline = NEVER) -> Array:
    """Return the matrix of a real operator, or its transpose where that takes fewer products.

    Args:
        operator: One for which `can_be_written_out` holds.
        deadline: OutOfTimeError is raised when it passes between two blocks of products.

    Raises:
        ValueError: When the products are not real and finite.
    """
    if operator.shape[0] < operator.shape[1]:
        with suppress(NotImplementedError):  # no adjoint was given
            return _columns(operator.rmatmat, operator.shape[::-1], deadline)
    return _columns(operator.matmat, operator.shape, deadline)


def _columns(product: Any, shape: tuple[int, ...], deadline: Deadline) -> Array:
    rows, columns = shape
    size = max(1, _BLOCK // max(rows, columns, 1))
    parts = []
    for first in range(0, columns, size):
        deadline.check()
        units = np.zeros((columns, min(size, columns - first)))
        units[np.arange(first, first + units.shape[1]), np.arange(units.shape[1])] = 1.0
        parts.append(real_array(product(units), "x", copy=False))
    return np.concatenate(parts, axis=1) if parts else np.zeros(shape)


def norm_by_products(operator: LinearOperator, deadline: Deadline = NEVER) -> float:
    """Return an estimate of the norm from below, as true as the products; zero if it does not converge in time.

    Raises:
        ValueError: When the products are not finite.
    """

    def timed(x: Array) -> Array:
        deadline.check()
        return np.asarray(operator.matvec(x))

    def timed_back(x: Array) -> Array:
        deadline.check()
        return np.asarray(operator.rmatvec(x))

    watched: Any = LinearOperator(operator.shape, timed, timed_back, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(operator.shape))
    if len(start) < 2:  # ARPACK needs more
        return 0.0
    try:
        found = float(svds(watched, k=1, v0=start, return_singular_vectors=False)[0])
    except (OutOfTimeError, ArpackError):
        return 0.0
    if not np.isfinite(found):
        raise ValueError(f"Argument `x` must have finite products. Received: a norm of {found} of {operator!r}")
    return found * _ITERATED
