"""The kernels of the layers of equinox, whose outputs come first."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx

from opnorm.jax.kinds import KernelGeometry, kernels, strides_of

MODULE = eqx.Module
Found = Mapping[str, KernelGeometry | str]
_REPEATED = "{} padding repeats pixels: `operator='convolution'` holds the norm with zeros"


@kernels.register
def _(layer: eqx.nn.Linear) -> Found:
    return {"weight": KernelGeometry(0, rank=2)}


@kernels.register
def _(layer: eqx.nn.Embedding) -> Found:
    return {"weight": KernelGeometry(-1, rank=2)}


@kernels.register
def _(layer: eqx.nn.Conv) -> Found:
    return {"weight": _window(layer)}


@kernels.register
def _(layer: eqx.nn.ConvTranspose) -> Found:
    return {"weight": _window(layer)._replace(transposed=True)}


@kernels.register(eqx.nn.GRUCell)
@kernels.register(eqx.nn.LSTMCell)
def _(layer: Any) -> Found:
    one = KernelGeometry(0, rank=2, parts=4 if isinstance(layer, eqx.nn.LSTMCell) else 3)
    return {"weight_ih": one, "weight_hh": one}


@kernels.register
def _(layer: eqx.nn.MultiheadAttention) -> Found:
    one = KernelGeometry(0, rank=2, parts=layer.num_heads)
    return {f"{name}_proj.weight": one for name in ("query", "key", "value")}


@kernels.register(eqx.nn.SpectralNorm)
@kernels.register(eqx.nn.WeightNorm)
def _(layer: Any) -> Found:
    return {"*": f"made of other arrays in the forward pass, by equinox's {type(layer).__name__}"}


@kernels.register(eqx.nn.BatchNorm)
@kernels.register(eqx.nn.GroupNorm)
@kernels.register(eqx.nn.LayerNorm)
@kernels.register(eqx.nn.RMSNorm)
@kernels.register(eqx.nn.PReLU)
def _(layer: Any) -> Found:
    return {}  # known, and without a kernel: they multiply each entry with its own number


def _window(layer: Any) -> KernelGeometry:
    count = layer.num_spatial_dims
    mode = str(getattr(layer, "padding_mode", "ZEROS"))
    return KernelGeometry(
        axis=0,
        groups=layer.groups,
        rank=count + 2,
        spatial=tuple(range(2, count + 2)),
        strides=strides_of(layer.stride, layer.dilation, count),
        note="" if mode in ("ZEROS", "CIRCULAR") else _REPEATED.format(mode),
    )
