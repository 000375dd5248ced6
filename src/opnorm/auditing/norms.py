"""The norms of one operator: its own, and that of its kernel as a matrix, with the name of the method."""

from math import prod, sqrt
from typing import NamedTuple

import numpy as np
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator

from opnorm.bounds.brackets import (
    CONVOLUTION_TOLERANCE,
    MATRIX,
    MATRIX_TOLERANCE,
    bracket,
    bracket_each,
    is_written_out,
)
from opnorm.bounds.certificates import up
from opnorm.bounds.convolutions import overlap
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.matrices import bracket_blocks
from opnorm.bounds.memory import Memory
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal, Diagonal
from opnorm.operators.sizes import Adjoint

_CHOLESKY = "Cholesky certificate"
_BY_MATRIX = "matrix norm times the square root of the overlap"
_USABLE = 1e-3  # a matrix norm wider than that, for want of time, is not worth a number


class Norms(NamedTuple):
    """What is known of an operator's norm."""

    lower: float
    upper: float
    method: str
    matrix: tuple[float, float] | None = None  # the bracket of the kernel as a matrix
    ratio: float = 1.0  # inputs / outputs
    limited: bool = False  # wider than asked for, for want of time
    crowded: bool = False  # likewise, for want of memory
    blocks: tuple[tuple[float, float], ...] = ()  # the bracket of each, where the operator is several

    @property
    def limits(self) -> tuple[str, ...]:
        """The names of the limits that made the bracket wider."""
        return _limits(self.limited, self.crowded)


def norms(
    operator: LinearOperator,
    tolerance: float | None = None,
    time_limit: float | None = None,
    memory_limit: float | None = None,
) -> Norms:
    """Return the norms of `operator`.

    Args:
        operator: Any LinearOperator, finite.
        tolerance: Aim for `upper / lower - 1`; None: 1e-6 for matrices, 1e-2 for convolutions.
        time_limit: Seconds, after which the bracket is what is known by then.
        memory_limit: Bytes that the proofs may take beside the operator's own numbers; where they would take more the
            bracket is a cruder one. None: half of what the machine has free.

    Raises:
        MemoryError: When not even a cruder bracket fits.
    """
    deadline, memory = Deadline.after(time_limit), Memory(memory_limit)
    inner = operator.operator if isinstance(operator, Adjoint) else operator
    if isinstance(inner, Convolution):
        return _convolution(inner, tolerance, deadline, memory, adjoint=isinstance(operator, Adjoint))
    several = operator.blocks if isinstance(operator, BlockDiagonal) else ()
    blocks = tuple(bracket_each(several or (operator,), tolerance, deadline, memory))
    lower, upper = max(low for low, _ in blocks), max(high for _, high in blocks)
    wide = upper > lower * (1 + 2 * (tolerance or MATRIX_TOLERANCE))
    limited, crowded = wide and time_limit is not None and not memory.refused, wide and memory.refused
    limits = _limits(limited, crowded)
    rows, columns = operator.shape
    usable = upper <= lower * (1 + _USABLE)
    method = f"Frobenius or row and column sums ({limits[0]})" if limits else _method(operator)
    matrix = (lower, upper) if usable else None
    return Norms(lower, upper, method, matrix, columns / rows, limited, crowded, blocks if several else ())


def _limits(limited: bool, crowded: bool) -> tuple[str, ...]:
    return tuple(name for name, holds in (("time limit", limited), ("memory limit", crowded)) if holds)


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


def _convolution(
    operator: Convolution, tolerance: float | None, deadline: Deadline, memory: Memory, *, adjoint: bool
) -> Norms:
    """Return the norms of a convolution, or of its adjoint; the two brackets narrow each other."""
    memory.require(2.0 * operator.kernel.nbytes, "a copy of the kernel")
    stacked = _matrix_bracket(operator, deadline, memory, adjoint=False)
    matrix = _matrix_bracket(operator, deadline, memory, adjoint=True) if adjoint else stacked
    lower, upper = bracket(operator, tolerance, deadline, memory)
    if not operator.has_size:
        lower = max(lower, stacked[0])  # the mean of ||M(w) x||^2 over all frequencies is ||W x||^2
    crude = up(sqrt(overlap(operator)) * stacked[1])
    wide = min(upper, crude) > lower * (1 + 2 * (tolerance or CONVOLUTION_TOLERANCE))
    limited, crowded = wide and deadline.passed, wide and memory.refused
    limits = _limits(limited, crowded)
    method = _limited_way(crude <= upper, limits[0]) if limits else _way(operator, wide and crude <= upper, memory)
    usable = matrix[1] <= matrix[0] * (1 + _USABLE)
    ratio = _ratio(operator)
    return Norms(
        lower, min(upper, crude), method, matrix if usable else None, 1 / ratio if adjoint else ratio, limited, crowded
    )


def _way(operator: Convolution, by_matrix: bool, memory: Memory) -> str:
    if is_written_out(operator, memory):
        return f"{_CHOLESKY} of the explicit matrix"
    if overlap(operator) == 1:
        return _CHOLESKY
    return _BY_MATRIX if by_matrix else "frequency cells, certified"


def _limited_way(by_matrix: bool, limit: str) -> str:
    return f"{_BY_MATRIX if by_matrix else 'frequency cells, larger ones'} ({limit})"


def _ratio(operator: Convolution) -> float:
    """Return inputs / outputs; of a large image where the size is open."""
    if operator.has_size:
        return operator.shape[1] / operator.shape[0]
    return prod(operator.strides) * operator.channels[0] / operator.channels[1]


def _matrix_bracket(operator: Convolution, deadline: Deadline, memory: Memory, *, adjoint: bool) -> tuple[float, float]:
    """Return the bracket of the kernel's matrix (-1, channels out), the largest over groups."""
    blocks = np.moveaxis(operator.blocks, -2, -1) if adjoint else operator.blocks
    windows = np.ascontiguousarray(blocks).reshape(len(blocks), -1, blocks.shape[-1])
    return bracket_blocks(windows, MATRIX_TOLERANCE, deadline, memory)
