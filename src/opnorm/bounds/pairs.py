"""The norm of a product of two matrices, as of an attention's query and key, between two proved numbers."""

from math import inf, nextafter, sqrt

import numpy as np

from opnorm.bounds.brackets import Bounds, spectral_norm
from opnorm.checks import Array

_ENTRIES = 2**24  # of a product that is written out: 128 MiB
_ROUNDING, _LEAST = 2.0**-52, float(np.finfo(float).tiny)  # twice the unit roundoff; what underflow may lose


def bracket_product(first: Array, second: Array) -> Bounds:
    """Return the norm of `first @ second.T`, `(m, d)` and `(n, d)` in float64, between two proved numbers.

    Of products of more than 2**24 entries the upper end is the product of both norms, the lower end 0.
    """
    (rows, inner), columns = first.shape, second.shape[0]
    if rows * columns > _ENTRIES:
        return Bounds(0.0, nextafter(spectral_norm(first).upper * spectral_norm(second).upper, inf))
    # A sum of d rounded products is within d u |a| |b| of the truth, and norms of such are at most Frobenius norms.
    size = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    rounding = inner * (_ROUNDING * size + _LEAST * sqrt(rows * columns))
    lower, upper = spectral_norm(first @ second.T)
    return Bounds(max(0.0, lower - rounding), nextafter(upper + rounding, inf))


def bracket_heads(query: Array, key: Array) -> Bounds:
    """Return the largest norm of W_q W_k^T over the heads of two kernels `(in, heads, size)`."""
    ends = [bracket_product(query[:, head], key[:, head]) for head in range(query.shape[1])]
    return Bounds(max(lower for lower, _ in ends), max(upper for _, upper in ends))
