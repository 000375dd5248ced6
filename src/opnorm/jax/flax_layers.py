"""The kernels of the layers of flax, whose outputs come last; `nnx` and `linen` name their settings alike."""

from collections.abc import Mapping
from typing import Any

from flax import linen, nnx

from opnorm.jax.kinds import KernelGeometry, kernels, strides_of
from opnorm.operators.equations import einsum_axes

MODULE = nnx.Module
Found = Mapping[str, KernelGeometry | str]
_GATES = {nnx.OptimizedLSTMCell: 4, nnx.GRUCell: 3}
_REPEATED = "REFLECT padding repeats pixels: `operator='convolution'` holds the norm with zeros"


@kernels.register(nnx.Linear)
@kernels.register(linen.Dense)
def _(layer: Any) -> Found:
    return {"kernel": KernelGeometry(rank=2)}


@kernels.register(nnx.Embed)
@kernels.register(linen.Embed)
def _(layer: Any) -> Found:
    return {"embedding": KernelGeometry(rank=2)}


@kernels.register
def _(layer: nnx.LinearGeneral) -> Found:
    return {"kernel": _general(len(layer.batch_axis), len(layer.in_features), layer.out_features, layer.kernel.shape)}


@kernels.register
def _(layer: linen.DenseGeneral) -> Found:
    inputs, batch = _count(layer.axis), _count(layer.batch_dims)
    outputs = (layer.features,) if isinstance(layer.features, int) else tuple(layer.features)
    return {"kernel": _general(batch, inputs, outputs, layer.variables["params"]["kernel"].shape)}


@kernels.register(nnx.Einsum)
@kernels.register(linen.Einsum)
def _(layer: Any) -> Found:
    equation = layer.einsum_str
    shape = layer.kernel_shape if isinstance(layer, nnx.Einsum) else layer.shape
    return {"kernel": _einsum(equation, tuple(shape))}


@kernels.register(nnx.Conv)
@kernels.register(linen.Conv)
def _(layer: Any) -> Found:
    return {"kernel": _window(layer)}


@kernels.register(nnx.ConvTranspose)
@kernels.register(linen.ConvTranspose)
def _(layer: Any) -> Found:
    window = _window(layer)
    if isinstance(window, str):
        return {"kernel": window}
    return {"kernel": window._replace(axis=-2 if layer.transpose_kernel else -1, transposed=True)}


@kernels.register
def _(layer: linen.ConvLocal) -> Found:
    return {"kernel": "a kernel for each pixel"}


@kernels.register
def _(layer: nnx.MultiHeadAttention) -> Found:
    heads = {name: getattr(layer, name).kernel.shape[-2] for name in ("query", "key", "value")}
    return {f"{name}.kernel": KernelGeometry((-2, -1), rank=3, parts=count) for name, count in heads.items()}


@kernels.register
def _(layer: linen.MultiHeadDotProductAttention) -> Found:
    one = KernelGeometry((-2, -1), rank=3, parts=layer.num_heads)
    return {f"{name}.kernel": one for name in ("query", "key", "value")}


@kernels.register
def _(layer: linen.recurrent.DenseParams) -> Found:
    return {"kernel": KernelGeometry(rank=2)}


@kernels.register(nnx.OptimizedLSTMCell)
@kernels.register(nnx.GRUCell)
def _(layer: Any) -> Found:
    gates = next(count for kind, count in _GATES.items() if isinstance(layer, kind))
    return {f"{name}.kernel": KernelGeometry(rank=2, parts=gates) for name in ("dense_i", "dense_h")}


@kernels.register(nnx.SpectralNorm)
@kernels.register(nnx.WeightNorm)
@kernels.register(nnx.LoRALinear)
def _(layer: Any) -> Found:
    return {"*": f"made of other arrays in the forward pass, by flax's {type(layer).__name__}"}


@kernels.register
def _(layer: nnx.LoRA) -> Found:
    return dict.fromkeys(("lora_a", "lora_b"), "one factor of a product")


@kernels.register(nnx.BatchNorm)
@kernels.register(nnx.LayerNorm)
@kernels.register(nnx.GroupNorm)
@kernels.register(nnx.InstanceNorm)
@kernels.register(nnx.RMSNorm)
@kernels.register(nnx.PReLU)
@kernels.register(linen.BatchNorm)
@kernels.register(linen.LayerNorm)
@kernels.register(linen.GroupNorm)
@kernels.register(linen.RMSNorm)
def _(layer: Any) -> Found:
    return {}  # known, and without a kernel: they multiply each entry with its own number


def _general(batch: int, inputs: int, outputs: tuple[int, ...], shape: tuple[int, ...]) -> KernelGeometry:
    rank = batch + inputs + len(outputs)
    axes = tuple(axis for axis in range(rank) if not batch <= axis < batch + inputs)
    blocks = 1
    for size in shape[len(shape) - rank :][:batch]:
        blocks *= size
    return KernelGeometry(axes, groups=blocks, rank=rank)


def _einsum(equation: str | None, shape: tuple[int, ...]) -> KernelGeometry | str:
    if equation is None:
        return "its equation is known in the call only"
    try:
        shared, _, kept = einsum_axes(equation)
    except ValueError as error:
        return str(error)
    blocks = 1
    for axis in shared:
        blocks *= shape[axis]
    if not shared + kept:
        return f"the equation {equation} keeps no axis of the kernel"
    return KernelGeometry((*shared, *kept), groups=blocks, rank=len(shape))


def _window(layer: Any) -> KernelGeometry | str:
    if layer.mask is not None:
        return "masked in the forward pass"
    count = 1 if isinstance(layer.kernel_size, int) else len(layer.kernel_size)
    return KernelGeometry(
        groups=getattr(layer, "feature_group_count", 1),
        rank=count + 2,
        spatial=tuple(range(count)),
        strides=strides_of(layer.strides, layer.kernel_dilation, count),
        note=_REPEATED if layer.padding == "REFLECT" else "",
    )


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)
