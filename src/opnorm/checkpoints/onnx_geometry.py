"""What ONNX's operators do with a constant at each of their inputs."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.onnx_bits import MATMUL_NBITS, Blocks, bits_geometry
from opnorm.checkpoints.onnx_folding import spread_along
from opnorm.checkpoints.onnx_shapes import Shape, is_equation
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array, real_array


class Use(NamedTuple):
    """One use of a constant."""

    kind: str  # the operator, with its domain unless that is ONNX's own
    position: int
    options: Mapping[str, Any]
    constants: Mapping[int, Named]  # the operator's constant inputs, by position
    beside: Shape | None = None  # of the one other input, if there is one and its shape is known
    given: Collection[int] = ()  # the inputs that are not left out


_ROLES = {  # of the inputs, by operator: names that Keras gives them
    "Conv": {1: "kernel", 2: "bias"},
    "ConvTranspose": {1: "kernel", 2: "bias"},
    "ConvInteger": {1: "kernel"},
    "QLinearConv": {3: "kernel", 8: "bias"},
    "Gemm": {1: "kernel", 2: "bias"},
    "MatMul": {1: "kernel"},
    "MatMulInteger": {1: "kernel"},
    "QLinearMatMul": {3: "kernel"},
    MATMUL_NBITS: {1: "kernel", 5: "bias"},
    "BatchNormalization": {1: "gamma", 2: "beta", 3: "moving_mean", 4: "moving_variance"},
    "LayerNormalization": {1: "gamma", 2: "beta"},
    "InstanceNormalization": {1: "gamma", 2: "beta"},
    "LSTM": {1: "kernel", 2: "recurrent_kernel", 3: "bias", 7: "peephole"},
    "GRU": {1: "kernel", 2: "recurrent_kernel", 3: "bias"},
    "RNN": {1: "kernel", 2: "recurrent_kernel", 3: "bias"},
    "Gather": {0: "embeddings"},
}
_SCALES = {"QLinearConv": {3: (4, 5)}, "QLinearMatMul": {0: (1, 2), 3: (4, 5)}}  # kernel: its scale and zero point
RECURRENT = ("LSTM", "GRU", "RNN")  # whose attributes do not change what their kernels are
TOGETHER = {
    "BatchNormalization",
    "Einsum",
    MATMUL_NBITS,
    *_SCALES,
}  # what a constant is depends on the constants beside it
_BESIDE = {  # of ONNX's own operators: those whose constants are added, compared, chosen from, or steer
    "Add", "Sub", "Sum", "Mean", "Concat", "Where", "Max", "Min", "Clip", "Pad", "Resize", "Upsample", "Pow", "Dropout",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "OneHot", "Range", "TopK",
    "QuantizeLinear", "NonMaxSuppression", "Mod", "Shape", "Size", "PRelu",
}  # fmt: skip
SCALE_OF_INTEGERS = "the scale or zero point of quantized numbers"
_INTEGER = "integers, whose scale is multiplied by a later operator"


def role(kind: str, position: int) -> str:
    """Return the name of an operator's input, or its number."""
    return _ROLES.get(kind, {}).get(position, str(position))


def use_geometry(use: Use, tensor: Named) -> Geometry:
    """Return what an operator does with a constant."""
    what = role(use.kind, use.position)
    if tensor.dtype in ("string", "bool"):
        return g.nothing(use.kind, f"{tensor.dtype}: no real numbers")
    if what in ("bias", "beta"):
        return g.nothing(use.kind, g.BIAS)
    if tensor.dtype not in FLOATS and not tensor.dtype.startswith(("float8", "float4", "int", "uint")):
        return g.unknown(use.kind, f"{tensor.dtype}: no real numbers that opnorm reads")
    found = _MAPS.get(use.kind, _other)(use, tensor)
    found = _dequantized(use, found) if use.kind in _SCALES else found
    if what.endswith("kernel") and found.operator is None:
        return g.unknown(use.kind, found.reason)
    return found


def _dequantized(use: Use, found: Geometry) -> Geometry:
    places = _SCALES[use.kind].get(use.position)
    if places is None:
        return g.nothing(use.kind, SCALE_OF_INTEGERS)
    scale, zero = (use.constants.get(place) for place in places)
    axis = 0 if use.kind == "QLinearConv" else -1 if use.position else -2  # a matrix on the left: one for each row
    return _rescaled(found, scale, zero, axis)


def _rescaled(found: Geometry, scale: Named | None, zero: Named | None, axis: int) -> Geometry:
    if scale is None or found.operator is None:
        return g.unknown(found.kind, g.QUANTIZED if found.operator else found.reason)

    def factor(array: Array) -> Array:
        shift = 0.0 if zero is None else spread_along(real_array(zero.read(), "zero_point"), array.shape, axis)
        return np.asarray((array - shift) * spread_along(real_array(scale.read(), "scale"), array.shape, axis))

    return g.scaled(found, factor, "integers times their scale")


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
        return g.unknown(use.kind, _INTEGER)
    sliding = _sliding(use, len(tensor.shape))
    if isinstance(sliding, str):
        return g.unknown(use.kind, sliding)
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
        return g.unknown(use.kind, _INTEGER) if use.position < 2 else g.nothing(use.kind, SCALE_OF_INTEGERS)
    if use.position not in (0, 1, 3):
        return _other(use, tensor)
    if len(tensor.shape) < 2:
        return g.reshaped(use.kind, "vector", (max(tensor.shape, default=1), 1))
    if any(n != 1 for n in tensor.shape[:-2]):
        return g.unknown(use.kind, "a stack of matrices, and the file does not say whether they share their input")
    if use.position == 0:
        return g.rows(use.kind) if len(tensor.shape) == 2 else g.reshaped(use.kind, "matrix", tensor.shape[-2:])
    return g.columns(use.kind) if len(tensor.shape) == 2 else g.reshaped(use.kind, "matrix", tensor.shape[-2:])


def _packed(use: Use, tensor: Named) -> Geometry:
    if use.position in (2, 3):
        return g.nothing(use.kind, SCALE_OF_INTEGERS)
    computed = {2, 3} & (set(use.given) - set(use.constants))
    if use.position != 1 or 4 in use.given or computed:
        return g.unknown(use.kind, "an order of its inputs, or scales that are computed, which are not followed")
    sizes = (use.options.get(name, default) for name, default in (("N", 0), ("K", 0), ("bits", 4), ("block_size", 0)))
    return bits_geometry(tensor, use.constants.get(2), use.constants.get(3), Blocks(*map(int, sizes)))


def _batch_normalization(use: Use, tensor: Named) -> Geometry:
    variance = use.constants.get(4)
    if use.position != 1:
        return g.nothing(use.kind, g.MEAN if use.position == 3 else "part of the map of `gamma`")
    if variance is None or variance.shape != tensor.shape or use.options.get("training_mode"):
        return g.unknown(use.kind, "no variance of its shape is in the file, or it is taken from each batch")
    return g.batch_normalization(use.kind, variance.read, float(use.options.get("epsilon", 1e-5)))


def _recurrent(use: Use, tensor: Named) -> Geometry:
    if use.position not in (1, 2):
        return _other(use, tensor) if use.position == 7 else g.nothing(use.kind, "a starting state or lengths")
    if len(tensor.shape) != 3:
        return g.unknown(use.kind, f"a recurrent kernel with {len(tensor.shape)} axes")
    return g.stacked(use.kind, "matrix (gates, in), all gates together, for each direction")


def _gather(use: Use, tensor: Named) -> Geometry:
    if use.position or tensor.dtype not in FLOATS:
        return g.nothing(use.kind, "indices, or a table of integers")
    if len(tensor.shape) != 2 or use.options.get("axis", 0):
        return g.unknown(use.kind, "a table that is no embedding")
    return g.columns(use.kind, "matrix (tokens, features)")


def _factor(use: Use, tensor: Named) -> Geometry:
    """Return the geometry of numbers that each entry is multiplied with, or divided by, its own one."""
    if use.kind == "Div" and use.position == 0:
        return g.nothing(use.kind, "a constant that is divided by something computed: no linear map")
    if not _covers(use.beside, tensor.shape):
        return g.unknown(use.kind, "the shape of the other factor is not known, and it may be repeated to fit")
    if use.kind == "Div":
        return g.diagonal(use.kind, "diagonal, divides each entry by its own number", _inverse)
    return g.diagonal(use.kind, "diagonal, multiplies each entry with its own number", lambda array: array)


def _inverse(array: Array) -> Array:
    with np.errstate(divide="ignore"):  # one that divides by zero has no norm, and the operator says so
        return 1 / array


def _covers(shape: Shape | None, factors: tuple[int, ...]) -> bool:
    """Return whether no entry of a value of this shape meets several of the factors."""
    if all(n == 1 for n in factors):
        return True
    if shape is None or len(factors) > len(shape):
        return False
    return all(n in (1, size) for n, size in zip(factors[::-1], shape[::-1], strict=False))


def _einsum(use: Use, tensor: Named) -> Geometry:
    equation = str(use.options.get("equation", "")).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "->" not in equation or len(use.constants) != 1 or not is_equation(equation, 2):
        return g.unknown(use.kind, f"the equation {equation!r} with this constant at {use.position}")
    if use.position == 0:
        equation = f"{terms[1]},{terms[0]}->{equation.split('->')[1]}"
    found = g.einsum(use.kind, equation, len(tensor.shape))
    return found if found.operator else g.unknown(use.kind, found.reason)


def _normalized(use: Use, tensor: Named) -> Geometry:
    return g.nothing(use.kind, g.SCALE) if use.position == 1 else _other(use, tensor)


def _other(use: Use, tensor: Named) -> Geometry:
    own = "." not in use.kind and " " not in use.kind
    if tensor.dtype not in FLOATS and own and not tensor.dtype.startswith("float"):
        return g.nothing(use.kind, f"integers that steer {use.kind}")
    if use.kind in _BESIDE:
        return g.nothing(use.kind, f"an input of {use.kind}, which adds it, compares with it or is steered by it")
    return g.unknown(use.kind, f"an input of {use.kind}, of which opnorm knows no linear map")


_MAPS: dict[str, Callable[[Use, Named], Geometry]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"), _convolution),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"), _normalized
    ),
    "Gemm": _gemm,
    MATMUL_NBITS: _packed,
    "DequantizeLinear": lambda use, _: g.nothing(use.kind, SCALE_OF_INTEGERS),  # of the integers of an activation
    "BatchNormalization": _batch_normalization,
    "Gather": _gather,
    "Einsum": _einsum,
    "Mul": _factor,
    "Div": _factor,
}
