"""Proofs by Cholesky that a matrix has spectral norm at most tau, valid in floating-point arithmetic.

If the floating-point Cholesky factorization of `(tau**2 - e) I - fl(A* A)` runs to completion, then `||A|| <= tau`.
The shift `e` pays for every rounding error: those of the Gram matrix and of the factorization (`docs/mathematics.md`).

Reference:
    S. M. Rump, "Verification of positive definiteness", BIT 46 (2006).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds import lapack
from opnorm.bounds.forks import blas_section
from opnorm.bounds.lapack import Matrices
from opnorm.checks import Array

UNIT = 2.0**-53  # the unit roundoff of float64
_FEW = 2.0**-40  # covers the roundings of the dozen scalar operations that make a shift or a bound


def gamma(count: float) -> float:
    """Return Higham's gamma: the relative error of `count` consecutive operations in float64 is at most this."""
    return count * UNIT / (1 - count * UNIT)


def up(value: float) -> float:
    """Return a number larger than `value` by more than a few scalar roundings."""
    return value * (1 + _FEW)


def down(value: float) -> float:
    """Return a number smaller than the positive `value` by more than a few scalar roundings; never negative."""
    return max(value * (1 - _FEW), 0.0)


def frobenius_above(A: Matrices) -> float:
    """Return an upper bound of the Frobenius norm of `A`, entries of magnitude near 1, to a few roundings."""
    with blas_section():
        return up(float(np.linalg.norm(A)) * (1 + gamma(2 * A.size)))


def shift(tau: float, rows: int, short: int, frobenius: float, *, is_complex: bool) -> float:
    """Return the `e` that makes a completed Cholesky factorization of `(tau**2 - e) I - fl(A* A)` a proof.

    Args:
        tau: The norm to prove.
        rows: Length of the inner products in `A* A`.
        short: Order of the Gram matrix.
        frobenius: At least the Frobenius norm of `A`.
        is_complex: Complex products are two real ones each, and their errors add up to sqrt(2) times as much.
    """
    width, factor = (2, 1.5) if is_complex else (1, 1.0)
    gram_error = gamma(width * rows + 2) * frobenius**2
    # Twice the textbook constant: a BLAS may multiply by a rounded reciprocal where the analysis divides.
    cholesky_error = 2 * gamma(width * (short + 3)) * short * tau**2
    return up(factor * (gram_error + cholesky_error) + 8 * UNIT * tau**2)


@dataclass(frozen=True)
class Gram:
    """The short Gram matrix of one matrix, kept to try several bounds against it.

    Args:
        lower: Its lower triangle, Fortran order, (short, short); what lies above the diagonal is not read.
        rows: The longer side of the matrix.
        frobenius: At least the matrix's Frobenius norm.
    """

    lower: Matrices
    rows: int
    frobenius: float

    @classmethod
    def of(cls, A: Matrices) -> "Gram":
        """Return the Gram matrix on the short side of `A` (2-D, largest entry near 1)."""
        # A C-ordered A is Fortran's transpose: hand over whichever view needs no copy.
        columns = A if A.shape[0] >= A.shape[1] else A.T
        return cls(lapack.gram(columns), columns.shape[0], frobenius_above(A))

    def proves(self, tau: float) -> bool:
        """Return whether `||A|| <= tau` is proved; False means nothing."""
        short = self.lower.shape[0]
        e = shift(tau, self.rows, short, self.frobenius, is_complex=np.iscomplexobj(self.lower))
        if not tau**2 > e:
            return False
        shifted = np.negative(self.lower, order="F")
        shifted[np.diag_indices(short)] += tau**2 - e
        return lapack.is_positive_definite(shifted)


def proved(matrices: Matrices, taus: Array) -> NDArray[np.bool_]:
    """Return for each matrix of a stack whether its norm is proved to be at most its `tau`.

    Args:
        matrices: (count, rows, columns), largest entries near 1.
        taus: (count,).
    """
    if min(matrices.shape[1:]) > 32:  # from here on LAPACK's own time hides the loop's
        return np.array([Gram.of(A).proves(tau) for A, tau in zip(matrices, taus, strict=True)], dtype=bool)
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.transpose(0, 2, 1)
    grams = np.matmul(tall.conj().transpose(0, 2, 1), tall)
    return _proved_small(grams, tall.shape[1], _frobenius_stack(tall), taus)


def _frobenius_stack(matrices: Matrices) -> Array:
    squares = np.sum(np.square(matrices.real) + np.square(matrices.imag), axis=(1, 2))
    return np.asarray(np.sqrt(squares) * ((1 + gamma(matrices[0].size)) * (1 + _FEW)))


def _proved_small(grams: Matrices, rows: int, frobenius: Array, taus: Array) -> NDArray[np.bool_]:
    short = grams.shape[1]
    complex_ = np.iscomplexobj(grams)
    shifts = np.array([shift(t, rows, short, f, is_complex=complex_) for t, f in zip(taus, frobenius, strict=True)])
    diagonal = taus**2 - shifts
    shifted = -grams
    shifted[:, np.arange(short), np.arange(short)] += diagonal[:, None]
    result = diagonal > 0
    result[result] = _completes(shifted[result])
    return np.asarray(result)


def _completes(stack: Matrices) -> NDArray[np.bool_]:
    """Return for each matrix whether its Cholesky factorization completes, by halving the stacks that do not."""
    if len(stack) == 0:
        return np.zeros(0, dtype=bool)
    try:
        np.linalg.cholesky(stack)
    except np.linalg.LinAlgError:
        half = len(stack) // 2
        if half == 0:
            return np.zeros(1, dtype=bool)
        return np.append(_completes(stack[:half]), _completes(stack[half:]))
    return np.ones(len(stack), dtype=bool)


def norm_below(A: Matrices, v: Matrices, frobenius: float) -> float:
    """Return a proved lower bound of `||A||`: `||A v|| / ||v||` less every rounding error.

    Args:
        A: (m, n), largest entry near 1.
        v: (n,), of norm near 1.
        frobenius: At least the Frobenius norm of `A`.
    """
    with blas_section():
        length = float(np.linalg.norm(v)) * (1 + gamma(2 * v.size + 8))
        image = float(np.linalg.norm(A @ v)) * (1 - gamma(2 * A.shape[0] + 8))
    return down(image / length - 1.5 * gamma(2 * v.size + 8) * frobenius)
