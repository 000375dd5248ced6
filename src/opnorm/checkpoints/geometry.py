"""Builders of geometries: from a kernel's layout and a layer's settings to the operator that the layer applies."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.checkpoints.records import Geometry, Part
from opnorm.checks import Array, positive_integers, real_array
from opnorm.operators.convolution import Convolution
from opnorm.operators.equations import einsum_axes, einsum_operator
from opnorm.operators.linear import BlockDiagonal, Diagonal
from opnorm.operators.sizes import Adjoint

Read = Callable[[], np.ndarray]

BIAS = "a bias is added, not multiplied"
MEAN = "a mean is subtracted, not multiplied"
SCALE = "scales a vector that was normalized: together no linear map"
STATE = "state of the training, no part of the network"
OPTIMIZER = "optimizer state"
COUNTER = "a counter, no part of the network"
INTEGERS = "integers, and nothing says what they stand for"
SCALAR = "a single number"
QUANTIZED = "quantized: the stored integers are not the matrix that the layer applies"


_BLOCKS = 2**14  # that a stack of matrices may have: each takes a proof of its own


class Sliding(NamedTuple):
    """How a convolution slides, in Keras's words."""

    strides: Any = 1
    padding: Any = "same"
    dilation_rate: Any = 1
    groups: Any = 1


def nothing(kind: str, reason: str, *, assumed: bool = False) -> Geometry:
    """Return the geometry of a tensor that is no linear map, and why."""
    return Geometry(kind, "no linear map", None, reason, assumed)


def unknown(kind: str, reason: str, *, assumed: bool = False) -> Geometry:
    """Return the geometry of a tensor that may be a map, whose norm is not known, and why."""
    return Geometry(kind, "unknown", None, reason, assumed, unknown=True)


def columns(kind: str, text: str = "matrix (in, out)", *, assumed: bool = False) -> Geometry:
    """Return the geometry of `y = x @ kernel`."""
    return Geometry(kind, text, lambda kernel: aslinearoperator(kernel.T), assumed=assumed)


def rows(kind: str, text: str = "matrix (out, in)", *, assumed: bool = False) -> Geometry:
    """Return the geometry of `y = kernel @ x`."""
    return Geometry(kind, text, aslinearoperator, assumed=assumed)


def reshaped(kind: str, text: str, shape: tuple[int, ...], *, assumed: bool = False) -> Geometry:
    """Return the geometry of `y = x @ kernel.reshape(shape)`."""
    return Geometry(kind, text, lambda kernel: aslinearoperator(kernel.reshape(shape).T), assumed=assumed)


def unfolded(
    kind: str, text: str, order: tuple[int, ...], shape: tuple[int, int], *, assumed: bool = False
) -> Geometry:
    """Return the geometry of the matrix `kernel.transpose(order).reshape(shape)`."""
    return Geometry(
        kind, text, lambda kernel: aslinearoperator(kernel.transpose(order).reshape(shape)), assumed=assumed
    )


def scaled_columns(kind: str, scale: Read, axis: int) -> Geometry:
    """Return the geometry of `y = x @ (kernel / scale)`, whose kernel is stored as integers."""

    def operator(kernel: Array) -> LinearOperator:
        return aslinearoperator((kernel / np.expand_dims(real_array(scale(), "scale"), axis)).T)

    return Geometry(kind, "matrix (in, out), integers divided by their scale", operator)


def einsum(kind: str, equation: Any, rank: int, *, assumed: bool = False) -> Geometry:
    """Return the geometry of `einsum(equation, x, kernel)`."""
    try:
        axes = einsum_axes(equation)
    except (ValueError, AttributeError):
        return unknown(kind, f"the equation {equation!r} is not one matrix applied to every position")
    if sorted([*axes[0], *axes[1], *axes[2]]) != list(range(rank)):
        return unknown(kind, f"the equation {equation!r} does not fit a kernel with {rank} axes")
    return Geometry(
        kind, f"matrix of the equation {equation}", lambda kernel: einsum_operator(kernel, equation), assumed=assumed
    )


def convolution(kind: str, shape: Sequence[int], sliding: Sliding, *, assumed: bool = False) -> Geometry:
    """Return the geometry of a convolution with a kernel (*spatial, in / groups, out), for every image size."""
    return _slid(kind, "convolution", shape, sliding, lambda kernel: kernel, assumed)


def transposed(kind: str, shape: Sequence[int], sliding: Sliding, *, assumed: bool = False) -> Geometry:
    """Return the geometry of a transposed convolution with a kernel (*spatial, out / groups, in), for every size."""
    return _adjoint(_slid(kind, "transposed convolution", shape, sliding, lambda kernel: kernel, assumed))


def depthwise(kind: str, shape: Sequence[int], sliding: Sliding, *, assumed: bool = False) -> Geometry:
    """Return the geometry of a depthwise convolution with a kernel (*spatial, channels, multiplier)."""
    if len(shape) not in (3, 4, 5):
        return unknown(kind, f"a depthwise kernel with {len(shape)} axes")
    *spatial, channels, multiplier = shape
    joint = (*spatial, 1, channels * multiplier)
    sliding = sliding._replace(groups=channels)
    return _slid(kind, "depthwise convolution", joint, sliding, lambda kernel: kernel.reshape(joint), assumed)


def channels_first(kind: str, shape: Sequence[int], sliding: Sliding, *, assumed: bool = False) -> Geometry:
    """Return the geometry of a convolution with a kernel (out, in / groups, *spatial): PyTorch and ONNX."""
    return _slid(kind, "convolution", _last(shape), sliding, _to_last, assumed)


def channels_first_transposed(kind: str, shape: Sequence[int], sliding: Sliding) -> Geometry:
    """Return the geometry of a transposed convolution with a kernel (in, out / groups, *spatial): PyTorch, ONNX."""
    return _adjoint(_slid(kind, "transposed convolution", _last(shape), sliding, _to_last, False))


def diagonal(kind: str, text: str, factors: Callable[[Array], Array], *, assumed: bool = False) -> Geometry:
    """Return the geometry of a multiplication of each entry with its own number."""
    return Geometry(kind, text, lambda array: Diagonal(factors(array)), assumed=assumed)


def batch_normalization(kind: str, variance: Read, epsilon: float, *, assumed: bool = False) -> Geometry:
    """Return the geometry of `gamma`: at inference an entry is multiplied with gamma / sqrt(variance + epsilon)."""

    def factors(gamma: Array) -> Array:
        return gamma / np.sqrt(real_array(variance(), "variance") + epsilon)

    return diagonal(kind, f"diagonal gamma / sqrt(variance + {epsilon:g})", factors, assumed=assumed)


def batch_variance(kind: str, epsilon: float) -> Geometry:
    """Return the geometry of the variance of a batch normalization without gamma."""
    return diagonal(kind, f"diagonal 1 / sqrt(variance + {epsilon:g})", lambda v: 1 / np.sqrt(v + epsilon))


def stacked(
    kind: str,
    text: str,
    blocks: Callable[[Array], Array] = np.asarray,
    *,
    each: str = "",
    assumed: bool = False,
) -> Geometry:
    """Return the geometry of matrices, each applied to its own input: a recurrence's directions, experts.

    Args:
        kind: The layer.
        text: What it does.
        blocks: Returns the matrices (count, out, in) of a kernel.
        each: What one is called, which makes each a part of its own.
        assumed: Whether it is a guess.
    """

    def operator(kernel: Array) -> LinearOperator:
        found = blocks(kernel)
        if len(found) > _BLOCKS:
            raise ValueError(f"{len(found)} matrices side by side, more than {_BLOCKS}")
        return BlockDiagonal([aslinearoperator(one) for one in found])

    def parts(kernel: Array) -> Iterator[Part]:
        return (Part(f"{each} {i}", aslinearoperator(one)) for i, one in enumerate(blocks(kernel)))

    return Geometry(kind, text, operator, assumed=assumed, parts=parts if each else None)


def scaled(geometry: Geometry, factor: Callable[[Array], Array], text: str) -> Geometry:
    """Return `geometry` of the values after `factor` was applied to them."""
    operator = geometry.operator
    if operator is None:
        return geometry
    readings = tuple(scaled(one, factor, text) for one in geometry.readings)
    parts = geometry.parts
    return geometry._replace(
        text=f"{geometry.text}, {text}",
        operator=lambda array: operator(factor(array)),
        readings=readings,
        parts=None if parts is None else lambda array: parts(factor(array)),
    )


def _slid(
    kind: str, name: str, shape: Sequence[int], sliding: Sliding, layout: Callable[[Array], Array], assumed: bool
) -> Geometry:
    rank = len(shape) - 2
    if rank not in (1, 2, 3):
        return unknown(kind, f"a {name} kernel with {len(shape)} axes")
    try:
        settings = _checked(sliding, rank, shape[-1])
    except ValueError as error:
        return unknown(kind, str(error))

    def operator(kernel: Array) -> Convolution:
        return Convolution(
            layout(kernel),
            strides=settings.strides,
            padding=settings.padding,
            dilation_rate=settings.dilation_rate,
            groups=settings.groups,
        )

    return Geometry(kind, _describe(name, settings), operator, assumed=assumed)


def _adjoint(geometry: Geometry) -> Geometry:
    operator = geometry.operator
    if operator is None:
        return geometry
    return geometry._replace(operator=lambda kernel: Adjoint(operator(kernel)))  # type: ignore[arg-type]


def _checked(sliding: Sliding, rank: int, outputs: int) -> Sliding:
    """Return the settings as `Convolution` takes them, or raise ValueError: they come from files."""
    strides = positive_integers(sliding.strides, rank, "strides")
    dilation_rate = positive_integers(sliding.dilation_rate, rank, "dilation_rate")
    (groups,) = positive_integers(sliding.groups, 1, "groups")
    if outputs % groups:
        raise ValueError(f"{groups} groups do not divide {outputs} output channels")
    padding = sliding.padding
    if isinstance(padding, str) and padding not in ("same", "valid") and (padding != "causal" or rank != 1):
        raise ValueError(f"the padding {padding!r} does not add zeros, so the bound for zeros does not hold")
    return Sliding(strides, padding, dilation_rate, groups)


def _describe(name: str, sliding: Sliding) -> str:
    parts = [name]
    for word, value in (("strides", sliding.strides), ("dilation", sliding.dilation_rate)):
        if set(value) != {1}:
            parts.append(f"{word} {value[0] if len(set(value)) == 1 else 'x'.join(map(str, value))}")
    if sliding.groups > 1:
        parts.append(f"groups {sliding.groups}")
    parts.append(f"padding {sliding.padding}" if isinstance(sliding.padding, str) else "explicit padding")
    return ", ".join(parts)


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[2:], *shape[1::-1])


def _to_last(kernel: Array) -> Array:
    return kernel.transpose(*range(2, kernel.ndim), 1, 0)
