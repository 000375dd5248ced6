"""The shapes of a Sequential model's values, from the shape of its input, as far as its layers' kinds tell them."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from opnorm.checkpoints.keras_layers import CONVOLUTIONS, Layer

Config = Mapping[str, Any]
Shape = tuple[int | None, ...]  # batch first; None: a size that only a run knows
_KEPT = {
    "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "BatchNormalization", "Rescaling", "Normalization",
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise",
    "AlphaDropout", "ActivityRegularization", "Identity", "LayerNormalization", "UnitNormalization",
}  # fmt: skip


def input_shape(config: Config) -> Shape | None:
    """Return the shape that an InputLayer names, None where it names none."""
    return _to_shape(config.get("batch_shape", config.get("batch_input_shape")))


def output_shape(layer: Layer, shape: Shape | None) -> Shape | None:
    """Return the shape of what a layer makes of an input of `shape`; None where that is not worked out."""
    try:
        return None if shape is None else _to_shape(_shape(layer.kind, layer.config, shape))
    except (LookupError, TypeError, ValueError, ArithmeticError):  # settings come from files
        return None


def _to_shape(value: Any) -> Shape | None:
    if not isinstance(value, list | tuple) or not all(n is None or (type(n) is int and n > 0) for n in value):
        return None
    return tuple(value)


def _shape(kind: str, config: Config, shape: Shape) -> Shape | None:
    if kind in _KEPT:
        return shape
    if kind == "Dense":
        return (*shape[:-1], config["units"])
    if kind == "Flatten":
        return (shape[0], None if None in shape[1:] else prod(n or 0 for n in shape[1:]))
    if kind[:-2] not in _ALONG or kind[-1] != "D" or len(shape) != int(kind[-2]) + 2:
        return None
    first = config.get("data_format") == "channels_first"
    sizes, channels = (shape[2:], shape[1]) if first else (shape[1:-1], shape[-1])
    along = _ALONG[kind[:-2]]
    changed = [None if n is None else along(_Axis(config, i, len(sizes)), n) for i, n in enumerate(sizes)]
    channels = _channels(kind, config, channels)
    return (shape[0], channels, *changed) if first else (shape[0], *changed, channels)


def _channels(kind: str, config: Config, channels: int | None) -> int | None:
    if kind in CONVOLUTIONS:
        return int(config["filters"])
    if kind.startswith("Depthwise") and channels is not None:
        return channels * int(config.get("depth_multiplier", 1))
    return channels


class _Axis:
    """The settings of one axis among those of all."""

    def __init__(self, config: Config, axis: int, rank: int):
        self.config, self.axis, self.rank = config, axis, rank

    def of(self, value: Any) -> int:
        """Return the integer of this axis."""
        return int(value[self.axis] if isinstance(value, list | tuple) else value)

    def both(self, value: Any) -> int:
        """Return the sum of what is given for the two ends of this axis."""
        found = value[self.axis] if isinstance(value, list | tuple) and self.rank > 1 else value
        return sum(map(int, found)) if isinstance(found, list | tuple) else 2 * int(found)

    def slid(self, n: int, extent: int, stride: int) -> int:
        """Return how many windows n pixels have."""
        padding = self.config.get("padding", "valid")
        if padding not in ("same", "causal", "valid"):
            raise ValueError(padding)
        return (n - extent) // stride + 1 if padding == "valid" else -(-n // stride)


def _convolved(axis: _Axis, n: int) -> int:
    extent = (axis.of(axis.config["kernel_size"]) - 1) * axis.of(axis.config.get("dilation_rate", 1)) + 1
    return axis.slid(n, extent, axis.of(axis.config.get("strides", 1)))


def _pooled(axis: _Axis, n: int) -> int:
    size = axis.config["pool_size"]
    return axis.slid(n, axis.of(size), axis.of(axis.config.get("strides") or size))


_ALONG: dict[str, Callable[[_Axis, int], int]] = {
    "Conv": _convolved,
    "DepthwiseConv": _convolved,
    "MaxPooling": _pooled,
    "AveragePooling": _pooled,
    "ZeroPadding": lambda axis, n: n + axis.both(axis.config["padding"]),
    "Cropping": lambda axis, n: n - axis.both(axis.config["cropping"]),
    "UpSampling": lambda axis, n: n * axis.of(axis.config["size"]),
}
