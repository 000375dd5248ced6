"""What TFLite's operators do with a constant at each of their inputs."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import FLOATS
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array

Shape = tuple[int, ...]

KERNELS = {  # the inputs that are weights, by operator
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D"), (1,)),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), (1,)),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 9), 16),
    "LSTM": (*range(1, 9), 16),
    **dict.fromkeys(("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"), (1, 2)),
}
_BIASES = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D"), (2,)),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), (3,)),
    **dict.fromkeys(("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"), (12, 13, 14, 15, 17)),
    **dict.fromkeys(("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"), (3,)),
}
_BESIDE = {  # operators whose constants are added, compared, chosen from, or steer
    "ADD", "SUB", "ADD_N", "CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2", "PAD", "PADV2", "POW",
    "EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "LOGICAL_AND", "LOGICAL_OR", "PRELU",
    "SQUARED_DIFFERENCE", "WHERE", "RANGE", "FILL", "ONE_HOT",
}  # fmt: skip


class Use(NamedTuple):
    """One use of a constant."""

    kind: str
    position: int
    options: Mapping[str, int]
    shapes: Sequence[Shape]  # of the first inputs, as the file has them; () where one is left out


def use_geometry(use: Use, shape: Shape, dtype: str, *, scaled: bool) -> Geometry:
    """Return what an operator does with a constant, of the numbers that it stands for.

    Args:
        use: The operator and the input.
        shape: The constant's shape.
        dtype: What it is stored as.
        scaled: Whether the file says which numbers its integers stand for.
    """
    kernel = use.position in KERNELS.get(use.kind, ())
    if use.position in _BIASES.get(use.kind, ()):
        return g.nothing(use.kind, g.BIAS)
    steering = dtype in ("int32", "int64") and not kernel and use.kind not in ("MUL", "DIV")
    if dtype not in FLOATS and (not scaled or steering):
        reason = f"a mask of {use.kind}" if dtype == "bool" else f"integers that steer {use.kind}"
        return g.unknown(use.kind, g.INTEGERS) if kernel or "CUSTOM" in use.kind else g.nothing(use.kind, reason)
    found = _MAPS.get(use.kind, _other)(use, shape)
    return g.unknown(use.kind, found.reason) if kernel and found.operator is None else found


def _sliding(use: Use, axes: str) -> g.Sliding | None:
    """Return how a convolution slides over axes, H for the height and so on; None where its options are not there."""
    options = use.options
    if not options:
        return None
    strides = tuple(options[f"Stride{axis}"] for axis in axes)
    dilation = tuple(options.get(f"Dilation{axis}Factor", 1) for axis in axes)
    padding = {0: "same", 1: "valid"}.get(options["Padding"], f"number {options['Padding']}")
    return g.Sliding(strides, padding, dilation)


def _convolution(use: Use, shape: Shape) -> Geometry:
    """Return a convolution: (out, height, width, in / groups), in 3-D (depth, height, width, in, out)."""
    flat = use.kind == "CONV_2D"
    sliding = _sliding(use, "HW" if flat else "DHW")
    if use.position != 1 or sliding is None or len(shape) != (4 if flat else 5):
        return _other(use, shape)
    inputs, outputs = (shape[3], shape[0]) if flat else shape[3:]
    channels = use.shapes[0][-1] if use.shapes[0] else 0
    groups = channels // inputs if inputs else 0
    if groups < 1 or groups * inputs != channels or outputs % groups:
        return g.unknown(use.kind, f"a kernel of {inputs} input channels, and the input has {channels}")
    last = (*shape[1:], shape[0]) if flat else shape
    found = g.convolution(use.kind, last, sliding._replace(groups=groups))
    return g.scaled(found, lambda kernel: kernel.transpose(1, 2, 3, 0), "stored as OHWI") if flat else found


def _depthwise(use: Use, shape: Shape) -> Geometry:
    """Return a depthwise convolution, whose kernel is (1, height, width, channels * multiplier)."""
    sliding = _sliding(use, "HW")
    if use.position != 1 or sliding is None or len(shape) != 4 or shape[0] != 1:
        return _other(use, shape)
    channels, multiplier = (use.shapes[0] or (0,))[-1], use.options["DepthMultiplier"]
    if channels < 1 or shape[3] % channels or multiplier not in (0, shape[3] // channels):
        return g.unknown(use.kind, f"a kernel of {shape[3]} channels, {multiplier} for each of the input's {channels}")
    whole = (*shape[1:3], channels, shape[3] // channels)
    found = g.depthwise(use.kind, whole, sliding)
    return g.scaled(found, lambda kernel: kernel.reshape(whole), "stored as 1HWC")


def _transposed(use: Use, shape: Shape) -> Geometry:
    """Return a transposed convolution: (out, height, width, in), in 3-D (depth, height, width, out, in)."""
    flat = use.kind == "TRANSPOSE_CONV"
    sliding = _sliding(use, "HW" if flat else "DHW")
    if use.position != 1 or sliding is None or len(shape) != (4 if flat else 5):
        return _other(use, shape)
    last = (*shape[1:3], shape[0], shape[3]) if flat else shape
    found = g.transposed(use.kind, last, sliding)
    return g.scaled(found, lambda kernel: kernel.transpose(1, 2, 0, 3), "stored as OHWI") if flat else found


def _connected(use: Use, shape: Shape) -> Geometry:
    if use.position != 1 or len(shape) != 2 or use.options.get("WeightsFormat", 0):
        return _other(use, shape)
    return g.rows(use.kind)


def _recurrent(use: Use, shape: Shape) -> Geometry:
    if use.position not in KERNELS[use.kind] or len(shape) != 2:
        return _other(use, shape)
    return g.rows(use.kind, "matrix (out, in) of one gate")


def _product(use: Use, shape: Shape) -> Geometry:
    """Return the matrix of a product: `x @ W` on the right, `W @ x` on the left; the options may turn each."""
    if any(n != 1 for n in shape[:-2]) or len(shape) < 2 or not use.options:
        return g.unknown(use.kind, "a stack of matrices, and the file does not say whether they share their input")
    turned = bool(use.options["AdjY" if use.position else "AdjX"])
    make, text = (g.rows, "matrix (out, in)") if turned == (use.position == 1) else (g.columns, "matrix (in, out)")
    return g.scaled(make(use.kind, text), lambda array: array.reshape(shape[-2:]), "the last two axes")


def _table(use: Use, shape: Shape) -> Geometry:
    """Return a table in which rows are looked up: GATHER's first input, EMBEDDING_LOOKUP's second."""
    if use.position != (0 if use.kind == "GATHER" else 1):
        return g.nothing(use.kind, f"indices of {use.kind}")
    if len(shape) != 2 or any(use.options.values()):
        return g.unknown(use.kind, "a table that is no embedding")
    return g.columns(use.kind, "matrix (tokens, features)")


def _factor(use: Use, shape: Shape) -> Geometry:
    """Return a multiplication with, or a division by, one number, or each entry's own one."""
    if use.kind == "DIV" and use.position == 0:
        return g.nothing(use.kind, "a constant that is divided by something computed: no linear map")
    others = [other for i, other in enumerate(use.shapes) if i != use.position]
    single = prod(shape) == 1
    if not single and not (len(others) == 1 and _covers(others[0], shape)):
        return g.unknown(use.kind, "the other factor has another shape in the file, and may be repeated to fit")
    inverse = use.kind == "DIV"
    text = (
        "diagonal, divides each entry by its own number" if inverse else "diagonal, multiplies each entry with its own"
    )
    return g.diagonal(use.kind, text, _inverse if inverse else np.asarray, assumed=not single)


def _covers(shape: Shape, factors: Shape) -> bool:
    """Return whether no entry of a value of this shape meets several of the factors."""
    return len(factors) <= len(shape) and all(
        n in (1, size) for n, size in zip(factors[::-1], shape[::-1], strict=False)
    )


def _inverse(array: Array) -> Array:
    with np.errstate(divide="ignore"):  # one that divides by zero has no norm, and the operator says so
        return 1 / array


def _other(use: Use, shape: Shape) -> Geometry:
    if use.kind in _BESIDE:
        return g.nothing(use.kind, f"an input of {use.kind}, which adds it, compares with it or is steered by it")
    return g.unknown(
        use.kind, f"input {use.position} of {use.kind} with {len(shape)} axes: opnorm knows no linear map of it"
    )


_MAPS: dict[str, Callable[[Use, Shape], Geometry]] = {
    **dict.fromkeys(("CONV_2D", "CONV_3D"), _convolution),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), _transposed),
    **dict.fromkeys(("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "RNN", "UNIDIRECTIONAL_SEQUENCE_RNN"), _recurrent),
    **dict.fromkeys(("GATHER", "EMBEDDING_LOOKUP"), _table),
    **dict.fromkeys(("MUL", "DIV"), _factor),
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _connected,
    "BATCH_MATMUL": _product,
}
