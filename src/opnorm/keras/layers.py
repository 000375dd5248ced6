"""What Keras's layers multiply their inputs with: the registrations behind `linear_operator(layer)`.

Importing this module imports Keras; opnorm does it as soon as Keras itself is imported.
"""

from functools import partial
from typing import Any

import keras
import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.checks import Array, real_array
from opnorm.keras.geometry import ConvolutionalCell
from opnorm.operators.convolution import Convolution
from opnorm.operators.equations import einsum_operator
from opnorm.operators.linear import Diagonal, linear_operator, linear_operators
from opnorm.operators.sizes import Adjoint

_GATES = {keras.layers.SimpleRNNCell: 1, keras.layers.LSTMCell: 4, keras.layers.GRUCell: 3}


def require_weights(layer: Any) -> None:
    """Raise unless the layer's weights are there and are its map."""
    if not layer.built:
        raise ValueError(f"Argument `layer` must be built: call it, or `layer.build(input_shape)`. Received: {layer!r}")
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            "Argument `layer` must not be quantized: its stored integers are not the matrix that it applies. "
            f"Received: {layer!r} with quantization_mode={layer.quantization_mode!r}"
        )


def _weight(layer: Any, name: str) -> Array:
    """Return a weight of a built layer; a LoRA layer's kernel is the effective one."""
    require_weights(layer)
    return real_array(getattr(layer, name), name)


def _from_columns(kernel: Array) -> LinearOperator:
    """Return the operator of `y = x @ kernel`."""
    return aslinearoperator(kernel.T)


@linear_operator.register
def _(layer: keras.layers.Dense) -> LinearOperator:
    return _from_columns(_weight(layer, "kernel"))


@linear_operator.register
def _(layer: keras.layers.Embedding) -> LinearOperator:
    return _from_columns(_weight(layer, "embeddings"))


@linear_operator.register
def _(layer: keras.layers.BatchNormalization) -> LinearOperator:
    variance = _weight(layer, "moving_variance")  # at inference: the moving statistics
    scale = _weight(layer, "gamma") if layer.scale else np.ones_like(variance)
    return Diagonal(scale / np.sqrt(variance + layer.epsilon))


@linear_operator.register
def _(layer: keras.layers.TimeDistributed) -> LinearOperator:
    return linear_operator(layer.layer)


@linear_operator.register
def _(layer: keras.layers.EinsumDense) -> LinearOperator:
    return einsum_operator(_weight(layer, "kernel"), layer.equation)


def _sizes(layer: Any) -> tuple[int, ...] | None:
    """Return the spatial sizes that a convolution was built for, or None when one is open."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    if shape is None:
        return None
    sizes = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    return None if None in sizes else tuple(sizes)


def _convolution(layer: Any, kernel: Array, groups: int) -> Convolution:
    return Convolution(
        kernel,
        _sizes(layer),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        groups=groups,
    )


@linear_operator.register(keras.layers.Conv1D)
@linear_operator.register(keras.layers.Conv2D)
@linear_operator.register(keras.layers.Conv3D)
def _(layer: Any) -> LinearOperator:
    return _convolution(layer, _weight(layer, "kernel"), layer.groups)


def _depthwise(layer: Any, kernel: Array) -> Convolution:
    """Return the operator of a depthwise kernel, (*spatial, cin, multiplier): a group for each channel."""
    *spatial, channels, multiplier = kernel.shape
    return _convolution(layer, kernel.reshape(*spatial, 1, channels * multiplier), channels)


@linear_operator.register(keras.layers.DepthwiseConv1D)
@linear_operator.register(keras.layers.DepthwiseConv2D)
def _(layer: Any) -> LinearOperator:
    return _depthwise(layer, _weight(layer, "kernel"))


@linear_operator.register(keras.layers.Conv1DTranspose)
@linear_operator.register(keras.layers.Conv2DTranspose)
@linear_operator.register(keras.layers.Conv3DTranspose)
def _(layer: Any) -> LinearOperator:
    """Return the adjoint of the convolution from the layer's output to its input, whose kernel has the same layout."""
    kernel = _weight(layer, "kernel")
    common = {"strides": layer.strides, "dilation_rate": layer.dilation_rate}
    sizes = _sizes(layer)
    if sizes is None or layer.output_padding is not None:  # backends place `output_padding` differently
        return Adjoint(Convolution(kernel, **common))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel.shape, layer.dilation_rate, strict=False)]
    spare = [max(k - s, 0) for k, s in zip(extents, layer.strides, strict=True)]
    outputs = [n * s for n, s in zip(sizes, layer.strides, strict=True)]
    if layer.padding == "valid":
        outputs = [n + more for n, more in zip(outputs, spare, strict=True)]
    return Adjoint(Convolution(kernel, outputs, padding=layer.padding, **common))


def several(layer: Any) -> LinearOperator:
    """Raise the error that names the maps of a layer that has several."""
    names = ", ".join(linear_operators(layer))
    raise ValueError(
        f"Argument `layer` must have one linear map; {type(layer).__name__} has several ({names}). Use "
        f"`opnorm.linear_operators(layer)`. Received: {layer!r}"
    )


@linear_operators.register(keras.layers.SeparableConv1D)
@linear_operators.register(keras.layers.SeparableConv2D)
def _(layer: Any, *, gates: bool = False) -> dict[str, LinearOperator]:
    pointwise = _weight(layer, "pointwise_kernel")
    return {
        "depthwise_kernel": _depthwise(layer, _weight(layer, "depthwise_kernel")),
        "pointwise_kernel": _from_columns(pointwise.reshape(pointwise.shape[-2:])),
    }


@linear_operators.register(keras.layers.SimpleRNNCell)
@linear_operators.register(keras.layers.LSTMCell)
@linear_operators.register(keras.layers.GRUCell)
def _(layer: Any, *, gates: bool = False) -> dict[str, LinearOperator]:
    count = next(number for cell, number in _GATES.items() if isinstance(layer, cell))
    kernels = _by_gate(layer, count if gates else None)
    return {name: _from_columns(kernel) for name, kernel in kernels.items()}


@linear_operators.register
def _(layer: ConvolutionalCell, *, gates: bool = False) -> dict[str, LinearOperator]:
    cell: Any = layer
    require_weights(cell)
    options = {"strides": cell.strides, "padding": cell.padding, "dilation_rate": cell.dilation_rate}
    entering = partial(Convolution, input_shape=cell.spatial_dims, **options)
    returning = partial(Convolution, input_shape=entering(kernel=_weight(cell, "kernel")).output_shape)
    makers = {"kernel": entering, "recurrent_kernel": returning}
    kernels = _by_gate(cell, 4 if gates else None)
    return {name: makers[name.partition("/")[0]](kernel=kernel) for name, kernel in kernels.items()}


def _by_gate(cell: Any, gates: int | None) -> dict[str, Array]:
    """Return the two kernels of a recurrent cell, whole or split into so many gates along their last axis."""
    whole = {name: _weight(cell, name) for name in ("kernel", "recurrent_kernel")}
    if gates is None:
        return whole
    split = {name: np.split(kernel, gates, axis=-1) for name, kernel in whole.items()}
    return {f"{name}/{i}": part for name, parts in split.items() for i, part in enumerate(parts)}


for _kind in (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D, ConvolutionalCell, *_GATES):
    linear_operator.register(_kind, several)
