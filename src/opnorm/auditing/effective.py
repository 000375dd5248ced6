"""The change between what two layers apply: each of their operators is made by its own geometry, then subtracted."""

from math import prod, sqrt
from typing import Any

import numpy as np
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.auditing.lora import ROUNDING
from opnorm.bounds.brackets import MATRIX
from opnorm.bounds.certificates import up
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution, alike
from opnorm.operators.linear import BlockDiagonal, Diagonal
from opnorm.operators.sizes import Adjoint


def subtracted(tuned: Any, base: Any) -> LinearOperator:
    """Return the operator `tuned - base`, of two that store their numbers and use them in the same way.

    Raises:
        ValueError: When they do not, or are of a kind whose numbers are not known here.
    """
    if type(tuned) is type(base):
        if isinstance(tuned, Adjoint):
            return Adjoint(subtracted(tuned.operator, base.operator))  # type: ignore[arg-type]
        if isinstance(tuned, BlockDiagonal) and len(tuned.blocks) == len(base.blocks):
            return BlockDiagonal([subtracted(*pair) for pair in zip(tuned.blocks, base.blocks, strict=True)])
        if isinstance(tuned, Convolution) and _usage(tuned) == _usage(base):
            return alike(tuned, tuned.kernel - base.kernel)
        if isinstance(tuned, Diagonal) and tuned.shape == base.shape:
            return Diagonal(tuned.factors - base.factors)
        if isinstance(tuned, MATRIX) and tuned.shape == base.shape:
            return aslinearoperator(np.asarray(tuned.A) - np.asarray(base.A))
    raise ValueError("the layers use their weights in different ways: their difference has no bracket")


def rounding(tuned: LinearOperator, base: LinearOperator) -> float:
    """Return how far, as an operator, `tuned - base` may be from that of the numbers that the files stand for.

    It is for operators whose numbers were worked out of a weight and others, a scale or a variance.
    """
    return up(ROUNDING * (_length(tuned) + _length(base)))


def is_plain(geometry: Geometry, shape: tuple[int, ...]) -> bool:
    """Return whether the layer's numbers are the weight's own, each once: no scale, no variance, nothing of a file."""
    if geometry.operator is None:
        return False
    count = prod(shape)
    try:
        found = _numbers(geometry.operator(np.arange(count, dtype=np.float64).reshape(shape)))
    except Exception:  # a file's geometry raises anything; it is measured, and says so, later
        return False
    seen = np.zeros(count, bool)
    for array in found:
        if not ((array >= 0) & (array < count) & (array == np.floor(array))).all():
            return False
        seen[array.ravel().astype(np.int64)] = True
    return sum(array.size for array in found) == count and bool(seen.all())


def _numbers(operator: Any) -> list[Array]:
    """Return the arrays that an operator applies."""
    if isinstance(operator, Adjoint):
        return _numbers(operator.operator)
    if isinstance(operator, BlockDiagonal):
        return [array for block in operator.blocks for array in _numbers(block)]
    if isinstance(operator, Convolution):
        return [operator.kernel]
    if isinstance(operator, Diagonal):
        return [operator.factors]
    return [np.asarray(operator.A)] if isinstance(operator, MATRIX) else []


def _length(operator: Any) -> float:
    inner = operator.operator if isinstance(operator, Adjoint) else operator
    if isinstance(inner, Convolution):  # its norm is at most the root of the taps times its kernel's
        return float(blas.dnrm2(inner.kernel.ravel(order="K"))) * sqrt(prod(inner.kernel.shape[: inner.rank]))
    return float(blas.dnrm2(np.array([blas.dnrm2(array.ravel(order="K")) for array in _numbers(operator)])))


def _usage(operator: Convolution) -> tuple[object, ...]:
    size = getattr(operator, "input_shape", None)
    ways = operator.strides, operator.padding, operator.dilation_rate, operator.groups
    return (operator.kernel.shape, size, *ways)
