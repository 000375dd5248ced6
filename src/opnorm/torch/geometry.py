"""Which parameters of a module are kernels, and the matrix or the convolution that the module makes of each.

`kernels(module)` is open: `kernels.register(MyModule)` teaches it a new type, and `constrain`, `project`, `monitor` and
`spectral_normalization` then know it.
"""

from functools import singledispatch
from typing import Any, NamedTuple

from torch import Tensor, nn

from opnorm.iterations.frequencies import Strides
from opnorm.iterations.matrices import Axis
from opnorm.rules import Operator

_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1, nn.LSTMCell: 4, nn.GRUCell: 3, nn.RNNCell: 1}


class KernelGeometry(NamedTuple):
    """One kernel of a module: where it is, and what the module makes of it.

    Args:
        name: The module's attribute that holds the parameter.
        axis: The output axis or axes.
        groups: The number of diagonal blocks, consecutive along the output axes in the order of `axis`.
        blockwise: Whether the blocks are maps of their own (experts; query, key and value in one parameter): each then
            has its own norm, whatever the constraint says.
        split: An axis and the number of parts that it is cut into beforehand, which become an axis before it; `axis`
            counts both. None if it needs no cutting.
        strides: Those of a convolution, whose kernel is (*channels, *spatial); None for a kernel that does not slide.
        parts: What `blockwise=True` of a constraint means: the heads of an attention, the gates of a recurrence.
    """

    name: str = "weight"
    axis: Axis = 0
    groups: int = 1
    blockwise: bool = False
    split: tuple[int, int] | None = None
    strides: Strides | None = None
    parts: "KernelGeometry | None" = None

    def asked(self, blockwise: bool) -> "KernelGeometry":
        """Return the geometry that a constraint means, whose blocks have their own norms or not."""
        finer = self.parts if blockwise and self.parts is not None else self
        return finer._replace(blockwise=finer.blockwise or blockwise)

    def operator(self, operator: str) -> Operator:
        """Return the operator of `view`; a kernel that does not slide is its own matrix."""
        if self._slides(operator):
            return Operator("convolution", -1, self.strides or 1, self.groups)
        return Operator("matrix", self.axis, 1, self.groups)

    def view(self, parameter: Tensor, operator: str) -> Tensor:
        """Return the parameter as the rules read it, in the same memory: of a convolution (*spatial, in, out)."""
        if self._slides(operator):
            return parameter.permute(*range(2, parameter.ndim), 1, 0)
        if self.split is None:
            return parameter
        axis, count = self.split
        return parameter.unflatten(axis, (count, -1))

    def _slides(self, operator: str) -> bool:
        return operator == "convolution" and self.strides is not None


@singledispatch
def kernels(module: Any) -> tuple[KernelGeometry, ...]:
    """Return the geometry of each kernel that belongs to `module` itself, none for a type that is not registered.

    Kernels of submodules are the submodules' own.

    Args:
        module: A `torch.nn.Module`.

    Example:
        >>> @opnorm.torch.kernels.register
        ... def _(module: MyExperts):  # weight: (experts, in, out)
        ...     experts = module.weight.shape[0]
        ...     return (opnorm.torch.KernelGeometry("weight", (0, -1), groups=experts, blockwise=True),)
    """
    known = _by_name(module)
    return () if known is None else known


def is_registered(module: nn.Module) -> bool:
    """Return whether `kernels` knows the type of `module`."""
    return kernels.dispatch(type(module)) is not kernels.dispatch(object) or _by_name(module) is not None


def _by_name(module: Any) -> tuple[KernelGeometry, ...] | None:
    """Return the kernels of what other packages call by names of their own; None for any other module."""
    kind = type(module)
    if (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D"):  # GPT-2's linear layer
        return (KernelGeometry(axis=1),)
    if kind.__name__.endswith("Experts"):  # stacked along the first axis, whichever way each is turned
        stacks = [(name, p) for name, p in module.named_parameters(recurse=False) if p.ndim == 3]
        return tuple(KernelGeometry(name, (0, -1), p.shape[0], blockwise=True) for name, p in stacks) or None
    return None


@kernels.register(nn.Linear)
@kernels.register(nn.Bilinear)
def _(module: Any) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry(),)  # of a bilinear map the matrix (out, in1 * in2): |y| <= norm |x1| |x2|


@kernels.register(nn.Embedding)
@kernels.register(nn.EmbeddingBag)
def _(module: Any) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry(axis=1),)


@kernels.register(nn.Conv1d)
@kernels.register(nn.Conv2d)
@kernels.register(nn.Conv3d)
def _(module: Any) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry(groups=module.groups, strides=_strides(module)),)


@kernels.register(nn.ConvTranspose1d)
@kernels.register(nn.ConvTranspose2d)
@kernels.register(nn.ConvTranspose3d)
def _(module: Any) -> tuple[KernelGeometry, ...]:
    # (inputs, outputs / groups, *spatial): as a convolution it is the one whose adjoint the module is.
    if module.groups == 1:
        return (KernelGeometry(axis=1, strides=_strides(module)),)
    groups = module.groups
    return (KernelGeometry(axis=(0, 2), groups=groups, split=(0, groups), strides=_strides(module)),)


@kernels.register
def _(module: nn.MultiheadAttention) -> tuple[KernelGeometry, ...]:
    heads = module.num_heads
    if module.in_proj_weight is not None:
        fused = _stack("in_proj_weight", 3)._replace(blockwise=True)
        return (fused._replace(parts=_stack("in_proj_weight", 3 * heads)),)
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    return tuple(KernelGeometry(name, parts=_stack(name, heads)) for name in names)


@kernels.register(nn.RNN)
@kernels.register(nn.LSTM)
@kernels.register(nn.GRU)
@kernels.register(nn.RNNCell)
@kernels.register(nn.LSTMCell)
@kernels.register(nn.GRUCell)
def _(module: Any) -> tuple[KernelGeometry, ...]:
    gates = next(count for kind, count in _GATES.items() if isinstance(module, kind))
    own = [name for name, _ in module.named_parameters(recurse=False)]
    names = [name for name in (*own, *getattr(module, "parametrizations", ())) if name.startswith("weight")]
    return tuple(_recurrent(name, gates) for name in names)


@kernels.register(nn.BatchNorm1d)
@kernels.register(nn.BatchNorm2d)
@kernels.register(nn.BatchNorm3d)
@kernels.register(nn.SyncBatchNorm)
@kernels.register(nn.InstanceNorm1d)
@kernels.register(nn.InstanceNorm2d)
@kernels.register(nn.InstanceNorm3d)
@kernels.register(nn.GroupNorm)
@kernels.register(nn.LayerNorm)
@kernels.register(nn.RMSNorm)
@kernels.register(nn.PReLU)
def _(module: Any) -> tuple[KernelGeometry, ...]:
    return ()  # known, and without a kernel: they multiply each entry with its own number


def _stack(name: str, count: int) -> KernelGeometry:
    """Return `count` matrices above one another in a parameter (count * out, in)."""
    return KernelGeometry(name, axis=(0, 1), groups=count, split=(0, count))


def _recurrent(name: str, gates: int) -> KernelGeometry:
    one = gates == 1 or name.startswith("weight_hr")  # the projection of an LSTM's state has no gates
    return KernelGeometry(name, parts=None if one else _stack(name, gates))


def _strides(module: Any) -> Strides:
    """Return the strides as a constraint takes them: 1, which bounds, where strides and dilation both exceed 1."""
    if max(module.stride) > 1 and max(module.dilation) > 1:
        return 1
    strides = tuple(module.stride)
    return strides[0] if len(set(strides)) == 1 else strides
