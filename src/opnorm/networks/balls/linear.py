"""Linear nodes on a ball: kernels, channel factors, means, sums, and what moves entries about."""

from collections.abc import Callable
from math import inf, prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from opnorm.bounds.certificates import gamma
from opnorm.checkpoints.records import Node
from opnorm.checks import Array, real_array
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, TINY, Found, Space, Value, length, rounding
from opnorm.networks.effects import RULES, BoundWeight, Effect, constants, find
from opnorm.networks.kernel_products import form_of
from opnorm.networks.linear_rules import CONVOLUTIONS, DEPTHWISE, channel_factors, kernel_of
from opnorm.operators.convolution import Convolution, alike

Map = Callable[[Array], Array]  # of a stack of values, (stack, *shape)


class Linear(NamedTuple):
    """A linear map of values."""

    apply: Map
    size: Map  # the same with the magnitudes of its numbers
    products: int  # in one sum, and roundings of its numbers
    norm: float  # proved, inf where it is not known
    rows: Array | None = None  # the norm of each row


def through(linear: Linear, value: Value, added: Array | float = 0.0) -> Found:
    """Return what a linear map, and a constant added to it, make of a value."""
    error = linear.size(value.error[None])[0] + rounding(
        linear.products, linear.size(np.abs(value.centre)[None])[0] + np.abs(added)
    )
    lost = rounding(linear.products, linear.size(value.size[None])[0])
    rest = linear.size(value.rest[None])[0]
    if linear.rows is not None:
        rest = np.minimum(rest, linear.rows * value.whole)
    whole = value.whole * linear.norm if value.whole else 0.0
    return Found(
        linear.apply(value.centre[None])[0] + added,
        error * SPARE + TINY,
        linear.apply(value.tangents),
        (rest + lost) * SPARE,
        (min(whole, length(rest)) + length(lost)) * SPARE,
    )


def norm_of(node: Node, bounds: BoundWeight) -> float:
    """Return the proved constant of a node by its global rule, inf where it has none."""
    try:
        return RULES[node.kind](node, bounds).constant
    except Exception:  # no proof, and no bound of the whole by this way
        return inf


def scaling(factors: Array, count: int = 1) -> Linear:
    """Return the multiplication of each entry with its own number, or that of its place."""
    size = np.abs(factors)
    return Linear(
        lambda v: _ranked(v, factors.ndim) * factors,
        lambda v: _ranked(v, factors.ndim) * size,
        count,
        float(size.max(initial=0.0)) * SPARE,
    )


def moving(move: Map, norm: float = 1.0) -> Linear:
    """Return a map that moves entries about: no number is changed."""
    return Linear(move, move, 0, norm)


def moved_by(move: Map, norm: float = 1.0) -> Rule:
    """Return the rule of a node that moves entries about."""
    return lambda values, space: through(moving(move, norm), values[0])


def _bias(node: Node, inputs: tuple[str, ...] = ("bias",)) -> Array | float:
    found = find(node.weights, *inputs)
    if set(node.weights) - {"kernel", *inputs}:
        raise not_followed(f"its {', '.join(sorted(set(node.weights) - {'kernel', *inputs}))}")
    return 0.0 if found is None else found * float(node.options.get("beta", 1.0) if node.kind == "Gemm" else 1.0)


def dense(node: Node, bounds: BoundWeight) -> Rule:
    """Return the rule of a node that multiplies with its one kernel, a matrix, from the right.

    Raises:
        Unbounded: When it does something else.
    """
    kernel, bias = form_of(node).values, _bias(node)
    if "kernel" not in node.weights or node.options.get("transA"):
        raise not_followed("a matrix on the left, or of what is transposed")
    rank = len(node.weights["kernel"].shape)
    if rank == 1:
        return _vector(kernel, norm_of(node, bounds))
    if rank > 2:
        raise not_followed(f"a matrix with {rank} axes")
    size, norm = np.abs(kernel), norm_of(node, bounds)
    rows = np.linalg.norm(kernel, axis=0) * SPARE
    linear = Linear(lambda v: v @ kernel, lambda v: v @ size, len(kernel) + 4, norm)

    def multiplied(values: list[Value], space: Space) -> Found:
        (value,) = values
        flat = value.centre.size == value.centre.shape[-1]  # else a row would count once for each position
        return through(linear._replace(rows=rows if flat else None), value, bias)

    return multiplied


def _vector(kernel: Array, norm: float) -> Rule:
    """Return the rule of a MatMul by a vector, which leaves no axis behind."""
    column, size = kernel[:, 0], np.abs(kernel[:, 0])
    linear = Linear(lambda v: v @ column, lambda v: v @ size, len(column) + 4, norm)
    return lambda values, space: through(linear, values[0])


@rule("EinsumDense")
def _(node: Node, bounds: BoundWeight) -> Rule:
    kernel, bias = find(node.weights, "kernel"), _bias(node)
    if kernel is None:
        raise not_followed("no kernel")
    kernel_of(node)  # raises where something changes it
    linear = einsum(str(node.options["equation"]), kernel, norm_of(node, bounds))
    return lambda values, space: through(linear, values[0], bias)


def einsum(equation: str, kernel: Array, norm: float) -> Linear:
    """Return the map of an einsum equation with a kernel as its second operand."""
    first, _, rest = equation.replace(" ", "").partition(",")
    second, _, result = rest.partition("->")
    free = next(letter for letter in "zyxwvutsrqponmlkjihgfedcbaZYX" if letter not in equation)
    front = "" if "..." in first else free
    path = f"{front}{first},{second}->{front}{result}"
    summed = prod(n for letter, n in zip(second, kernel.shape, strict=True) if letter not in result)
    size = np.abs(kernel)
    return Linear(
        lambda v: np.einsum(path, v, kernel, optimize=True),
        lambda v: np.einsum(path, v, size, optimize=True),
        summed + 4,
        norm,
    )


@rule(*CONVOLUTIONS, *DEPTHWISE)
def _(node: Node, bounds: BoundWeight) -> Rule:
    weight = kernel_of(node)
    operator = weight.geometry.operator and weight.geometry.operator(real_array(weight.read(), weight.name))
    automatic = str(node.options.get("auto_pad", "NOTSET"))
    if not isinstance(operator, Convolution) or "LOWER" in automatic:
        raise not_followed("a convolution of a kind that is not evaluated")
    first = node.kind == "Conv" or node.options.get("data_format") == "channels_first"
    name = "depthwise_kernel" if "depthwise_kernel" in node.weights else "kernel"
    bias = find(node.weights, "bias")
    if set(node.weights) - {name, "bias"}:
        raise not_followed("weights beside its kernel")
    kept: dict[tuple[int, ...], Linear] = {}
    norm = norm_of(node, bounds)

    def convolved(values: list[Value], space: Space) -> Found:
        (value,) = values
        sizes = value.centre.shape[2:] if first else value.centre.shape[1:-1]
        if sizes not in kept:
            kept[sizes] = _sliding(operator, sizes, first, norm)
        added = 0.0 if bias is None else bias.reshape(-1, *[1] * len(sizes)) if first else bias
        return through(kept[sizes], value, added)

    return convolved


def _sliding(operator: Convolution, sizes: tuple[int, ...], first: bool, norm: float) -> Linear:
    """Return a convolution on images of one size."""

    def of(kernel: Array) -> Map:
        made = alike(operator, kernel, sizes)

        def applied(v: Array) -> Array:
            images = np.moveaxis(v, 2, -1) if first else v  # (stack, images, *sizes, channels)
            shape = (*v.shape[:2], *made.output_shape, kernel.shape[-1])
            flat = images.reshape(prod(v.shape[:2]), prod(images.shape[2:]))
            found = made.matmat(flat.T).T.reshape(shape) if len(flat) else np.zeros(shape)
            return np.ascontiguousarray(np.moveaxis(found, -1, 2) if first else found)

        return applied

    kernel = operator.kernel
    channels = operator.channels[0]
    ones = np.ones((1, 1, channels, *sizes) if first else (1, 1, *sizes, channels))
    rows = np.sqrt(of(kernel**2)(ones)[0]) * SPARE
    return Linear(of(kernel), of(np.abs(kernel)), prod(kernel.shape[:-1]) + 4, norm, rows)


@rule("BatchNormalization")
def _(node: Node, bounds: BoundWeight) -> Rule:
    factors, mean = channel_factors(node), find(node.weights, "moving_mean", "mean", "input_mean", "running_mean")
    beta = find(node.weights, "beta")
    if mean is None:
        raise not_followed("its moving mean is not there")
    if max(factors.ndim, mean.ndim) > 1:
        raise not_followed("statistics of each entry")
    axis = node.options.get("axis", 1)
    axis = axis[0] if isinstance(axis, list | tuple) else axis

    def normalized(values: list[Value], space: Space) -> Found:
        (value,) = values
        shape = [1] * value.centre.ndim
        shape[int(axis)] = -1
        scale, shift = factors.reshape(shape), -mean.reshape(shape)
        centre = value.centre + shift
        error = (value.error + rounding(2, np.abs(value.centre) + np.abs(shift))) * SPARE
        moved = value._replace(centre=centre, error=error)
        return through(scaling(scale, 16), moved, 0.0 if beta is None else beta.reshape(shape))

    return normalized


@rule("Rescaling")
def _(node: Node, bounds: BoundWeight) -> Rule:
    channel_factors(node)  # raises where its input may be repeated
    factors = np.asarray(node.options["scale"], dtype=float)
    offset = np.asarray(node.options.get("offset", 0.0), dtype=float)
    return lambda values, space: through(scaling(factors, 4), values[0], offset)


@rule("Add", "Subtract", "Sub", "Sum", "Average", "Mean")
def _(node: Node, bounds: BoundWeight) -> Rule:
    stored, negative = constants(node), node.kind in ("Subtract", "Sub")
    if len(node.inputs) == 1 and node.kind in ("Sum", "Average", "Mean"):
        raise not_followed("a sum or mean over axes")
    flipped = negative and "0" in node.weights  # constant - x
    if negative and node.options.get("arguments"):
        raise not_followed("which of its inputs is the constant is not told")

    def added(values: list[Value], space: Space) -> Found:
        signs = [1.0] + [-1.0 if negative else 1.0] * (len(values) - 1)
        if len(values) == 1:
            shift = sum(stored) if stored else np.zeros(1)
            return shifted(values[0], -1.0 if flipped else 1.0, shift * (-1.0 if negative and not flipped else 1.0))
        total = summed(values, signs, space, stored)
        count = len(values) + len(stored)
        return scaled_found(total, 1.0 / count) if node.kind in ("Average", "Mean") else total

    return added


def shifted(value: Value, sign: float, shift: Any) -> Found:
    """Return a value with its sign and a constant, spread to its shape or it to the constant's."""
    shape = np.broadcast_shapes(value.centre.shape, np.shape(shift))
    copies = prod(shape) // max(1, value.centre.size)

    def spread(v: Array) -> Array:
        return np.broadcast_to(_ranked(v, len(shape)), (len(v), *shape))

    found = through(Linear(lambda v: sign * spread(v), spread, 0, sqrt(copies) * SPARE), value, shift)
    return found._replace(effect=Effect(max(1.0, sqrt(copies) * SPARE * (copies > 1)), "adds constants", adds=True))


def summed(values: list[Value], signs: list[float], space: Space, stored: list[Array]) -> Found:
    """Return a sum of values, spread to one shape, with signs."""
    shape = np.broadcast_shapes(*(value.centre.shape for value in values))
    spread = [sqrt(prod(shape) / value.centre.size) * SPARE for value in values]
    tangents = sum(
        sign * np.broadcast_to(_ranked(t, len(shape)), (len(t), *shape))
        for sign, t in zip(signs, space.aligned(values), strict=True)
    )
    centre = sum(sign * value.centre for sign, value in zip(signs, values, strict=True)) + sum(stored)
    magnitudes: Any = sum(np.abs(value.centre) for value in values) + sum(np.abs(s) for s in stored)
    lost = rounding(len(values), np.broadcast_to(sum(value.size for value in values), shape))
    rest = np.broadcast_to(sum(value.rest for value in values), shape)
    whole = sum(factor * value.whole for factor, value in zip(spread, values, strict=True))
    error = sum(value.error for value in values) + rounding(len(values) + len(stored), magnitudes)
    return Found(
        np.broadcast_to(centre, shape),
        np.broadcast_to(error * SPARE + TINY, shape),
        np.asarray(tangents),
        (rest + lost) * SPARE,
        (min(whole, length(rest)) + length(lost)) * SPARE,
        Effect(1.0 if max(spread) <= SPARE else max(spread), "sum of branches", adds=True),
    )


def _ranked(tangents: Array, rank: int) -> Array:
    """Return a stack of values with axes of one entry in front, so that each has that rank at least."""
    return tangents.reshape(len(tangents), *[1] * (rank - tangents.ndim + 1), *tangents.shape[1:])


def scaled_found(found: Found, factor: float) -> Found:
    """Return a result times a number, to two roundings that its errors have room for."""
    size = abs(factor) * SPARE
    return Found(
        found.centre * factor,
        found.error * size + gamma(4) * np.abs(found.centre) * size + TINY,
        found.tangents * factor,
        found.rest * size,
        found.whole * size,
        found.effect and found.effect._replace(constant=found.effect.constant * size),
    )
