"""The norms of one operator: its own, and that of its kernel as a matrix, with the name of the method."""

from math import ceil, prod, sqrt
from typing import NamedTuple

import numpy as np
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator

from opnorm.bounds.brackets import CONVOLUTION_TOLERANCE, MATRIX, MATRIX_TOLERANCE, bracket, is_written_out
from opnorm.bounds.certificates import up
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal, Diagonal
from opnorm.operators.sizes import Adjoint

_CHOLESKY = "Cholesky certificate"
_USABLE = 1e-3  # a matrix norm wider than that, for want of time, is not worth a number


class Norms(NamedTuple):
    """What is known of an operator's norm."""

    lower: float
    upper: float
    method: str
    matrix: tuple[float, float] | None = None  # the bracket of the kernel as a matrix
    ratio: float = 1.0  # inputs / outputs
    limited: bool = False  # wider than asked for, for want of time


def norms(operator: LinearOperator, tolerance: float | None = None, time_limit: float | None = None) -> Norms:
    """Return the norms of `operator`.

    Args:
        operator: Any LinearOperator, finite.
        tolerance: Aim for `upper / lower - 1`; None: 1e-6 for matrices, 1e-2 for convolutions.
        time_limit: Seconds, after which the bracket is what is known by then.
    """
    deadline = Deadline.after(time_limit)
    inner = operator.operator if isinstance(operator, Adjoint) else operator
    if isinstance(inner, Convolution):
        return _convolution(inner, tolerance, deadline, adjoint=isinstance(operator, Adjoint))
    lower, upper = bracket(operator, tolerance, deadline)
    limited = time_limit is not None and upper > lower * (1 + 2 * (tolerance or MATRIX_TOLERANCE))
    rows, columns = operator.shape
    usable = upper <= lower * (1 + _USABLE)
    method = "Frobenius or row and column sums (time limit)" if limited else _method(operator)
    return Norms(lower, upper, method, (lower, upper) if usable else None, columns / rows, limited)


def frobenius_norm(operator: LinearOperator) -> float | None:
    """Return the Frobenius norm of the matrix that `Norms.matrix` brackets, None where it is not stored."""
    inner = operator.operator if isinstance(operator, Adjoint) else operator
    if isinstance(inner, BlockDiagonal):
        parts = [frobenius_norm(block) for block in inner.blocks]
        return None if None in parts else _length(np.array(parts))
    if isinstance(inner, Convolution):
        return _length(inner.kernel)
    if isinstance(inner, Diagonal):
        return _length(inner.factors)
    return _length(np.asarray(inner.A)) if isinstance(inner, MATRIX) else None


def _length(array: Array) -> float:
    return float(blas.dnrm2(array.ravel(order="K")))  # unlike a sum of squares it does not overflow


def _method(operator: LinearOperator) -> str:
    if isinstance(operator, Diagonal):
        return "exact diagonal"
    if isinstance(operator, BlockDiagonal):
        return f"{_CHOLESKY}, the largest of {len(operator.blocks)} blocks"
    return _CHOLESKY if isinstance(operator, MATRIX) else f"{_CHOLESKY} where it can be written out"


def _convolution(operator: Convolution, tolerance: float | None, deadline: Deadline, *, adjoint: bool) -> Norms:
    """Return the norms of a convolution, or of its adjoint; the two brackets narrow each other."""
    stacked = _matrix_bracket(operator, deadline, adjoint=False)
    matrix = _matrix_bracket(operator, deadline, adjoint=True) if adjoint else stacked
    lower, upper = bracket(operator, tolerance, deadline)
    if not operator.has_size:
        lower = max(lower, stacked[0])  # the mean of ||M(w) x||^2 over all frequencies is ||W x||^2
    crude = up(sqrt(_overlap(operator)) * stacked[1])
    limited = deadline.passed and min(upper, crude) > lower * (1 + 2 * (tolerance or CONVOLUTION_TOLERANCE))
    method = _limited_way(crude < upper) if limited else _way(operator)
    usable = matrix[1] <= matrix[0] * (1 + _USABLE)
    ratio = _ratio(operator)
    return Norms(lower, min(upper, crude), method, matrix if usable else None, 1 / ratio if adjoint else ratio, limited)


def _way(operator: Convolution) -> str:
    if is_written_out(operator):
        return f"{_CHOLESKY} of the explicit matrix"
    return _CHOLESKY if prod(operator.kernel.shape[:-2]) == 1 else "frequency cells, certified"


def _limited_way(by_matrix: bool) -> str:
    way = "matrix norm times the square root of the overlap" if by_matrix else "frequency cells, larger ones"
    return f"{way} (time limit)"


def _overlap(operator: Convolution) -> int:
    """Return in how many windows a pixel is seen at most: `||A||` is at most its root times the matrix norm."""
    steps = zip(operator.kernel.shape[:-2], operator.strides, operator.dilation_rate, strict=True)
    return prod(ceil(k / s) if d == 1 else k for k, s, d in steps)


def _ratio(operator: Convolution) -> float:
    """Return inputs / outputs; of a large image where the size is open."""
    if operator.has_size:
        return operator.shape[1] / operator.shape[0]
    return prod(operator.strides) * operator.channels[0] / operator.channels[1]


def _matrix_bracket(operator: Convolution, deadline: Deadline, *, adjoint: bool) -> tuple[float, float]:
    """Return the bracket of the kernel's matrix (-1, channels out), the largest over groups."""
    brackets = [bracket_matrix(_reshaped(block, adjoint), MATRIX_TOLERANCE, deadline) for block in operator.blocks]
    return max(low for low, _ in brackets), max(high for _, high in brackets)


def _reshaped(block: Array, adjoint: bool) -> Array:
    last = np.moveaxis(block, -2, -1) if adjoint else block
    return np.ascontiguousarray(last.reshape(-1, last.shape[-1]))
