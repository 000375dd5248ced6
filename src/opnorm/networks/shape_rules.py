"""Rules for nodes without weights: pooling, resizing, moving entries about, and the places where branches meet."""

from math import prod, sqrt
from operator import index
from typing import Any

import numpy as np

from opnorm.bounds.certificates import up
from opnorm.checkpoints.onnx_steering import STEADY
from opnorm.checkpoints.records import Node
from opnorm.networks.effects import (
    BoundWeight,
    Effect,
    Unbounded,
    constants,
    find,
    fits,
    input_shapes,
    per_axis,
    rule,
    text_of,
)
from opnorm.networks.pooling import Window, average_pooling, linear_upsampling, max_pooling, nearest_upsampling
from opnorm.networks.sizes import image_size

SAME = (
    "InputLayer", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout",
    "GaussianNoise", "AlphaDropout", "ActivityRegularization", "Identity", "keras.applications.StochasticDepth",
)  # fmt: skip
MEETINGS = (  # where branches meet; a second input of any other kind is no branch
    "Add", "Subtract", "Sub", "Sum", "Average", "Mean", "Concatenate", "Concat", "Maximum", "Minimum", "Max", "Min",
    "keras.ops.Stack",
)  # fmt: skip
MOVED = (
    "Flatten", "Reshape", "Permute", "Transpose", "Squeeze", "Unsqueeze", "ExpandDims", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
MAXIMA, MINIMA = ("Max", "Maximum"), ("Min", "Minimum")  # of several inputs
_KEPT = ("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D", "Slice", "Split")


@rule(*SAME)
def _(node: Node, bounds: BoundWeight) -> Effect:
    mode = node.weights.get("2") if node.kind == "Dropout" else None  # ONNX's third input
    if (mode is not None and np.any(mode.read())) or not node.options.get("is_test", 1):
        raise Unbounded("it drops entries: it is in training mode")
    return Effect(1.0, "its input, at inference", (1.0, 1.0))


@rule(*MOVED)
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "moves entries")


@rule(*_KEPT)
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "adds zeros or drops entries")


@rule(STEADY)
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(0.0, "the same for all inputs of one shape")


@rule("Masking")
def _(node: Node, bounds: BoundWeight) -> Effect:
    raise Unbounded("makes a mask, and what reads a mask jumps")


@rule("RepeatVector")
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(nearest_upsampling(per_axis(node.options["n"], 1)), "repeats its input")


@rule("Tile")
def _(node: Node, bounds: BoundWeight) -> Effect:
    repeats = find(node.weights, "1")
    if repeats is None or "0" in node.weights or np.any(repeats < 0):
        raise Unbounded("repeats its input as often as something computed says")
    return Effect(up(sqrt(float(np.prod(repeats)))), f"repeats its input {np.prod(repeats):g} times")


@rule("Cast")
def _(node: Node, bounds: BoundWeight) -> Effect:
    if node.options.get("to") not in (None, 1, 10, 11, 16, "float32", "float16", "bfloat16", "float64"):
        raise Unbounded("rounds to integers")  # ONNX: 1 float, 10 float16, 11 double, 16 bfloat16
    return Effect(1.0, "another precision", (1.0, 1.0))


@rule("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "MaxPool")
def _(node: Node, bounds: BoundWeight) -> Effect:
    windows, sizes = windows_of(node), _pooled_size(node)
    constant = max_pooling(windows, sizes)
    return Effect(
        constant, f"max pooling{_at(sizes)}: root of the number of windows that read one pixel", sized=bool(sizes)
    )


@rule("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "AveragePool")
def _(node: Node, bounds: BoundWeight) -> Effect:
    windows, sizes = windows_of(node), _pooled_size(node)
    if "pool_size" in node.options:  # Keras; its PyTorch backend repeats the border where padding is uneven
        constant = max(average_pooling(windows, sizes, counts=counts) for counts in ("pixels", "replicate"))
    else:
        _require_windows(node, windows)
        counted = "window" if node.options.get("count_include_pad", 0) else "pixels"
        constant = average_pooling(windows, sizes, counts=counted)
    text = "norm of its matrix" if sizes else "largest row sum of A A^T over every image size"
    return Effect(constant, f"average pooling{_at(sizes)}: {text}", sized=bool(sizes))


def _require_windows(node: Node, windows: list[Window]) -> None:
    """Raise where an image holds no window: some runtimes give a result there, others none."""
    sizes = image_size(node)
    if sizes and any(
        not isinstance(w.pads, str) and n + sum(w.pads) < w.extent for w, n in zip(windows, sizes, strict=False)
    ):
        raise Unbounded("a window is longer than the image")


def _pooled_size(node: Node) -> tuple[int, ...] | None:
    """Return the size of the images where the model fixes it, and a window fits into them."""
    sizes, windows = image_size(node), windows_of(node)
    fits = sizes is not None and len(sizes) == len(windows)
    return sizes if fits and all(w.fits(n) for w, n in zip(windows, sizes or (), strict=True)) else None


def pooled_windows(node: Node) -> list[Window] | None:
    """Return the windows of a pooling layer where its image's size is known and none reads over the border."""
    sizes, windows = _pooled_size(node), windows_of(node)
    return windows if sizes is not None and all(w.is_inside(n) for w, n in zip(windows, sizes, strict=True)) else None


def pooled_shape(node: Node) -> tuple[int, ...] | None:
    """Return the pixels behind a pooling layer where its image's size is known."""
    sizes, windows = _pooled_size(node), windows_of(node)
    if sizes is None or not all(window.is_counted(n) for window, n in zip(windows, sizes, strict=True)):
        return None
    return tuple(len(window.starts(n)[0]) for window, n in zip(windows, sizes, strict=True))


def _at(sizes: tuple[int, ...] | None) -> str:
    return f" at {'x'.join(map(str, sizes))}" if sizes else ""


def windows_of(node: Node) -> list[Window]:
    """Return the windows of a pooling node, one for each axis."""
    options = node.options
    if "pool_size" in options:
        rank = int(node.kind[-2])
        sizes = per_axis(options["pool_size"], rank)
        strides = per_axis(options.get("strides") or sizes, rank)
        pads: str | tuple[int, int] = "same" if options.get("padding") == "same" else (0, 0)
        _require(options.get("padding", "valid"), ("same", "valid"))
        return [Window(k, s, 1, pads) for k, s in zip(sizes, strides, strict=True)]
    return _onnx_windows(options)


def _onnx_windows(options: Any) -> list[Window]:
    rank = len(options["kernel_shape"])
    sizes = per_axis(options["kernel_shape"], rank)
    strides = per_axis(options.get("strides") or 1, rank)
    dilations = per_axis(options.get("dilations") or 1, rank)
    pads = [index(p) for p in options.get("pads") or [0] * (2 * rank)]
    automatic = text_of(options.get("auto_pad", "NOTSET"))
    if automatic == "SAME_LOWER":  # the mirror image of "same": the same norms
        automatic = "SAME_UPPER"
    _require(automatic, ("NOTSET", "SAME_UPPER", "VALID"))
    if len(pads) != 2 * rank or min(pads) < 0 or (automatic == "VALID" and any(pads)):
        raise Unbounded(f"the pads {pads} of {rank} axes")
    ceil_mode = bool(options.get("ceil_mode", 0))
    return [
        Window(
            sizes[i],
            strides[i],
            dilations[i],
            "same" if automatic == "SAME_UPPER" else (pads[i], pads[rank + i]),
            ceil_mode,
        )
        for i in range(rank)
    ]


def _require(value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise Unbounded(f"{value!r} is none of {', '.join(known)}")


@rule("UpSampling1D", "UpSampling2D", "UpSampling3D")
def _(node: Node, bounds: BoundWeight) -> Effect:
    factors = per_axis(node.options["size"], int(node.kind[-2]))
    how = node.options.get("interpolation", "nearest")
    if how == "nearest":
        return Effect(nearest_upsampling(factors), "repeats each pixel")
    if how == "bilinear":
        return Effect(linear_upsampling(factors), "interpolation: largest row sum of A A^T")
    raise Unbounded(f"no bound is known for the interpolation {how!r}")


@rule("Resize", "Upsample")
def _(node: Node, bounds: BoundWeight) -> Effect:
    scales = find(node.weights, "2" if node.kind == "Resize" else "1", "scales")
    place = text_of(node.options.get("coordinate_transformation_mode", "half_pixel"))
    rounding = text_of(node.options.get("nearest_mode", "round_prefer_floor"))
    even = (place, rounding) == ("asymmetric", "floor") or (
        place in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer")
    )
    nearest = text_of(node.options.get("mode", "nearest")) == "nearest"
    if scales is None or not nearest or not even or np.any(scales != np.round(scales)) or np.any(scales < 1):
        raise Unbounded("only repeating each pixel a whole number of times is bounded")
    return Effect(nearest_upsampling(tuple(int(s) for s in scales)), "repeats each pixel")


@rule("Pad")
def _(node: Node, bounds: BoundWeight) -> Effect:
    mode = text_of(node.options.get("mode", "constant"))
    if mode == "constant":
        return Effect(1.0, "adds constants around its input, or drops entries")
    pads = find(node.weights, "1", "pads")
    amounts = [int(p) for p in (node.options.get("pads") or () if pads is None else pads)]
    if mode not in ("edge", "reflect", "wrap") or not amounts:
        width = "" if amounts else " and unknown width"
        raise Unbounded(f"no bound is known for padding of mode {mode!r}{width}")
    pairs = [(max(a, 0), max(b, 0)) for a, b in zip(*np.split(np.array(amounts), 2), strict=True)]
    shapes = input_shapes(node)
    sizes = shapes[0] if shapes and len(shapes[0]) == len(pairs) and "3" not in node.weights else [None] * len(pairs)
    sizes = sizes if min(amounts) >= 0 else [None] * len(pairs)  # else the row is another one than it was
    most = [1 + _copies(mode, *each) for each in zip(pairs, sizes, strict=True)]
    return Effect(up(sqrt(prod(most))), f"one pixel occurs at most {prod(most)} times")


def _copies(mode: str, pair: tuple[int, int], size: Any) -> int:
    """Return how many of the pixels that are added around a row may be copies of one.

    Args:
        mode: Where they are taken from. Of "edge" all are copies of one; others take one after the other.
        pair: How many are added before and behind it.
        size: The pixels of the row, None where that is not known.
    """
    if mode == "wrap" and isinstance(size, int) and size > 0:  # a row of periods
        return -(-sum(pair) // size)
    if mode != "reflect":
        return sum(pair)
    once = isinstance(size, int) and max(pair) < size  # else it is mirrored again, as NumPy does
    return sum(count > 0 for count in pair) if once else sum(pair)


@rule("Add", "Subtract", "Sub", "Sum", "Average", "Mean")
def _(node: Node, bounds: BoundWeight) -> Effect:
    _require_one_shape(node)
    count = len(node.inputs)
    if node.kind == "Sum" and count == 1:
        raise Unbounded("sums over axes of unknown length")  # Keras's operation of that name
    if node.kind in ("Average", "Mean"):
        return Effect(up(1 / count), f"mean of {count} branches", adds=True)
    return Effect(1.0, "sum of branches" if count > 1 else "adds constants", adds=True)


@rule("Concatenate", "Concat", "keras.ops.Stack")
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "branches side by side")


@rule(*MAXIMA, *MINIMA)
def _(node: Node, bounds: BoundWeight) -> Effect:
    _require_one_shape(node)
    return Effect(1.0, "moves no more than the branches side by side")


@rule("Multiply", "Mul")
def _(node: Node, bounds: BoundWeight) -> Effect:
    factors = constants(node)
    if len(node.inputs) != 1 or len(factors) != 1:
        raise Unbounded("a product of two inputs is not Lipschitz on the whole space")
    _require_one_shape(node)
    slopes = float(np.min(factors[0])), float(np.max(factors[0]))
    return Effect(max(map(abs, slopes)), "multiplies with constants", slopes)


@rule("Div")
def _(node: Node, bounds: BoundWeight) -> Effect:
    divisors = constants(node)
    if len(node.inputs) != 1 or len(divisors) != 1 or "0" in node.weights:
        raise Unbounded("a quotient by something computed is not Lipschitz on the whole space")
    _require_one_shape(node)
    smallest = float(np.min(np.abs(divisors[0])))
    if not smallest > 0:
        raise Unbounded("divides by zero")
    exact = bool(np.all(np.frexp(divisors[0])[0] == 0.5))  # powers of two
    slopes = (float(np.min(1 / divisors[0])), float(np.max(1 / divisors[0]))) if exact else None
    return Effect(up(1 / smallest), "divides by constants", slopes)


def _require_one_shape(node: Node) -> None:
    """Raise unless no input is repeated to fit the others: a pixel that is broadcast counts many times."""
    shapes = input_shapes(node)
    stored = [values.shape for values in constants(node)]
    if all(prod(shape) == 1 for shape in stored) and len(node.inputs) == 1:
        return
    if shapes is None:
        raise Unbounded("the shapes of its inputs are not known, and one may be repeated to fit the others")
    if len(set(shapes)) > 1 or not all(fits(shape, shapes[0]) for shape in stored):
        are = "are" if all(isinstance(n, int) for shape in shapes for n in shape[1:]) else "may be"
        raise Unbounded(f"inputs of shapes {shapes} {are} repeated to fit each other")
