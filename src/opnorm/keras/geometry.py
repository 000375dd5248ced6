"""Which weights of a layer are kernels, and the matrix or the convolution that the layer makes of each.

`kernels(layer)` is open: `kernels.register(MyLayer)` teaches it a new layer, and whatever acts on a layer's kernels
(`constrain`, the wrapper) then knows it.
"""

from functools import singledispatch
from math import prod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import keras

from opnorm.iterations.frequencies import Strides
from opnorm.iterations.matrices import Axis
from opnorm.operators.equations import einsum_axes

_CHANNELS = (-2, -1)  # of a depthwise kernel, (*spatial, channels, multiplier): together its output channels


class KernelGeometry(NamedTuple):
    """One kernel of a layer: where it is, and the arguments by which a constraint means the layer's own operator.

    Args:
        name: The layer's attribute that holds the kernel.
        constraint: The layer's attribute that holds the kernel's constraint.
        axis: The output axis or axes, for `operator="matrix"`.
        groups: The number of diagonal blocks.
        strides: Those of a convolution, for `operator="convolution"`; None for a kernel that does not slide.
        convolution_axis: The output axis or axes, for `operator="convolution"`.
    """

    name: str = "kernel"
    constraint: str = "kernel_constraint"
    axis: Axis = -1
    groups: int = 1
    strides: Strides | None = None
    convolution_axis: Axis = -1

    def options(self, operator: str = "matrix") -> dict[str, Any]:
        """Return `operator`, `axis`, `strides` and `groups` for a constraint of this kernel.

        A kernel that does not slide is its own matrix, so `"convolution"` means `"matrix"` there.
        """
        if operator == "convolution" and self.strides is not None:
            return {
                "operator": operator,
                "axis": self.convolution_axis,
                "strides": self.strides,
                "groups": self.groups,
            }
        return {"operator": "matrix", "axis": self.axis, "strides": 1, "groups": self.groups}


@singledispatch
def kernels(layer: Any) -> tuple[KernelGeometry, ...]:
    """Return the geometry of each kernel that belongs to `layer` itself, none for a type that is not registered.

    Kernels of sublayers (the cell of an `LSTM`, the projections of an attention layer) are the sublayers' own. A layer
    need not be built, unless its geometry depends on its input: depthwise kernels, einsum kernels with a shared axis.

    Args:
        layer: A `keras.Layer`.

    Raises:
        ValueError: When the layer must be built first, or what it makes of its kernel is not one matrix.

    Example:
        >>> @opnorm.kernels.register
        ... def _(layer: MyDense):
        ...     return (opnorm.KernelGeometry("weight", "weight_constraint"),)
    """
    return ()


@runtime_checkable
class ConvolutionalCell(Protocol):
    """A cell that convolves, as ConvLSTM layers have; Keras does not hand out their class, so its methods tell."""

    def input_conv(self, x: Any, w: Any) -> Any:
        """Return the inputs convolved with `w`."""

    def recurrent_conv(self, x: Any, w: Any) -> Any:
        """Return the state convolved with `w`."""


def is_registered(layer: Any) -> bool:
    """Return whether `kernels` knows the type of `layer`."""
    return kernels.dispatch(type(layer)) is not kernels.dispatch(object)


@kernels.register
def _(layer: keras.layers.Dense) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry(),)


@kernels.register
def _(layer: keras.layers.Embedding) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry("embeddings", "embeddings_constraint"),)


@kernels.register
def _(layer: keras.layers.EinsumDense) -> tuple[KernelGeometry, ...]:
    shared, summed, kept = einsum_axes(layer.equation)
    groups = prod(_kernel_shape(layer)[i] for i in shared) if shared else 1
    rank = len(shared + summed + kept)
    axes = tuple(i - rank for i in sorted(shared) + sorted(kept))  # shared ones first: each entry has a block
    return (KernelGeometry(axis=axes[0] if len(axes) == 1 else axes, groups=groups),)


@kernels.register(keras.layers.Conv1D)
@kernels.register(keras.layers.Conv2D)
@kernels.register(keras.layers.Conv3D)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry(groups=layer.groups, strides=_strides(layer)),)


@kernels.register(keras.layers.Conv1DTranspose)
@kernels.register(keras.layers.Conv2DTranspose)
@kernels.register(keras.layers.Conv3DTranspose)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    # The kernel, (*spatial, outputs, inputs), is that of the convolution whose adjoint the layer is: of the same norm.
    return (KernelGeometry(axis=-2, strides=_strides(layer)),)


@kernels.register(keras.layers.DepthwiseConv1D)
@kernels.register(keras.layers.DepthwiseConv2D)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    return (_depthwise(layer, "kernel"),)


@kernels.register(keras.layers.SeparableConv1D)
@kernels.register(keras.layers.SeparableConv2D)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    return (_depthwise(layer, "depthwise_kernel"), KernelGeometry("pointwise_kernel", "pointwise_constraint"))


@kernels.register(keras.layers.SimpleRNNCell)
@kernels.register(keras.layers.LSTMCell)
@kernels.register(keras.layers.GRUCell)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    return (KernelGeometry(), KernelGeometry("recurrent_kernel", "recurrent_constraint"))


@kernels.register
def _(layer: ConvolutionalCell) -> tuple[KernelGeometry, ...]:
    recurrent = KernelGeometry("recurrent_kernel", "recurrent_constraint", strides=1)
    return (KernelGeometry(strides=_strides(layer)), recurrent)


@kernels.register(keras.layers.BatchNormalization)
@kernels.register(keras.layers.GroupNormalization)
@kernels.register(keras.layers.LayerNormalization)
@kernels.register(keras.layers.RMSNormalization)
@kernels.register(keras.layers.Normalization)
@kernels.register(keras.layers.PReLU)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    return ()  # known, and without a kernel: they multiply each entry with its own number


@kernels.register(keras.layers.MultiHeadAttention)
@kernels.register(keras.layers.GroupQueryAttention)
def _(layer: Any) -> tuple[KernelGeometry, ...]:
    _require_built(layer)  # only then are its projections there; each is a sublayer with a kernel of its own
    return ()


def _depthwise(layer: Any, name: str) -> KernelGeometry:
    channels = _kernel_shape(layer, name)[_CHANNELS[0]]
    return KernelGeometry(
        name, "depthwise_constraint", _CHANNELS, channels, strides=_strides(layer), convolution_axis=_CHANNELS
    )


def _kernel_shape(layer: Any, name: str = "kernel") -> tuple[int, ...]:
    _require_built(layer)
    return tuple(getattr(layer, name).shape)


def _require_built(layer: Any) -> None:
    if not layer.built:
        raise ValueError(
            "Argument `layer` must be built: its kernels, or their geometry, depend on its input. Call it, or its "
            f"model, on data, or build it. Received: {layer!r}"
        )


def _strides(layer: Any) -> Strides:
    """Return the strides as a constraint takes them: 1, which bounds, where strides and dilation both exceed 1."""
    strides, dilation = (
        (number,) if isinstance(number, int) else tuple(number) for number in (layer.strides, layer.dilation_rate)
    )
    if max(strides) > 1 and max(dilation) > 1:
        return 1
    return strides[0] if len(set(strides)) == 1 else strides
