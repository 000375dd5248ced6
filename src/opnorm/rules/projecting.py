"""A projection of matrices applied to kernels, in float32 or float64."""

from collections.abc import Callable

from opnorm.backends import Tensor, of
from opnorm.iterations.matrices import from_matrix, to_matrix
from opnorm.rules.norms import Operator
from opnorm.rules.targets import levelled


def projected(
    kernel: Tensor, operator: Operator, nearest: Callable[..., Tensor], *args: float, level: Tensor = None
) -> Tensor:
    """Return the kernel with each of its blocks replaced by `nearest(blocks, *args)`, of `(groups, m, n)`.

    The first of the `args` is multiplied by the `level`, if there is one.
    """
    changed: Tensor = of(kernel).compiled(_projected)((operator, nearest, args), (kernel, level))
    return changed


def _projected(
    how: tuple[Operator, Callable[..., Tensor], tuple[float, ...]], tensors: tuple[Tensor, Tensor]
) -> Tensor:
    (operator, nearest, args), (kernel, level) = how, tensors
    xp = of(kernel)
    args = args if level is None else (levelled(args[0], level, wide(kernel)), *args[1:])
    blocks = xp.transpose(to_matrix(wide(kernel), operator.axis, operator.groups), (1, 0, 2))
    matrix = xp.transpose(nearest(blocks, *args), (1, 0, 2))
    return xp.cast(from_matrix(matrix, xp.shape(kernel), operator.axis), xp.dtype(kernel))


def wide(kernel: Tensor) -> Tensor:
    """Return the kernel in float32, or as it is in float64."""
    xp = of(kernel)
    return xp.cast(kernel, "float64" if xp.dtype(kernel) == "float64" else "float32")
