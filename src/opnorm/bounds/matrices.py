"""The spectral norm of a matrix between two proved numbers, at a third of the price of its singular values.

A Lanczos estimate gives a vector; the vector proves the lower end, one Cholesky factorization proves the upper one.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator, eigsh

from opnorm.bounds import lapack
from opnorm.bounds.certificates import Gram, frobenius_above, gamma, norm_below, up
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array

_LANCZOS_SIZE = 192  # below it LAPACK's eigensolver is as fast as Lanczos, and exact
_HARMLESS = 32  # binary digits by which a largest entry may miss 1: squares and shifts are then far from subnormal
_SMALL = 2**22  # entries up to which a second thread of BLAS gains little, and costs much where processors are busy
_STEPS = 8  # power iterations of a lower end that has no time for more
_BLOCK = 2**20  # entries whose magnitudes are written out at once


def bracket_matrix(A: Array, tolerance: float, deadline: Deadline = NEVER) -> tuple[float, float]:
    """Return `(lower, upper)` with `lower <= ||A|| <= upper`, proved in floating-point arithmetic.

    Args:
        A: (m, n), finite float64.
        tolerance: Aim for `upper / lower - 1`. Reached for every matrix whose rounding errors allow it: about
            `1e-16 * m * n` is the limit.
        deadline: When the factorizations would not end in time, the bracket is that of `_bracket_roughly`.
    """
    peak = max(float(np.max(A)), -float(np.min(A)))  # no array of magnitudes: the matrix may fill the memory
    if peak == 0:
        return 0.0, 0.0
    exponent = -int(np.frexp(peak)[1])
    if abs(exponent) <= _HARMLESS:
        return _bracket_scaled(A, tolerance, deadline)
    lower, upper = _bracket_scaled(np.ldexp(A, exponent), tolerance, deadline)
    return rescale(lower, upper, -exponent)


def rescale(lower: float, upper: float, exponent: int) -> tuple[float, float]:
    """Return the bracket times `2**exponent`, rounded outwards where the result is subnormal or overflows."""
    with np.errstate(over="ignore", under="ignore"):
        low, high = float(np.ldexp(lower, exponent)), float(np.ldexp(upper, exponent))
    largest, tiny = float(np.finfo(np.float64).max), float(np.finfo(np.float64).tiny)
    if low < tiny:
        low = max(float(np.nextafter(low, -1.0)), 0.0)
    if high < tiny:
        high = float(np.nextafter(high, 1.0))
    return min(low, largest), high


def _bracket_scaled(A: Array, tolerance: float, deadline: Deadline) -> tuple[float, float]:
    short = min(A.shape)
    if not deadline.affords(A.size * short / 2 + short**3):  # the Gram matrix; Cholesky and Lanczos, generously
        return _bracket_roughly(A, deadline)
    with one_blas_thread() if A.size <= _SMALL else nullcontext():
        return _bracket_by_proof(A, tolerance, deadline)


def _bracket_by_proof(A: Array, tolerance: float, deadline: Deadline) -> tuple[float, float]:
    gram = Gram.of(A)
    tall = A if A.shape[0] >= A.shape[1] else A.T
    lower = 0.0
    # Ritz values err by the square of the residual, but for a cluster at the top only by the residual itself.
    for accuracy in (1e-5, 1e-8, 1e-12):
        lower = max(lower, norm_below(tall, _top_eigenvector(gram, accuracy), gram.frobenius))
        upper = up(lower * (1 + 0.9 * tolerance))  # a tenth of the tolerance is left for the roundings of both ends
        if gram.proves(upper):
            return lower, upper
        if deadline.passed:
            break
    slack = 2 * tolerance
    while not gram.proves(lower * (1 + slack)):
        slack *= 2
    return lower, up(lower * (1 + slack))


def _top_eigenvector(gram: Gram, accuracy: float) -> Array:
    """Return an estimate of the unit eigenvector of the largest eigenvalue."""
    G = gram.lower
    n: int = G.shape[0]
    if n <= _LANCZOS_SIZE:
        return np.asarray(eigh(G, lower=True, subset_by_index=[n - 1, n - 1])[1][:, 0])
    product: Any = LinearOperator((n, n), matvec=lambda v: lapack.times(G, v), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    vector = eigsh(product, k=1, which="LA", tol=accuracy, v0=start, ncv=min(n, 24))[1][:, 0]
    return np.asarray(vector)


def _bracket_roughly(A: Array, deadline: Deadline) -> tuple[float, float]:
    """Return a proved bracket at the price of a few readings of the matrix.

    From above: the smaller of the Frobenius norm and `sqrt(||A||_1 ||A||_inf)`. From below: power iteration from the
    heaviest row, so never below the norm of that row.
    """
    frobenius = frobenius_above(A)
    rows, columns = _absolute_sums(A)
    product = float(np.max(rows)) * float(np.max(columns)) * (1 + gamma(2 * sum(A.shape)))
    v = A[int(np.argmax(rows))]
    lower = 0.0
    for _ in range(_STEPS):
        v = v / float(np.linalg.norm(v))
        lower = max(lower, norm_below(A, v, frobenius))
        if deadline.passed or lower == 0:
            break
        v = (A @ v) @ A
    return lower, min(frobenius, up(float(np.sqrt(product))))


def _absolute_sums(A: Array) -> tuple[Array, Array]:
    """Return the sums of magnitudes of each row and of each column, by blocks of rows."""
    rows, columns = np.zeros(A.shape[0]), np.zeros(A.shape[1])
    size = max(1, _BLOCK // A.shape[1])
    for first in range(0, A.shape[0], size):
        part = np.abs(A[first : first + size])
        rows[first : first + size] = np.sum(part, axis=1)
        columns += np.sum(part, axis=0)
    return rows, columns
