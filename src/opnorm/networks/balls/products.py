"""Products of computed values, and softmax, on a ball: `|d(a b)| <= |a| |db| + |b| |da|`, as values are bounded there.

To first order the product rule is exact: tangents are those of the centre's factors, and only what the factors may move
by goes into the rest.
"""

from math import prod, sqrt

import numpy as np

from opnorm.bounds.certificates import UNIT, up
from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.functions import entrywise, reciprocal
from opnorm.networks.balls.linear import scaling, through
from opnorm.networks.balls.open_neurons import norm_above
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, TINY, Found, Space, Value, length, rounding
from opnorm.networks.effects import BoundWeight, Effect

_ULPS = 64 * UNIT
_GONE = 800.0  # below every other score: exp(-800) is 0


def product_of_entries(values: list[Value], space: Space) -> Found:
    """Return the product of two values, entry by entry, each spread to the shape of both."""
    a, b = (_spread(value, values) for value in values)
    ta, tb = space.aligned([a, b])
    centre = a.centre * b.centre
    ca, cb = np.abs(a.centre), np.abs(b.centre)
    error = ca * b.error + cb * a.error + a.error * b.error + rounding(1, np.abs(centre))
    rest = cb * a.rest + ca * b.rest + b.reach * a.rows + a.reach * b.rows
    lost = rounding(4, cb * a.size + ca * b.size)
    la, lb = float(np.max(ca + a.reach, initial=0.0)), float(np.max(cb + b.reach, initial=0.0))
    beyond = float(np.max(a.reach, initial=0.0)) * space.norm(b) + float(np.max(b.reach, initial=0.0)) * space.norm(a)
    whole = min(float(cb.max(initial=0.0)) * a.whole + float(ca.max(initial=0.0)) * b.whole + beyond, length(rest))
    copies = [sqrt(centre.size / max(1, value.centre.size)) for value in values]
    effect = Effect(up(float(np.hypot(la * copies[1], lb * copies[0]))), f"factors up to {la:.3g} and {lb:.3g}")
    return Found(
        centre,
        error * SPARE + TINY,
        b.centre * ta + a.centre * tb,
        (rest + lost) * SPARE,
        (whole + length(lost)) * SPARE,
        effect,
    )


def over(value: Value, space: Space, numbers: Array | float = 1.0) -> Found:
    """Return stored numbers over each entry; none of these may get to zero."""
    found = entrywise(reciprocal(value), value, space)
    factors = np.asarray(numbers, dtype=float)
    steep = float(np.abs(factors).max()) * (found.effect.constant if found.effect else 0.0)
    text = "divides by what stays away from zero on the ball"
    return through(scaling(factors, 2), space.value("", found))._replace(effect=Effect(up(steep), text))


def quotient_of_entries(values: list[Value], space: Space) -> Found:
    """Return the quotient of two values, entry by entry; the second must stay away from zero."""
    a, b = values
    found = product_of_entries([a, space.value("", over(b, space))], space)
    steep = 1 / float(np.min(np.abs(b.centre) - b.reach))  # over is that steep squared
    factors = found.effect.constant if found.effect else 0.0
    return found._replace(effect=Effect(up(factors * max(1.0, steep**2)), f"a divisor above {1 / steep:.3g}"))


def _spread(value: Value, values: list[Value]) -> Value:
    """Return a value spread to the common shape."""
    shape = np.broadcast_shapes(*(one.centre.shape for one in values))
    if value.centre.shape == shape:
        return value
    rank = len(shape) - value.centre.ndim
    tangents = value.tangents.reshape(len(value.tangents), *[1] * rank, *value.centre.shape)
    arrays = ("centre", "error", "rest", "size", "rows", "reach", "moved")
    copies = sqrt(prod(shape) / value.centre.size) * SPARE
    return value._replace(
        tangents=np.broadcast_to(tangents, (len(tangents), *shape)),
        whole=value.whole * copies,
        **{name: np.broadcast_to(getattr(value, name), shape) for name in arrays},
    )


def product_of_matrices(values: list[Value], space: Space) -> Found:
    """Return the product of two stacks of matrices, the stacks spread to one shape."""
    a, b = values
    if min(a.centre.ndim, b.centre.ndim) < 2:
        raise not_followed("a product of vectors")
    rank = max(a.centre.ndim, b.centre.ndim)
    a, b = (_as_stack(value, rank) for value in (a, b))
    ta, tb = space.aligned([a, b])
    ca, cb, count = np.abs(a.centre), np.abs(b.centre), a.centre.shape[-1]
    centre = a.centre @ b.centre
    error = ca @ b.error + a.error @ cb + a.error @ b.error + rounding(count, ca @ cb)
    rest = a.rest @ cb + ca @ b.rest + a.rows @ b.reach + a.reach @ b.rows
    lost = rounding(2 * count + 2, a.size @ cb + ca @ b.size)
    na, nb = _largest(a.centre), _largest(b.centre)
    ra, rb = _largest(a.reach), _largest(b.reach)
    copies = sqrt(max(1.0, centre.size / max(1, a.centre.size // count * b.centre.shape[-1])))
    copies *= sqrt(max(1.0, centre.size / max(1, b.centre.size // count * a.centre.shape[-2])))
    whole = copies * (nb * a.whole + na * b.whole + ra * space.norm(b) + rb * space.norm(a))
    effect = Effect(up(copies * float(np.hypot(na + ra, nb + rb))), f"factors up to {na + ra:.3g} and {nb + rb:.3g}")
    return Found(
        centre,
        error * SPARE + TINY,
        ta @ b.centre + a.centre @ tb,
        (rest + lost) * SPARE,
        (min(whole, length(rest)) + length(lost)) * SPARE,
        effect,
    )


def _as_stack(value: Value, rank: int) -> Value:
    """Return a value with axes of one entry in front, so that it has that rank."""
    shape = (1,) * (rank - value.centre.ndim) + value.centre.shape
    arrays = ("centre", "error", "rest", "size", "rows", "reach", "moved")
    parts = {name: getattr(value, name).reshape(shape) for name in arrays}
    return value._replace(tangents=value.tangents.reshape(len(value.tangents), *shape), **parts)


def _largest(matrices: Array) -> float:
    """Return an upper bound of the largest norm of a stack of matrices."""
    stack = matrices.reshape(-1, *matrices.shape[-2:])
    return max((min(norm_above(one), length(one)) for one in stack), default=0.0)


@rule("Softmax", "softmax")
def _(node: Node, bounds: BoundWeight) -> Rule:
    if node.options.get("arguments"):
        raise not_followed("a mask")
    axis = node.options.get("axis", -1)
    if not isinstance(axis, int):
        raise not_followed(f"the axes {axis}")

    def weighed(values: list[Value], space: Space) -> Found:
        rank = values[0].centre.ndim
        if node.options.get("flattened") and axis % rank != rank - 1:
            raise not_followed("several axes as one")
        if axis % rank == 0:
            raise not_followed("it runs over the examples of a batch")
        return softmax(values[0], space, axis)

    return weighed


def softmax(value: Value, space: Space, axis: int = -1) -> Found:
    """Return the softmax along an axis.

    Its Jacobian `diag(p) - p p^T` has the norm `2 max p (1 - p)` at most, so never more than 1/2 (Gershgorin).
    """
    if axis % value.centre.ndim != value.centre.ndim - 1:
        return _along_last(value, space, axis)
    value = _with_low_ends(value)
    z = value.centre
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    low, high = _probabilities(value)
    moves = np.maximum(high - p, p - low) * SPARE + TINY
    relative = 2 * value.error.max(axis=-1, keepdims=True) + (z.shape[-1] + 8) * _ULPS + 4 * UNIT * np.ptp(z)
    error = (
        np.minimum(2 * p * np.expm1(np.minimum(relative, 1.0)) + TINY, 1.0) if relative.max() < 1 else np.ones_like(p)
    )
    tangents = space.open.padded(value.tangents)
    along = np.sum(p * tangents, axis=-1, keepdims=True)
    differences = tangents - along
    size = space.open.sizes(differences)
    off = np.sum((p + moves) * value.rest, axis=-1, keepdims=True) + np.sum(moves * size, axis=-1, keepdims=True)
    rest = (p + moves) * (value.rest + off) + moves * size
    lost = rounding(z.shape[-1] + 8, p * (value.size + np.sum(p * value.size, axis=-1, keepdims=True)))
    spread = np.where((low <= 0.5) & (high >= 0.5), 0.5, np.maximum(2 * low * (1 - low), 2 * high * (1 - high)))
    steep = min(0.5, float(spread.max(initial=0.0)) * SPARE)
    change = 3 * float(np.max(np.linalg.norm(moves, axis=-1), initial=0.0))
    straight = space.open.norm(tangents)
    whole = min(steep * value.whole + change * straight, length(rest)) + length(lost)
    effect = Effect(up(steep), f"softmax: {steep:.3g} on the ball")
    return Found(p, error, p * differences, (rest + lost) * SPARE, whole * SPARE, effect, moves)


def _with_low_ends(value: Value) -> Value:
    """Return scores with others for minus infinity, so low that their exponentials are zeros beside the largest one."""
    gone = np.isneginf(value.centre)
    if not np.any(gone):
        return value
    if np.any(np.all(gone, axis=-1)):
        raise not_followed("a softmax of nothing")
    least = np.min(np.where(gone, np.inf, value.centre - value.reach), axis=-1, keepdims=True)
    return value._replace(centre=np.where(gone, least - _GONE, value.centre))


def _probabilities(value: Value) -> tuple[Array, Array]:
    """Return the least and the largest each probability can be: its own number at one end, all others at the other."""
    top = value.centre.max(axis=-1, keepdims=True)
    spare = 1 + (value.centre.shape[-1] + 8) * _ULPS + 2.0**-40  # of exponents up to 700
    with np.errstate(over="ignore"):
        up_, down = (np.exp(value.centre + sign * value.reach - top) for sign in (1, -1))
    with np.errstate(over="ignore", invalid="ignore"):
        others_up = np.sum(up_, axis=-1, keepdims=True) * spare - up_
        others_down = np.maximum(np.sum(down, axis=-1, keepdims=True) / spare - down, 0.0)
        low, high = down / (down + others_up), up_ / (up_ + others_down)
    low, high = np.nan_to_num(low, nan=0.0) / spare, np.nan_to_num(high, nan=1.0) * spare
    return np.maximum(low - _ULPS, 0.0), np.minimum(high + _ULPS, 1.0)


def _along_last(value: Value, space: Space, axis: int) -> Found:
    def moved(array: Array) -> Array:
        return np.moveaxis(array, axis % value.centre.ndim - value.centre.ndim, -1)

    arrays = ("centre", "error", "rest", "size", "rows", "reach", "moved")
    turned = value._replace(tangents=moved(value.tangents), **{name: moved(getattr(value, name)) for name in arrays})  # type: ignore[arg-type]
    found = softmax(turned, space)

    def back(array: Array) -> Array:
        return np.moveaxis(array, -1, axis % value.centre.ndim - value.centre.ndim)

    most = None if found.most is None else back(found.most)
    return found._replace(
        centre=back(found.centre), error=back(found.error), tangents=back(found.tangents), rest=back(found.rest),
        most=most,
    )  # fmt: skip
