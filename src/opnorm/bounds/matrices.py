"""The spectral norm of a matrix between two proved numbers, at a third of the price of its singular values.

A Lanczos estimate gives a vector; the vector proves the lower end, one Cholesky factorization proves the upper one.
"""

from contextlib import nullcontext
from typing import cast

import numpy as np

from opnorm.bounds.certificates import Gram, frobenius_above, gamma, norm_below, up
from opnorm.bounds.deadlines import NEVER, Deadline, OutOfTimeError
from opnorm.bounds.eigenvectors import top_eigenvector
from opnorm.bounds.forks import blas_section
from opnorm.bounds.memory import Memory
from opnorm.bounds.singles import LEAST, bracket_in_single
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array

_HARMLESS = 32  # binary digits by which a largest entry may miss 1: squares and shifts are then far from subnormal
SMALL = 2**22  # entries up to which a second thread of BLAS gains little, and costs much where processors are busy
_STEPS = 8  # power iterations of a lower end that has no time for more
_BLOCK = 2**20  # entries whose magnitudes are written out at once


def bracket_matrix(
    A: Array, tolerance: float, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    """Return `(lower, upper)` with `lower <= ||A|| <= upper`, proved in floating-point arithmetic.

    Args:
        A: (m, n), finite float64.
        tolerance: Aim for `upper / lower - 1`. Reached for every matrix whose rounding errors allow it: about
            `1e-16 * m * n` is the limit.
        deadline: When the factorizations would not end in time, the bracket is that of `_bracket_roughly`.
        memory: Likewise when two Gram matrices do not fit; None: half of the machine's.
    """
    peak = max(float(np.max(A)), -float(np.min(A)))  # no array of magnitudes: the matrix may fill the memory
    if peak == 0:
        return 0.0, 0.0
    memory = memory or Memory()
    exponent = -int(np.frexp(peak)[1])
    if abs(exponent) <= _HARMLESS:
        return _bracket_scaled(A, tolerance, deadline, memory)
    lower, upper = _bracket_scaled(np.ldexp(A, exponent), tolerance, deadline, memory)
    return rescale(lower, upper, -exponent)


def bracket_blocks(
    blocks: Array, tolerance: float, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    """Return `(lower, upper)` around the largest norm of several matrices, as `bracket_matrix` does.

    A block whose Frobenius norm cannot exceed what is known is not looked at.

    Args:
        blocks: (count, m, n), finite float64.
        tolerance: As for one matrix.
        deadline: After it the blocks that are left count with their Frobenius norm.
        memory: As for one matrix.
    """
    if len(blocks) == 1:
        return bracket_matrix(blocks[0], tolerance, deadline, memory)
    above = np.array([_frobenius_of_any(block) for block in blocks])
    lower = upper = 0.0
    for block in np.argsort(-above):
        if above[block] <= lower:
            break
        if upper > 0 and deadline.passed:
            return lower, max(upper, float(above[block]))
        low, high = bracket_matrix(blocks[block], tolerance, deadline, memory)
        lower, upper = max(lower, low), max(upper, high)
    return lower, upper


def _frobenius_of_any(A: Array) -> float:
    """Return an upper bound of the Frobenius norm of a matrix of any scale."""
    peak = max(float(np.max(A)), -float(np.min(A)))
    if peak == 0:
        return 0.0
    exponent = int(np.frexp(peak)[1])
    return rescale(0.0, frobenius_above(np.ldexp(A, -exponent)), exponent)[1]


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


def _bracket_scaled(A: Array, tolerance: float, deadline: Deadline, memory: Memory) -> tuple[float, float]:
    short = min(A.shape)
    # The Gram matrix, its shifted copy and Lanczos's vectors; a strided A is copied by BLAS.
    fits = memory.holds(8.0 * (2 * short**2 + 32 * short) + (0 if _is_contiguous(A) else A.nbytes))
    # The Gram matrix; Cholesky and Lanczos, generously.
    possible = fits and deadline.affords(A.size * short / 2 + short**3)
    with one_blas_thread() if A.size <= SMALL else nullcontext():
        if not possible:
            return _bracket_roughly(A, deadline)
        try:
            return _bracket_by_vectors(A, tolerance, deadline, memory) or _bracket_by_proof(A, tolerance, deadline)
        except OutOfTimeError:  # Lanczos steps that do not end
            return _bracket_roughly(A, deadline)


def _is_contiguous(A: Array) -> bool:
    return bool(A.flags.c_contiguous or A.flags.f_contiguous)


def _bracket_by_vectors(A: Array, tolerance: float, deadline: Deadline, memory: Memory) -> tuple[float, float] | None:
    """Return a bracket of a large matrix at two thirds of the price, where few singular values are near the largest."""
    short = min(A.shape)
    # The Gram matrix in float32, and in float64; Lanczos's vectors, and rows and columns at work.
    if short < LEAST or 12.0 * short**2 + 16384.0 * short > memory.limit:
        return None
    tall = A if A.shape[0] >= A.shape[1] else A.T
    return bracket_in_single(tall, tolerance, frobenius_above(A), deadline)


def _bracket_by_proof(A: Array, tolerance: float, deadline: Deadline) -> tuple[float, float]:
    gram = Gram.of(A)
    tall = A if A.shape[0] >= A.shape[1] else A.T
    lower = 0.0
    # Ritz values err by the square of the residual, but for a cluster at the top only by the residual itself.
    for accuracy in (1e-5, 1e-8, 1e-12):
        v = top_eigenvector(cast(Array, gram.lower), accuracy, deadline)
        lower = max(lower, norm_below(tall, v, gram.frobenius))
        upper = up(lower * (1 + 0.9 * tolerance))  # a tenth of the tolerance is left for the roundings of both ends
        if gram.proves(upper):
            return lower, upper
        if deadline.passed:
            break
    return lower, _proved_above(gram, lower, 2 * tolerance)


def _proved_above(gram: Gram, lower: float, slack: float) -> float:
    """Return an upper end that is proved: `lower` and some slack, or the Frobenius norm."""
    start = max(lower, float(np.sqrt(np.max(np.diagonal(gram.lower)))))  # the longest column: never zero
    while start * (1 + slack) < gram.frobenius:
        if gram.proves(start * (1 + slack)):
            return up(start * (1 + slack))
        slack *= 2
    return gram.frobenius


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
        with blas_section():
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
