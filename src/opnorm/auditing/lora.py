"""Products of adapters in float64 with bounds of their rounding errors, and the norm of a product of two matrices."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.linalg import blas, qr

from opnorm.bounds.brackets import MATRIX_TOLERANCE
from opnorm.bounds.certificates import down, gamma, up
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checks import Array

ROUNDING = 2.0**-48  # relative, of an entry that numbers of a file were worked into: a few operations
_HOUSEHOLDER = 20  # covers the small constant in the backward error of a QR factorization, gamma(c m n)


@dataclass(frozen=True)
class Product:
    """An array computed in float64, and how far, in the Frobenius norm, the exact one may be."""

    values: Array
    error: float = 0.0

    def __matmul__(self, other: "Product") -> "Product":
        values = self.values @ other.values
        return Product(values, up(gamma(self.values.shape[-1] + 2) * size(self) * size(other) + _carried(self, other)))

    def __mul__(self, other: "Product") -> "Product":
        """Return the product entry by entry."""
        return Product(self.values * other.values, _each(self, other))

    def kron(self, other: "Product") -> "Product":
        """Return Kronecker's product."""
        return Product(np.asarray(np.kron(self.values, other.values), np.float64), _each(self, other))

    def times(self, factor: float) -> "Product":
        """Return the array times a number, which is itself rounded once."""
        return Product(self.values * factor, up(abs(factor) * (self.error + gamma(3) * size(self))))

    def reshape(self, *shape: int) -> "Product":
        """Return the same entries in another shape."""
        return Product(self.values.reshape(shape), self.error)

    def plus(self, other: Array, error: float = 0.0) -> "Product":
        """Return the sum with an array, which is exact or may be `error` away from what it stands for."""
        values = self.values + other
        return Product(values, up(self.error + error + gamma(2) * _length(values)))


def decoded(values: Array) -> Product:
    """Return an array that was worked out of codes and their scales: each entry by a few operations in float64."""
    return Product(values, up(ROUNDING * _length(values)))


def size(product: Product) -> float:
    """Return an upper bound of the exact array's Frobenius norm."""
    return up(_length(product.values) * (1 + 1e-10) + product.error)  # dnrm2 errs by far less


def _length(array: Array) -> float:
    return float(blas.dnrm2(np.ascontiguousarray(array).ravel()))


def _carried(one: Product, other: Product) -> float:
    return one.error * size(other) + size(one) * other.error


def _each(one: Product, other: Product) -> float:
    """Return the error of a product in which every entry is one product of two entries."""
    return up(gamma(2) * size(one) * size(other) + _carried(one, other))


def directed(weight: Product, magnitude: Array) -> Product:
    """Return the matrix with its rows scaled to the norms `magnitude`: DoRA."""
    matrix = weight.values
    if magnitude.size != len(matrix):
        raise ValueError(f"a magnitude of the shape {magnitude.shape} does not fit {len(matrix)} rows")
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros: its reason is the NaN
        norms = np.sqrt(np.sum(matrix**2, axis=1))
        values = (magnitude.ravel() / norms)[:, None] * matrix
        errors = np.abs(magnitude.ravel()) * (2 * weight.error / norms + gamma(matrix.shape[1] + 8))
    return Product(values, up(_length(errors) * (1 + 1e-10)))


def bracket_product(B: Array, A: Array) -> tuple[float, float]:
    """Return `(lower, upper)` around `||B A||`, proved, from a matrix of the size of the rank.

    With B = Q R and A^T = P S, both by Householder's method, `||B A|| = ||R S^T||`. The rounding errors of the
    factorizations are at most gamma(c m n) times the Frobenius norms (Higham, theorem 19.4), and widen the bracket.

    Args:
        B: (outputs, rank).
        A: (rank, inputs).
    """
    if min(len(B), A.shape[1]) <= len(A):
        product = Product(B) @ Product(A)
        return widened(bracket_matrix(product.values, MATRIX_TOLERANCE), product.error, 1)
    R, S = qr(B, mode="r")[0][: len(A)], qr(A.T, mode="r")[0][: len(A)]
    lower, upper = bracket_matrix(R @ S.T, MATRIX_TOLERANCE)
    sizes = float(blas.dnrm2(B.ravel())) * float(blas.dnrm2(A.ravel()))
    error = 3 * gamma(_HOUSEHOLDER * (B.size + A.size)) * sizes
    return down(lower - error) if lower > error else 0.0, up(upper + error)


def widened(bracket: tuple[float, float], error: float, taps: int) -> tuple[float, float]:
    """Return the bracket of the exact operator, when that of a computed kernel with so many taps is known."""
    reach = up(sqrt(taps) * error)  # a convolution's norm is at most that times the Frobenius norm of its kernel
    return max(0.0, down(bracket[0] - reach)), up(bracket[1] + reach)
