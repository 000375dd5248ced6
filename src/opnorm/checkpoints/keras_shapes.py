"""The shapes of a Keras network's values, worked out from its inputs' on: what a config says of others is only said.

Keras itself forgets the shapes that a file gives to values between layers, and computes them again.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from hashlib import sha256
from math import prod
from typing import Any

from opnorm.checkpoints.keras_layers import (
    CONVOLUTIONS,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    Layer,
    sublayer,
)

Size = int | str  # an open size has a name; two that are called alike are equal in every run
Shape = tuple[Size, ...]  # batch first
_SAME = {
    "Activation", "ActivityRegularization", "AlphaDropout", "BatchNormalization", "Dropout", "ELU", "GaussianDropout",
    "GaussianNoise", "GroupNormalization", "Identity", "LayerNormalization", "LeakyReLU", "Normalization", "PReLU",
    "RMSNormalization", "ReLU", "Rescaling", "Softmax", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D",
    "keras.ops.Relu", "keras.ops.Sigmoid", "keras.ops.Tanh", "keras.ops.Silu", "keras.ops.Gelu", "keras.ops.Elu",
    "keras.ops.Selu", "keras.ops.Softplus", "keras.ops.Softsign", "keras.ops.LeakyRelu", "keras.ops.Negative",
    "keras.ops.Relu6", "keras.ops.Softmax", "keras.ops.Clip", "keras.ops.HardSigmoid", "keras.ops.HardSilu",
    "keras.ops.LogSigmoid", "keras.ops.Celu", "keras.ops.Erf", "keras.ops.Quotient", "keras.ops.Absolute",
    "keras.ops.LogSoftmax", "keras.ops.Flip", "keras.ops.Roll",
    "keras.applications.LayerScale", "keras.applications.StochasticDepth",
}  # fmt: skip
_MERGED = {"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"}
_MERGED |= {f"keras.ops.{kind}" for kind in _MERGED}  # of one input and a number the shape is the input's
_MERGED |= {"keras.applications.CustomScaleLayer"}
_JOINED = {"Concatenate", "keras.ops.Concatenate"}
_POOLED = {f"{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3)}
_GLOBAL = {f"Global{kind}" for kind in _POOLED}
_FED = ("batch_shape", "batch_input_shape", "input_shape", "shape", "input_dim")  # two may contradict each other
_LONG = 200  # characters of a name made of other names
_WRAPPERS = {"TimeDistributed", "SpectralNormalization", "opnorm>SpectralNormalization"}


def input_shape(layer: Layer) -> Shape | None:
    """Return the shape of what a model is fed, as the config of its input layer, or of its first layer, has it."""
    said = [key for key in _FED if layer.config.get(key) is not None]
    given = layer.config[said[0]] if len(said) == 1 else None
    if said[0:1] not in (["batch_shape"], ["batch_input_shape"]) or not isinstance(given, list | tuple) or not given:
        return None
    names = (f"size {axis} of {layer.name}" if size is None else size for axis, size in enumerate(given[1:], 1))
    return _checked(("batch", *names))


def output_shape(layer: Layer, inputs: Sequence[Shape | None]) -> Shape | None:
    """Return the shape of a layer's result, None where it is not worked out here, or makes no sense."""
    known = [shape for shape in inputs if shape is not None]
    if not known or len(known) < len(inputs):
        return None
    try:
        return _checked(_output(layer, known))
    except (ArithmeticError, LookupError, TypeError, ValueError):  # configs come from files
        return None


def _checked(shape: Shape | None) -> Shape | None:
    if shape is None or not all(type(size) is str or (type(size) is int and 0 < size < 2**40) for size in shape):
        return None
    return tuple(_short(size) for size in shape)


def _short(size: Size) -> Size:
    long = isinstance(size, str) and len(size) > _LONG
    return sha256(str(size).encode("utf-8", "surrogatepass")).hexdigest() if long else size


def _output(layer: Layer, inputs: Sequence[Shape]) -> Shape | None:
    if layer.kind in _MERGED | _JOINED:
        return _joined(layer, inputs)
    if layer.kind == "keras.ops.Stack" and len(set(inputs)) == 1:
        return _with_axis(layer, inputs[0], len(inputs))
    if len(inputs) > 1:
        return None
    if layer.kind in _SAME:
        return inputs[0]
    if layer.kind == "TimeDistributed":
        return _for_each(layer, inputs[0])
    if layer.kind in _WRAPPERS:
        return output_shape(_inner(layer), inputs)
    return _BY_KIND[layer.kind](layer, inputs[0]) if layer.kind in _BY_KIND else None


def _joined(layer: Layer, inputs: Sequence[Shape]) -> Shape | None:
    if layer.kind not in _JOINED:
        return _broadcast(inputs)
    axis = layer.config.get("axis", -1) % len(inputs[0])
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
    whole = reduce(_plus, [shape[axis] for shape in inputs])
    return (*inputs[0][:axis], whole, *inputs[0][axis + 1 :]) if len(rest) == 1 else None


def _broadcast(inputs: Sequence[Shape]) -> Shape | None:
    """Return the shape of several values that meet entry by entry, axes of one entry being repeated."""
    if len({len(shape) for shape in inputs}) > 1:
        return None
    sizes = [set(axis) - {1} or {1} for axis in zip(*inputs, strict=True)]
    return tuple(axis.pop() for axis in sizes) if all(len(axis) == 1 for axis in sizes) else None


def _plus(size: Size, more: Size) -> Size:
    if isinstance(size, int) and isinstance(more, int):
        return size + more
    return size if more == 0 else f"({size} + {more})"


def _times(size: Size, factor: int) -> Size:
    return size * factor if isinstance(size, int) else size if factor == 1 else f"({size} * {factor})"


def _steps(size: Size, span: int, stride: int) -> Size:
    """Return how many windows, which span so much more than one pixel, start in a row of that size."""
    if isinstance(size, int):
        return -(-(size - span) // stride)
    return size if (span, stride) == (0, 1) else f"({size} - {span}) / {stride}"


def _inner(layer: Layer) -> Layer:
    inner = sublayer(layer, "layer")
    if inner is None:
        raise ValueError("a wrapper of nothing")
    return inner


def _for_each(layer: Layer, shape: Shape) -> Shape | None:
    found = output_shape(_inner(layer), [(shape[0], *shape[2:])])
    return None if found is None else (shape[0], shape[1], *found[1:])


def _split(layer: Layer, shape: Shape) -> tuple[Sequence[Size], Size, bool]:
    """Return sizes and channels of an image, and whether the channels stand first."""
    first = {"channels_last": False, "channels_first": True}[layer.config.get("data_format", "channels_last")]
    return (shape[2:], shape[1], True) if first else (shape[1:-1], shape[-1], False)


def _image(batch: Size, sizes: Sequence[Size], channels: Size, first: bool) -> Shape:
    return (batch, channels, *sizes) if first else (batch, *sizes, channels)


def _each(layer: Layer, key: str, rank: int, default: Any = 1) -> list[int]:
    value = layer.config.get(key)
    value = default if value is None else value
    found = list(value) if isinstance(value, list | tuple) else [value] * rank
    if len(found) != rank or not all(type(n) is int and n > 0 for n in found):
        raise ValueError(key)
    return found


def _windows(layer: Layer, sizes: Sequence[Size], key: str, default: str | None) -> list[Size]:
    """Return how many windows fit: of kernels under `key`, at strides that are 1, or what stands under `default`."""
    rank = len(sizes)
    kernels, dilations = _each(layer, key, rank), _each(layer, "dilation_rate", rank)
    strides = _each(layer, "strides", rank, layer.config[default] if default else 1)
    valid = layer.config.get("padding", "valid") == "valid"
    spans = [(k - 1) * d if valid else 0 for k, d in zip(kernels, dilations, strict=True)]
    return [_steps(*each) for each in zip(sizes, spans, strides, strict=True)]


def _convolved(layer: Layer, shape: Shape) -> Shape:
    sizes, channels, first = _split(layer, shape)
    counts = _windows(layer, sizes, "kernel_size", None)
    if layer.kind in DEPTHWISE:
        channels = _times(channels, _each(layer, "depth_multiplier", 1)[0])
    else:
        (channels,) = _each(layer, "filters", 1)
    return _image(shape[0], counts, channels, first)


def _transposed(layer: Layer, shape: Shape) -> Shape | None:
    sizes, _, first = _split(layer, shape)
    rank = len(sizes)
    kernels, strides = _each(layer, "kernel_size", rank), _each(layer, "strides", rank)
    if layer.config.get("output_padding") is not None or set(_each(layer, "dilation_rate", rank)) != {1}:
        return None
    more = [
        max(k - s, 0) if layer.config.get("padding") == "valid" else 0 for k, s in zip(kernels, strides, strict=True)
    ]
    counts = [_plus(_times(n, s), m) for n, s, m in zip(sizes, strides, more, strict=True)]
    return _image(shape[0], counts, _each(layer, "filters", 1)[0], first)


def _pooled(layer: Layer, shape: Shape) -> Shape:
    sizes, channels, first = _split(layer, shape)
    return _image(shape[0], _windows(layer, sizes, "pool_size", "pool_size"), channels, first)


def _whole(layer: Layer, shape: Shape) -> Shape:
    sizes, channels, first = _split(layer, shape)
    kept = layer.config.get("keepdims", False)
    return _image(shape[0], [1] * len(sizes), channels, first) if kept else (shape[0], channels)


def _upsampled(layer: Layer, shape: Shape) -> Shape:
    sizes, channels, first = _split(layer, shape)
    factors = _each(layer, "size", len(sizes))
    return _image(shape[0], list(map(_times, sizes, factors)), channels, first)


def _bordered(layer: Layer, shape: Shape) -> Shape:
    sizes, channels, first = _split(layer, shape)
    cropped = layer.kind.startswith("Cropping")
    border = layer.config["cropping" if cropped else "padding"]
    if len(sizes) == 1 and all(isinstance(n, int) for n in border):
        border = [border]
    totals = [sum(pair) * (-1 if cropped else 1) for pair in border]
    return _image(shape[0], [_plus(*each) for each in zip(sizes, totals, strict=True)], channels, first)


def _reshaped(layer: Layer, shape: Shape) -> Shape | None:
    target = [-1] if layer.kind == "Flatten" else list(layer.config["target_shape"])
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if len(sizes) < len(shape) - 1 or target.count(-1) > 1:
        return None
    total, known = prod(sizes), prod(size for size in target if size != -1)
    if total % known or (-1 not in target and known != total):
        return None
    return (shape[0], *[total // known if size == -1 else size for size in target])


def _reshaped_whole(layer: Layer, shape: Shape) -> Shape | None:
    """Return what `ops.reshape` gives, whose target begins with the batch; one that tells no size of it."""
    first, *rest = layer.config["newshape"]
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    told = first in (-1, None) and all(type(size) is int and size > 0 for size in rest)
    return (shape[0], *rest) if told and len(sizes) == len(shape) - 1 and prod(sizes) == prod(rest) else None


def _transposed_axes(layer: Layer, shape: Shape) -> Shape | None:
    order = layer.config["axes"]
    return tuple(shape[axis] for axis in order) if sorted(order) == list(range(len(shape))) else None


def _with_axis(layer: Layer, shape: Shape, size: int = 1) -> Shape:
    place = layer.config["axis"] % (len(shape) + 1)
    return (*shape[:place], size, *shape[place:])


def _reduced(layer: Layer, shape: Shape) -> Shape | None:
    """Return what a maximum or mean over some axes leaves."""
    given, kept = layer.config["axis"], layer.config.get("keepdims", False)
    axes = {axis % len(shape) for axis in ([given] if isinstance(given, int) else given)}
    return tuple(1 if i in axes else size for i, size in enumerate(shape) if kept or i not in axes)


def _permuted(layer: Layer, shape: Shape) -> Shape | None:
    order = layer.config["dims"]
    return (shape[0], *[shape[axis] for axis in order]) if sorted(order) == list(range(1, len(shape))) else None


_BY_KIND: dict[str, Callable[[Layer, Shape], Shape | None]] = {
    **dict.fromkeys(CONVOLUTIONS | DEPTHWISE | SEPARABLE, _convolved),
    **dict.fromkeys(TRANSPOSED, _transposed),
    **dict.fromkeys(_POOLED, _pooled),
    **dict.fromkeys(_GLOBAL, _whole),
    **{f"UpSampling{rank}D": _upsampled for rank in (1, 2, 3)},
    **{f"{kind}{rank}D": _bordered for kind in ("ZeroPadding", "Cropping") for rank in (1, 2, 3)},
    **dict.fromkeys(("Flatten", "Reshape"), _reshaped),
    "Dense": lambda layer, shape: (*shape[:-1], _each(layer, "units", 1)[0]),
    "Embedding": lambda layer, shape: (*shape, _each(layer, "output_dim", 1)[0]),
    "RepeatVector": lambda layer, shape: (shape[0], _each(layer, "n", 1)[0], *shape[1:]),
    "Permute": _permuted,
    "keras.ops.Reshape": _reshaped_whole,
    "keras.ops.Transpose": _transposed_axes,
    "keras.ops.ExpandDims": _with_axis,
    **dict.fromkeys(("keras.ops.Max", "keras.ops.Min", "keras.ops.Mean", "keras.ops.Sum"), _reduced),
    **dict.fromkeys((f"keras.ops.{kind} from an initial value on" for kind in ("Max", "Min")), _reduced),
    "keras.ops.Sort": lambda layer, shape: shape,
}
