"""A module of PyTorch as a checkpoint: the tensors of its state dict, read from memory."""

from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Checkpoint, Geometry, Weight
from opnorm.checkpoints.tables import read_table
from opnorm.checks import Array
from opnorm.operators.linear import has_own, linear_operator
from opnorm.torch.geometry import KernelGeometry
from opnorm.torch.operators import geometric, values_of
from opnorm.torch.parametrization import SpectralNormalization
from opnorm.torch.sites import Kernel, find_kernels

_NORMALIZING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def read_module(module: nn.Module) -> Checkpoint:
    """Return the checkpoint of a `torch.nn.Module`; of a parametrized kernel it has what the module multiplies with.

    What kernels do is known by their module's type, see `opnorm.torch.kernels`; the rest is guessed from its name.
    """
    known = _of_modules(module) | {
        _stored(one): _weight(one) for one in find_kernels(module) if isinstance(one, Kernel)
    }
    weights = read_table(module.state_dict()).weights
    return Checkpoint("model", tuple(known[one.name](one) if one.name in known else one for one in weights))


def _stored(kernel: Kernel) -> str:
    """Return the name of the tensor in the state dict that stands for a kernel."""
    path, _, name = kernel.path.rpartition(".")
    inside = f"parametrizations.{name}.original" if parametrize.is_parametrized(kernel.module, name) else name
    return f"{path}.{inside}".lstrip(".")


def _weight(kernel: Kernel) -> Any:
    tensor = kernel.tensor.detach()
    geometry = _geometry(kernel)

    def known(weight: Weight) -> Weight:
        return weight._replace(read=lambda: values_of(tensor), shape=tuple(tensor.shape), geometry=geometry)

    return known


def _geometry(kernel: Kernel) -> Geometry:
    kind = type(kernel.module).__name__.removeprefix("Parametrized")
    padding = getattr(kernel.module, "padding_mode", "zeros")
    if padding != "zeros":
        return g.unknown(kind, f"the padding {padding!r} repeats pixels: the bound for zeros does not hold for it")
    return Geometry(kind, _text(kernel.geometry), lambda array: _operator(kernel, array))


def _operator(kernel: Kernel, array: Array) -> LinearOperator:
    # Where strides and dilation both exceed 1, a constraint's geometry only bounds the operator.
    return linear_operator(kernel.module) if has_own(type(kernel.module)) else geometric(kernel.geometry, array)


def _text(geometry: KernelGeometry) -> str:
    if geometry.strides is not None:
        return f"convolution, strides {geometry.strides}, groups {geometry.groups}, zero padding"
    if geometry.groups > 1:
        return f"{geometry.groups} matrices"
    return "matrix (out, in)" if geometry.axis == 0 else "matrix (in, out)"


def _of_modules(module: nn.Module) -> dict[str, Any]:
    """Return what the other tensors do that the types of modules tell, by name."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, _BATCH) and part.weight is not None and part.running_var is not None:
            variance: Tensor = part.running_var
            found[_join(path, "weight")] = _as(g.batch_normalization(kind, _reader(variance), part.eps))
        elif isinstance(part, _NORMALIZING) and part.weight is not None:
            found[_join(path, "weight")] = _as(g.nothing(kind, g.SCALE))
        elif isinstance(part, SpectralNormalization):
            found[_join(path, "vectors")] = _as(g.nothing(kind, g.STATE))
    return found


def _as(geometry: Geometry) -> Any:
    return lambda weight: weight._replace(geometry=geometry)


def _reader(tensor: torch.Tensor) -> Any:
    return lambda: values_of(tensor)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")
