"""The norm of a kernel between two proved numbers."""

from math import nan

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor

from opnorm.bounds.brackets import Bounds, spectral_norm
from opnorm.checks import Array
from opnorm.iterations.matrices import to_matrix
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal
from opnorm.rules import Operator


def bounds_of(meaning: Operator, kernel: Tensor) -> Bounds:
    """Return the norm of a kernel, as the rules read it, between two proved numbers; nan if it is not finite."""
    array = kernel.detach().cpu().double().numpy()
    return spectral_norm(operator_of(meaning, array)) if np.all(np.isfinite(array)) else Bounds(nan, nan)


def operator_of(meaning: Operator, kernel: Array) -> LinearOperator:
    """Return the operator that `meaning` makes of a kernel, as the rules read it."""
    if meaning.operator == "convolution":
        return Convolution(kernel, strides=meaning.strides, groups=meaning.groups)
    blocks = to_matrix(kernel, meaning.axis, meaning.groups).swapaxes(0, 1)  # (groups, in, out)
    several = [aslinearoperator(block.T) for block in blocks]
    return several[0] if len(several) == 1 else BlockDiagonal(several)
