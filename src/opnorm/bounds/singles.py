"""A bracket of a large matrix's norm with two thirds of the arithmetic in float32, proved as rigorously as in float64.

The Gram matrix in float32 proves that *few* singular values come near the largest one; those few are then settled in
float64, by their vectors, at the price of a few products. `docs/mathematics.md` has the theorem.
"""

from collections.abc import Iterator
from math import ceil, sqrt
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from opnorm.bounds import lapack
from opnorm.bounds.certificates import UNIT, Gram, frobenius_above, gamma, norm_below, up
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.forks import blas_section
from opnorm.checks import Array

Single = NDArray[np.float32]

LEAST = 2048  # the shorter side from which on it pays
_FINEST = 5e-7  # tolerance below which the vectors would have to be better than float32 makes them
_HALF = 2.0**-24  # the unit roundoff of float32
_TINY = 2.0**-126  # what float32 may lose of a product, where small numbers are flushed to zero
_CHUNK = 64  # terms that are added up in float32 at once ...
_CHUNKS = 8  # ... and so many of their sums, before they are added to what others gave: few roundings in a row
_PANEL = 256  # columns of the Gram matrix at a time: with their chunk they stay in the cache
_MOST = 32  # singular values that are settled in float64, at most
_STEPS = 20  # of Lanczos's basis, beside those
_ACCURACY = 5e-5  # of the vectors: their residuals count squared, over the tolerance
_WIDEST = 0.03  # share of the squared norm in which too many singular values are expected
_CROWDED = 0.8  # the mean of all squared singular values over the largest: from here on many are near it


class _Top(NamedTuple):
    """The leading right singular vectors, and what is proved of the matrix on their span, in float64.

    Args:
        vectors: (short, k), nearly orthonormal.
        lower: At most the norm of the matrix.
        above: At least the norm of the matrix on the span.
        leak: At least the norm of what the Gram matrix takes out of the span, of unit vectors in it.
        weight: At least the squared Frobenius norm of the vectors.
    """

    vectors: Array
    lower: float
    above: float
    leak: float
    weight: float


def bracket_in_single(
    tall: Array, tolerance: float, frobenius: float, deadline: Deadline
) -> tuple[float, float] | None:
    """Return a proved bracket `(lower, upper)` as narrow as `tolerance`, or None where this way leads to none.

    Args:
        tall: (rows, short), rows >= short, finite, the largest entry near 1.
        tolerance: Of `upper / lower - 1`.
        frobenius: At least the Frobenius norm of `tall`.
        deadline: OutOfTimeError is raised when it passes between two steps.
    """
    together = min(frobenius**2, _absolute_norm(tall))
    rows, short = tall.shape
    error = _gram_error(rows, short, together, frobenius)
    count = _count(tall, error, frobenius) if tolerance >= _FINEST else 0
    if not count:
        return None
    gram = _negative_gram(tall)
    vectors = _leading(gram, count, deadline)
    if vectors is None:
        return None
    top = _settle(tall, vectors, frobenius)
    upper = up(top.lower * (1 + 0.9 * tolerance))  # a tenth of the tolerance is left for the roundings of both ends
    e = _shift(top, upper, together, error)
    deadline.check()
    return (top.lower, upper) if e is not None and _completes(gram, top, upper**2 - e) else None


def _gram_error(rows: int, short: int, together: float, frobenius: float) -> float:
    """Return an upper bound of the norm of the Gram matrix's error; `together` bounds the norm of `|A|^T |A|`."""
    roundings = _CHUNK + _CHUNKS + -(-rows // (_CHUNK * _CHUNKS)) + 4
    lost = 4.0 * rows * short * _TINY * max(1.0, frobenius)
    return up(roundings * _HALF / (1 - roundings * _HALF) * together + lost)


def _count(A: Array, error: float, frobenius: float) -> int:
    """Return how many singular values to settle: more than a random matrix has near its largest; 0: too many."""
    v = A[int(np.argmax(np.abs(A[:, 0])))]
    square = 0.0
    for _ in range(3):
        with blas_section():
            image = A @ (v / max(float(np.linalg.norm(v)), _TINY))
            square, v = max(square, float(image @ image)), image @ A
    if not square > 0 or error > _WIDEST * square or frobenius**2 > _CROWDED * square * A.shape[1]:
        return 0
    return int(min(_MOST, 2 + ceil(0.2 * A.shape[1] * (4 * error / square) ** 1.5)))


def _absolute_norm(A: Array) -> float:
    """Return an upper bound of the norm of `|A|^T |A|`: for a positive x it is at most max((|A|^T |A| x) / x)."""
    x, room = np.ones(A.shape[1]), np.empty((_CHUNK, A.shape[1]))
    for _ in range(2):
        x = x / float(np.max(x))
        if not np.min(x) > 1e-200:  # what underflow takes of a product is nothing beside such a number
            return np.inf
        image = np.zeros(A.shape[1])
        for part in _parts(A, _CHUNK):
            block = np.abs(part, out=room[: len(part)])
            with blas_section():
                image += (block @ x) @ block
        bound, x = float(np.max(image / x)), image
    return up(bound * (1 + gamma(2 * sum(A.shape) + 8)))


def _parts(A: Any, size: int) -> Iterator[Any]:
    return (A[first : first + size] for first in range(0, len(A), size))


def _negative_gram(A: Array) -> Single:
    """Return the lower triangle of `-A^T A` in float32, in Fortran order; the rest is not to be read."""
    short = A.shape[1]
    above = np.zeros((short, short), np.float32)  # in C order the upper triangle lies where Fortran has the lower one
    rooms = np.empty((2, _PANEL * short), np.float32)
    for group in _parts(A, _CHUNK * _CHUNKS):
        rows = group.astype(np.float32)
        for first in range(0, short, _PANEL):
            last = min(first + _PANEL, short)
            total, product = rooms[:, : (last - first) * (short - first)].reshape(2, last - first, -1)
            _add_chunks(rows, first, last, total, product)
            above[first:last, first:] -= total
    return above.T


def _add_chunks(rows: Single, first: int, last: int, total: Single, product: Single) -> None:
    """Make `total` the product of the columns from `first` to `last` with those from `first` on, chunk by chunk."""
    total.fill(0)
    for part in _parts(rows, _CHUNK):
        with blas_section():
            np.matmul(part[:, first:last].T, part[:, first:], out=product)
        total += product


def _leading(gram: Single, count: int, deadline: Deadline) -> Array | None:
    """Return estimates of the eigenvectors of the least eigenvalues, orthonormal; None where they do not converge."""
    short = len(gram)
    scale = np.float32(1 / -float(np.min(np.diagonal(gram))))  # ARPACK takes eigenvalues far below 1 for zero

    def product(v: Single) -> Single:
        deadline.check()
        return cast(Single, lapack.times(gram, v.ravel()) * scale)

    operator: Any = LinearOperator((short, short), matvec=product, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(short).astype(np.float32)
    try:
        with blas_section():  # ARPACK multiplies as well
            found = eigsh(operator, k=count, which="SA", tol=_ACCURACY, v0=start, ncv=count + _STEPS, maxiter=20)[1]
            return np.asarray(np.linalg.qr(found.astype(np.float64))[0])
    except ArpackError:
        return None


def _settle(A: Array, vectors: Array, frobenius: float) -> _Top:
    """Return what is proved of `A` on the span of `vectors`, every rounding counted."""
    (rows, short), count = A.shape, vectors.shape[1]
    with blas_section():
        images = A @ vectors
        square = images.T @ images
        residual = float(np.linalg.norm((images.T @ A).T - vectors @ square)) * (1 + gamma(2 * vectors.size))
        gap = float(np.linalg.norm(vectors.T @ vectors - np.eye(count)))
        norm = up(float(np.linalg.norm(images, 2)) * (1 + 1e-9))
        lead = vectors @ np.linalg.eigh(square)[1][:, -1]
    length, weight = frobenius_above(images), frobenius_above(vectors) ** 2
    norm = norm if Gram.of(images).proves(norm) else length
    stretch = 1 / sqrt(1 - up(gap + gamma(2 * short) * weight))  # of coefficients, against the vector that they make
    image_error = gamma(2 * short) * frobenius * sqrt(weight)
    rounding = gamma(2 * rows + count) * (frobenius + sqrt(weight) * length) * length + frobenius * image_error
    above, leak = up((norm + image_error) * stretch), up((residual + rounding) * stretch)
    return _Top(vectors, norm_below(A, lead, frobenius), above, leak, up(weight))


def _shift(top: _Top, tau: float, together: float, gram_error: float) -> float | None:
    """Return the shift that makes a completed factorization a proof of `tau`, None where it would be too large."""
    room = tau**2 * (1 - 2.0**-40) - top.above**2 * (1 + 2.0**-40)
    if room <= 0:
        return None
    short, count = top.vectors.shape
    trace = (short + top.weight) * tau**2
    cholesky_error = 2 * gamma(short + 3) * trace
    sums = gamma(count + 8) * (2 * together + tau**2 * (1 + top.weight))
    e = up(top.leak**2 / room + gram_error + cholesky_error + sums + 8 * UNIT * tau**2)
    return e if e < _WIDEST * tau**2 else None


def _completes(gram: Single, top: _Top, diagonal: float) -> bool:
    """Return whether the factorization of `diagonal I + gram + lower^2 vectors vectors^T` runs to its end."""
    shifted = gram.astype(np.float64, order="F")
    shifted[np.diag_indices(len(gram))] += diagonal
    lapack.add_squares(shifted, top.lower**2, top.vectors)
    return lapack.is_positive_definite(shifted)
