"""The norm of a weight as an interval that contains it."""

from collections.abc import Sequence
from contextlib import suppress
from functools import singledispatch
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.bounds.banded import narrowed
from opnorm.bounds.convolutions import bracket_convolution
from opnorm.bounds.deadlines import NEVER, Deadline, OutOfTimeError
from opnorm.bounds.matrices import SMALL, bracket_matrix
from opnorm.bounds.memory import Memory
from opnorm.bounds.parallel import parallel
from opnorm.bounds.products import can_be_written_out, norm_by_products, written_out
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array, check_tolerance, real_array, require, to_axes, to_axis
from opnorm.operators.convolution import Convolution
from opnorm.operators.layouts import kernel_axes, require_layout
from opnorm.operators.linear import BlockDiagonal, Diagonal, is_registered, linear_operator
from opnorm.operators.sizes import Adjoint

MATRIX_TOLERANCE = 1e-6  # reached at the price of one Cholesky factorization, whatever the matrix
CONVOLUTION_TOLERANCE = 1e-2  # cells of frequencies, and so time, grow with its inverse
_EXPLICIT_SIDE = 2048  # of a convolution's matrix: half a second for its Gram matrix and the proof
_EXPLICIT_WORK = 1e12  # multiplications that write it out: a minute
_PROOF = 2**28  # bytes, more than the proof of a matrix of `SMALL` entries takes beside it
MATRIX = type(aslinearoperator(np.zeros((1, 1))))  # SciPy gives the class of its matrix operators no public name


class _Ends(NamedTuple):
    lower: float
    upper: float


class Bounds(_Ends):
    """An interval that contains the truth: `lower <= norm <= upper`. An upper end of `inf` says: not bounded.

    Raises:
        ValueError: When `lower` is above `upper`, or either is no number: no norm lies between them.
    """

    __slots__ = ()

    def __new__(cls, lower: float, upper: float) -> "Bounds":
        """Return the interval."""
        if not lower <= upper:  # true of a NaN as well
            raise ValueError(f"Argument `lower` must be at most `upper`. Received: lower={lower}, upper={upper}")
        return super().__new__(cls, lower, upper)


def spectral_norm(
    x: Any, *, axis: int | tuple[int, ...] = -1, tolerance: float | None = None, layout: str | None = None
) -> Bounds:
    """Return `Bounds(lower, upper)` of the largest singular value of `x`, both ends proved in float64 arithmetic.

    Convolutions without `input_shape`, and those too big to write out, are bounded through their symbol, over every
    image size at once. An operator of unknown type that is too big to write out has `upper = inf`.

    Args:
        x: A matrix (array, tensor, variable, SciPy sparse), a kernel of more axes, which is read as the matrix of
            its axes `axis` against the others; a vector, whose norm is Euclidean; a built layer that
            `opnorm.linear_operator` knows; or a LinearOperator, `opnorm.Convolution` among them.
        axis: The output axes of a kernel; of a matrix either one gives the same.
        tolerance: Aim for `upper / lower - 1`: 1e-6 for matrices and 1e-2 for convolutions unless given; from 1e-15 to
            1e3.
        layout: The order of the axes of a convolution's kernel, in place of `axis`: "HWIO", as of Keras, or "OIHW", as
            of PyTorch; see `opnorm.Convolution`. A PyTorch tensor with more than two axes needs it, or an `axis` that
            is not the default.

    Raises:
        ValueError: When `x` is empty, complex, not finite or has no axes, a layer is not built, or an argument does not
            make sense.

    Example:
        >>> lower, upper = opnorm.spectral_norm([[3.0, 0.0], [4.0, 0.0]])
        >>> lower <= 5 <= upper < 5 * (1 + 1e-6)
        True

    Reference:
        S. M. Rump, "Verification of positive definiteness", BIT 46 (2006).
    """
    tolerance = None if tolerance is None else check_tolerance(tolerance)
    axis = to_axis("axis", axis)
    if is_registered(x):
        x = linear_operator(x)
    if hasattr(x, "toarray"):  # a sparse matrix
        x = aslinearoperator(x)
    if isinstance(x, LinearOperator):
        require(layout is None, "layout", "is for kernels in arrays, not for operators", layout)
        return Bounds(*bracket(x, tolerance))
    require_layout(x, layout if axis == -1 else axis, "x")
    array = _entries(x)
    outputs = axis if layout is None else _outputs(array, axis, layout)
    return Bounds(*bracket_matrix(_as_matrix(array, outputs), tolerance or MATRIX_TOLERANCE))


def _outputs(kernel: Array, axis: int | tuple[int, ...], layout: str) -> int:
    """Return the axis of the channels out of a kernel with a layout."""
    require(kernel.ndim > 2, "layout", "is for kernels with more than two axes", layout)
    require(axis in (-1, (-1,)), "axis", "must not be given with `layout`, which says where the outputs are", axis)
    return kernel_axes(layout, kernel.ndim)[-1]


def _entries(x: Any) -> Array:
    return real_array(x, "x", copy=False)


def _as_matrix(array: Array, axis: int | tuple[int, ...]) -> Array:
    if array.ndim == 0:
        raise ValueError(f"Argument `x` must be a vector, a matrix or a kernel. Received: a number, x={array}")
    outputs = to_axes("axis", axis, array.ndim)
    if array.ndim == 1:
        return array.reshape(-1, 1)
    last = np.moveaxis(array, outputs, range(-len(outputs), 0))
    return last.reshape(-1, int(np.prod([array.shape[i] for i in outputs])))


@singledispatch
def bracket(
    operator: LinearOperator, tolerance: float | None, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    """Return `(lower, upper)` around an operator's norm.

    Args:
        operator: Any LinearOperator.
        tolerance: Aim for `upper / lower - 1`; None: the default of its kind.
        deadline: After it the bracket may be wider than the tolerance asks, and is as true.
        memory: Likewise where a proof would take more; None: half of what the machine has free.
    """
    memory = memory or Memory()
    if can_be_written_out(operator.shape, memory):
        try:
            return _bracket_dense(written_out(operator, deadline), tolerance, deadline, memory)
        except OutOfTimeError:
            return 0.0, inf
    return norm_by_products(operator, deadline), inf


def _bracket_dense(
    matrix: Any, tolerance: float | None, deadline: Deadline, memory: Memory | None
) -> tuple[float, float]:
    return bracket_matrix(_as_matrix(_entries(matrix), -1), tolerance or MATRIX_TOLERANCE, deadline, memory)


def matrix_of(operator: LinearOperator) -> Array | None:
    """Return the matrix that SciPy's `aslinearoperator` made `operator` of, None for other operators."""
    return real_array(operator.A, "x") if isinstance(operator, MATRIX) else None


@bracket.register(MATRIX)
def _(
    operator: Any, tolerance: float | None, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    if not hasattr(operator.A, "toarray"):
        return _bracket_dense(operator.A, tolerance, deadline, memory)
    memory = memory or Memory()
    if memory.holds(8.0 * prod(operator.shape)):
        return _bracket_dense(operator.A.toarray(), tolerance, deadline, memory)
    return norm_by_products(operator, deadline), inf


@bracket.register
def _(
    operator: Adjoint, tolerance: float | None, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    return bracket(operator.operator, tolerance, deadline, memory)


@bracket.register
def _(
    operator: BlockDiagonal, tolerance: float | None, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    brackets = bracket_each(operator.blocks, tolerance, deadline, memory)
    return max(low for low, _ in brackets), max(high for _, high in brackets)


def bracket_each(
    operators: Sequence[LinearOperator], tolerance: float | None, deadline: Deadline, memory: Memory | None = None
) -> list[tuple[float, float]]:
    """Return the bracket of each of several operators: of small ones, which one thread of BLAS serves best, in threads.

    Args:
        operators: Any, each with arrays of its own.
        tolerance: As for one.
        deadline: Of all together.
        memory: Of all together, beside their own arrays.
    """
    memory = memory or Memory()
    if any(prod(operator.shape) > SMALL for operator in operators):
        return [bracket(operator, tolerance, deadline, memory) for operator in operators]
    with one_blas_thread() as threads:
        jobs = int(max(1, min(threads, len(operators), memory.limit / _PROOF)))
        share = Memory(memory.limit / jobs)
        found = parallel(lambda operator: bracket(operator, tolerance, deadline, share), operators, jobs)
    memory.refused = memory.refused or share.refused
    return found


@bracket.register
def _(
    operator: Diagonal, tolerance: float | None, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    largest = float(np.max(np.abs(operator.factors)))
    if 2**53 <= largest <= 2**64:  # an integer of 64 bits may have been rounded
        return float(np.nextafter(largest, 0.0)), float(np.nextafter(largest, np.inf))
    return largest, largest


@bracket.register
def _(
    operator: Convolution, tolerance: float | None, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    memory = memory or Memory()
    if is_written_out(operator, memory) and deadline.affords(operator.work * min(operator.shape)):
        with suppress(OutOfTimeError):
            return _bracket_dense(written_out(operator, deadline), tolerance, deadline, memory)
    found = bracket_convolution(operator, tolerance or CONVOLUTION_TOLERANCE, deadline, memory)
    return found if tolerance is None else narrowed(operator, found, tolerance, deadline, memory)


def is_written_out(operator: Convolution, memory: Memory) -> bool:
    """Return whether the convolution's bracket is that of its explicit matrix, if there is time."""
    small = operator.has_size and min(operator.shape) <= _EXPLICIT_SIDE
    return (
        small and can_be_written_out(operator.shape, memory) and operator.work * min(operator.shape) <= _EXPLICIT_WORK
    )
