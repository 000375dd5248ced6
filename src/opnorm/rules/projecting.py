"""A projection of matrices applied to kernels, in float32 or float64."""

from collections.abc import Callable

from opnorm.backends import Tensor, of
from opnorm.iterations.matrices import from_matrix, to_matrix
from opnorm.rules.norms import Operator


def projected(kernel: Tensor, operator: Operator, nearest: Callable[..., Tensor], *args: float) -> Tensor:
    """Return the kernel with each of its blocks replaced by `nearest(blocks, *args)`, of `(groups, m, n)`."""
    changed: Tensor = of(kernel).compiled(_projected)((operator, nearest, args), kernel)
    return changed


def _projected(how: tuple[Operator, Callable[..., Tensor], tuple[float, ...]], kernel: Tensor) -> Tensor:
    xp, (operator, nearest, args) = of(kernel), how
    blocks = xp.transpose(to_matrix(wide(kernel), operator.axis, operator.groups), (1, 0, 2))
    matrix = xp.transpose(nearest(blocks, *args), (1, 0, 2))
    return xp.cast(from_matrix(matrix, xp.shape(kernel), operator.axis), xp.dtype(kernel))


def wide(kernel: Tensor) -> Tensor:
    """Return the kernel in float32, or as it is in float64."""
    xp = of(kernel)
    return xp.cast(kernel, "float64" if xp.dtype(kernel) == "float64" else "float32")
