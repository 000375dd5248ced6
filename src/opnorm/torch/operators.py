"""What PyTorch's modules multiply their inputs with: the registrations behind `linear_operator(module)`.

`opnorm.operators.linear` imports this for the first module that it is handed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn

from opnorm.checks import Array, require, to_flag
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal, Diagonal, has_own, linear_operator
from opnorm.operators.sizes import Adjoint
from opnorm.torch.geometry import KernelGeometry
from opnorm.torch.proofs import operator_of
from opnorm.torch.sites import Kernel, find_kernels

Maps = dict[str, LinearOperator]


def values_of(tensor: torch.Tensor) -> Array:
    """Return a tensor's numbers in float64."""
    array: Array = tensor.detach().cpu().double().numpy()
    return array


def geometric(geometry: KernelGeometry, kernel: Array) -> LinearOperator:
    """Return the operator that a module makes of its kernel: blocks, a matrix, a convolution for every image size."""
    operator = "matrix" if geometry.strides is None else "convolution"
    view = geometry.view(torch.from_numpy(kernel), operator).numpy()
    return operator_of(geometry.operator(operator), view)


def require_zeros(module: Any) -> None:
    """Raise for a convolution whose padding repeats pixels."""
    mode = getattr(module, "padding_mode", "zeros")
    must = "must pad with zeros: other paddings repeat pixels, and the bound for zeros does not hold for them"
    require(mode == "zeros", "module", must, f"{module} with padding_mode={mode!r}")


def maps_of(module: nn.Module, *, gates: bool = False) -> Maps:
    """Return every linear map inside a module by its kernel's name; matrices that share a parameter are numbered.

    Args:
        module: A `torch.nn.Module`.
        gates: Split the kernels of recurrences into their gates, those of attention into its heads.

    Raises:
        TypeError: When there is none.
    """
    to_flag("gates", gates)
    found = [one for one in find_kernels(module) if isinstance(one, Kernel)]
    maps = dict(pair for kernel in found for pair in _named(kernel, gates))
    if not maps:
        raise TypeError(_unknown(module))
    return maps


def the_map_of(module: nn.Module) -> LinearOperator:
    """Return the one map of a type that only `opnorm.torch.kernels` knows; raise for any other module."""
    found = find_kernels(module)
    own = [one for one in found if isinstance(one, Kernel) and one.module is module]
    if len(found) == len(own) == 1 and not isinstance(module, nn.Bilinear):
        return geometric(own[0].geometry, values_of(own[0].tensor))
    names = ", ".join(one.path for one in found if isinstance(one, Kernel))
    if not names:
        raise TypeError(_unknown(module))
    raise ValueError(
        f"Argument `layer` must be one linear map; {type(module).__name__} has the kernels {names}. Use "
        f"`opnorm.linear_operators(layer)`. Received: {module!r}"
    )


def _unknown(module: nn.Module) -> str:
    kind = type(module)
    return (
        "Argument `layer` must be of a type that was registered: opnorm does not know the kernels of "
        f"{kind.__module__}.{kind.__qualname__}. Register their geometry, `opnorm.torch.kernels.register`, or a "
        f"function of the module that returns a LinearOperator: `opnorm.linear_operator.register({kind.__name__}, "
        f"function)`. Received: {module!r}"
    )


def _named(kernel: Kernel, gates: bool) -> Iterator[tuple[str, LinearOperator]]:
    if has_own(type(kernel.module)):
        yield kernel.path, linear_operator(kernel.module)
        return
    geometry = kernel.geometry.asked(gates and kernel.geometry.parts is not None)
    operator = geometric(geometry, values_of(kernel.tensor))
    if geometry.blockwise and isinstance(operator, BlockDiagonal):
        yield from ((f"{kernel.path}/{i}", block) for i, block in enumerate(operator.blocks))
    else:
        yield kernel.path, operator


def _weight(module: Any) -> Array:
    (kernel,) = (one for one in find_kernels(module) if isinstance(one, Kernel))
    return values_of(kernel.tensor)


@linear_operator.register
def _(layer: nn.Linear) -> LinearOperator:
    return aslinearoperator(_weight(layer))


@linear_operator.register
def _(layer: nn.Embedding) -> LinearOperator:
    return aslinearoperator(_weight(layer).T)


@linear_operator.register(nn.Conv1d)
@linear_operator.register(nn.Conv2d)
@linear_operator.register(nn.Conv3d)
def _(layer: Any) -> LinearOperator:
    require_zeros(layer)
    options = {"strides": layer.stride, "dilation_rate": layer.dilation, "groups": layer.groups}
    return Convolution(_to_last(_weight(layer)), **options)


@linear_operator.register(nn.ConvTranspose1d)
@linear_operator.register(nn.ConvTranspose2d)
@linear_operator.register(nn.ConvTranspose3d)
def _(layer: Any) -> LinearOperator:
    """Return the adjoint of the convolution from the module's output to its input."""
    options = {"strides": layer.stride, "dilation_rate": layer.dilation, "groups": layer.groups}
    return Adjoint(Convolution(_to_last(_weight(layer)), **options))


@linear_operator.register(nn.BatchNorm1d)
@linear_operator.register(nn.BatchNorm2d)
@linear_operator.register(nn.BatchNorm3d)
def _(layer: Any) -> LinearOperator:
    require(layer.running_var is not None, "layer", "must keep running statistics: without them it is no map", layer)
    scale = values_of(torch.ones_like(layer.running_var) if layer.weight is None else layer.weight)
    return Diagonal(scale / (values_of(layer.running_var) + layer.eps) ** 0.5)  # at inference


def _to_last(kernel: Array) -> Array:
    """Return a kernel (out, in / groups, *spatial) as (*spatial, in / groups, out)."""
    return kernel.transpose(*range(2, kernel.ndim), 1, 0)
