"""What ONNX's operators do with a constant at each of their inputs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import FLOATS, Named, guess
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array, real_array


class Use(NamedTuple):
    """One use of a constant."""

    kind: str  # the operator, with its domain unless that is ONNX's own
    position: int
    options: Mapping[str, Any]
    constants: Mapping[int, Named]  # the operator's constant inputs, by position


_ROLES = {  # of the inputs, by operator: names that Keras gives them
    "Conv": {1: "kernel", 2: "bias"},
    "ConvTranspose": {1: "kernel", 2: "bias"},
    "ConvInteger": {1: "kernel"},
    "QLinearConv": {3: "kernel", 8: "bias"},
    "Gemm": {1: "kernel", 2: "bias"},
    "MatMul": {1: "kernel"},
    "MatMulInteger": {1: "kernel"},
    "QLinearMatMul": {3: "kernel"},
    "BatchNormalization": {1: "gamma", 2: "beta", 3: "moving_mean", 4: "moving_variance"},
    "LayerNormalization": {1: "gamma", 2: "beta"},
    "InstanceNormalization": {1: "gamma", 2: "beta"},
    "LSTM": {1: "kernel", 2: "recurrent_kernel", 3: "bias", 7: "peephole"},
    "GRU": {1: "kernel", 2: "recurrent_kernel", 3: "bias"},
    "RNN": {1: "kernel", 2: "recurrent_kernel", 3: "bias"},
    "Gather": {0: "embeddings"},
}
_SCALES = {"QLinearConv": {3: (4, 5)}, "QLinearMatMul": {0: (1, 2), 3: (4, 5)}}  # kernel: its scale and zero point
_MOVES = {
    "Slice",
    "Split",
    "Concat",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
}  # what a matrix survives
_INTEGER = "integers, whose scale is multiplied by a later operator"


def role(kind: str, position: int) -> str:
    """Return the name of an operator's input, or its number."""
    return _ROLES.get(kind, {}).get(position, str(position))


def use_geometry(use: Use, tensor: Named) -> Geometry:
    """Return what an operator does with a constant."""
    what = role(use.kind, use.position)
    if tensor.dtype not in FLOATS and not tensor.dtype.startswith(("float8", "float4", "int", "uint")):
        return g.nothing(use.kind, f"{tensor.dtype}: no real numbers")
    if what in ("bias", "beta"):
        return g.nothing(use.kind, g.BIAS)
    found = _MAPS.get(use.kind, _other)(use, tensor)
    return _dequantized(use, found) if use.kind in _SCALES else found


def rank(geometry: Geometry) -> int:
    """Return how telling a geometry is: of several uses of a constant the most telling one is shown."""
    return (geometry.operator is not None) * 2 - geometry.assumed


def dequantized(use: Use, found: Geometry) -> Geometry:
    """Return the geometry of integers that a DequantizeLinear turns into numbers, of which `found` is the geometry."""
    if use.position != 0 or use.options.get("block_size"):
        return g.nothing(use.kind, "the scale or zero point of quantized numbers")
    axis = int(use.options.get("axis", 1))
    return _rescaled(found, use.constants.get(1), use.constants.get(2), axis)


def _dequantized(use: Use, found: Geometry) -> Geometry:
    places = _SCALES[use.kind].get(use.position)
    if places is None:
        return g.nothing(use.kind, "the scale or zero point of quantized numbers")
    scale, zero = (use.constants.get(place) for place in places)
    axis = 0 if use.kind == "QLinearConv" else -1
    return _rescaled(found, scale, zero, axis)


def _rescaled(found: Geometry, scale: Named | None, zero: Named | None, axis: int) -> Geometry:
    if scale is None or found.operator is None:
        return g.nothing(found.kind, g.QUANTIZED if found.operator else found.reason)

    def factor(array: Array) -> Array:
        shift = 0.0 if zero is None else _along(real_array(zero.read(), "zero_point"), array.ndim, axis)
        return np.asarray((array - shift) * _along(real_array(scale.read(), "scale"), array.ndim, axis))

    return g.scaled(found, factor, "integers times their scale")


def _along(values: Array, axes: int, axis: int) -> Array:
    """Return one number, or one for each index along `axis`, so that it spreads over an array."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * axes
    shape[axis] = -1
    return values.reshape(shape)


def _sliding(use: Use, axes: int) -> g.Sliding | str:
    """Return how a convolution slides, or why that is not known."""
    options, spatial = use.options, axes - 2
    padding = {"SAME_UPPER": "same", "SAME_LOWER": "same", "VALID": "valid"}.get(options.get("auto_pad", "NOTSET"))
    if padding is None:
        pads = list(options.get("pads", [0] * 2 * spatial))
        if len(pads) != 2 * spatial or min(pads, default=0) < 0:
            return f"the pads {pads} of a convolution with {spatial} axes"
        pairs = tuple(zip(pads[:spatial], pads[spatial:], strict=True))
        padding = pairs if any(pads) else "valid"  # type: ignore[assignment]
    ones = [1] * spatial
    return g.Sliding(
        tuple(options.get("strides", ones)), padding, tuple(options.get("dilations", ones)), options.get("group", 1)
    )


def _convolution(use: Use, tensor: Named) -> Geometry:
    if role(use.kind, use.position) != "kernel":
        return _other(use, tensor)
    if use.kind == "ConvInteger":
        return g.nothing(use.kind, _INTEGER)
    sliding = _sliding(use, len(tensor.shape))
    if isinstance(sliding, str):
        return g.nothing(use.kind, sliding)
    if use.kind == "ConvTranspose":  # its pads cut the output off: that only makes the norm smaller
        return g.channels_first_transposed(use.kind, tensor.shape, sliding._replace(padding="same"))
    return g.channels_first(use.kind, tensor.shape, sliding)


def _gemm(use: Use, tensor: Named) -> Geometry:
    if len(tensor.shape) != 2:
        return _other(use, tensor)
    swapped = bool(use.options.get("transB" if use.position else "transA", 0))
    found = g.rows(use.kind) if swapped == (use.position == 1) else g.columns(use.kind)
    alpha = float(use.options.get("alpha", 1.0))
    return found if alpha == 1 else g.scaled(found, lambda array: alpha * array, f"times alpha {alpha:g}")


def _matmul(use: Use, tensor: Named) -> Geometry:
    if use.kind == "MatMulInteger":
        return g.nothing(use.kind, _INTEGER)
    if use.position not in (0, 1, 3):
        return _other(use, tensor)
    if len(tensor.shape) < 2:
        return g.reshaped(use.kind, "vector", (max(tensor.shape, default=1), 1))
    if any(n != 1 for n in tensor.shape[:-2]):
        return g.nothing(use.kind, "a stack of matrices, and the file does not say whether they share their input")
    if use.position == 0:
        return g.rows(use.kind) if len(tensor.shape) == 2 else g.reshaped(use.kind, "matrix", tensor.shape[-2:])
    return g.columns(use.kind) if len(tensor.shape) == 2 else g.reshaped(use.kind, "matrix", tensor.shape[-2:])


def _batch_normalization(use: Use, tensor: Named) -> Geometry:
    if use.position == 1 and 4 in use.constants and use.constants[4].shape == tensor.shape:
        epsilon = float(use.options.get("epsilon", 1e-5))
        return g.batch_normalization(use.kind, use.constants[4].read, epsilon)
    reason = {3: g.MEAN, 4: "part of the map of `gamma`"}.get(use.position, "no variance of its shape is in the file")
    return g.nothing(use.kind, reason)


def _recurrent(use: Use, tensor: Named) -> Geometry:
    if use.position not in (1, 2):
        return g.nothing(use.kind, "peepholes or a starting state" if use.position > 3 else g.BIAS)
    if len(tensor.shape) != 3:
        return g.nothing(use.kind, f"a recurrent kernel with {len(tensor.shape)} axes")
    return g.stacked(use.kind, "matrix (gates, in), all gates together, for each direction")


def _gather(use: Use, tensor: Named) -> Geometry:
    if use.position or len(tensor.shape) != 2 or use.options.get("axis", 0) or tensor.dtype not in FLOATS:
        return g.nothing(use.kind, "indices, or a table that is no embedding")
    return g.columns(use.kind, "matrix (tokens, features)")


def _other(use: Use, tensor: Named) -> Geometry:
    if tensor.dtype not in FLOATS:
        return g.nothing(use.kind, g.INTEGERS if use.kind in ("", "unused") else f"integers that steer {use.kind}")
    if use.kind in _MOVES and len(tensor.shape) > 1:
        found = guess(tensor, {})
        return found._replace(text=f"{found.text}; the file passes it through {use.kind} first")
    if use.kind in ("Add", "Sub", "Sum"):
        return g.nothing(use.kind, "a constant is added, not multiplied")
    return g.nothing(use.kind, f"an input of {use.kind}, of which no linear map is known")


_MAPS: dict[str, Callable[[Use, Named], Geometry]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"), _convolution),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
        lambda use, _: g.nothing(use.kind, g.SCALE),
    ),
    "Gemm": _gemm,
    "BatchNormalization": _batch_normalization,
    "Gather": _gather,
}
