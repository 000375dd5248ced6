"""Singular values for a plot: all of them are computed, a few dozen kept, and nothing where that takes long."""

import numpy as np
from scipy.linalg import svdvals
from scipy.sparse.linalg import LinearOperator

from opnorm.bounds.brackets import MATRIX
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import Diagonal
from opnorm.operators.sizes import Adjoint

_WORK = 4e9  # multiplications: a second on two cores
_POINTS = 64  # that a line in a plot needs


def singular_values(operator: LinearOperator) -> Array:
    """Return the singular values of a matrix, or of a convolution's kernel as a matrix, largest first.

    Empty for other operators, for convolutions with groups, and where computing them would take more than a second.
    """
    inner = operator.operator if isinstance(operator, Adjoint) else operator
    if isinstance(inner, Diagonal):
        return np.sort(np.abs(inner.factors))[::-1]
    if isinstance(inner, MATRIX):
        return _svdvals(np.asarray(inner.A))
    if isinstance(inner, Convolution) and inner.groups == 1:
        kernel = inner.kernel if inner is operator else np.moveaxis(inner.kernel, -2, -1)
        return _svdvals(kernel.reshape(-1, kernel.shape[-1]))
    return np.zeros(0)


def _svdvals(matrix: Array) -> Array:
    if 2 * matrix.size * min(matrix.shape) > _WORK:
        return np.zeros(0)
    return np.asarray(svdvals(matrix))


def sampled(values: Array) -> tuple[tuple[int, float], ...]:
    """Return (index from 1, value) of at most a few dozen values, evenly spread over a logarithmic axis."""
    if len(values) == 0:
        return ()
    places = np.unique(np.round(np.geomspace(1, len(values), _POINTS)).astype(int))
    return tuple((int(place), float(values[place - 1])) for place in places)
