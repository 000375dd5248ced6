"""Layers that divide by a deviation of their own input: constants as long as it stays above zero on the ball.

With u the (centred) numbers of one group of n, `sigma = sqrt(|u|^2 / n + epsilon)` and `w = u / (sqrt(n) sigma)`, a
vector shorter than 1, the Jacobian of `u / sigma` is `(I - w w^T) / sigma`: symmetric, between 0 and `I / sigma`. So
the layer's constant is `max |gamma|` over the smallest sigma, and sigma moves by at most `|change of u| / sqrt(n)`.
"""

from math import prod, sqrt

import numpy as np

from opnorm.bounds.certificates import gamma, up
from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.linear import Linear, scaling, through
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, TINY, Found, Space, Value, length, rounding
from opnorm.networks.effects import BoundWeight, Effect, find

_ONNX = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LayerNorm")
def _(node: Node, bounds: BoundWeight) -> Rule:
    options = node.options
    centred = node.kind in ("LayerNormalization", "LayerNorm")
    if options.get("rms_scaling") or options.get("stash_type", 1) != 1 or options.get("arguments"):
        raise not_followed("a variant of it")
    scale, shift = find(node.weights, "gamma", "scale", "1"), find(node.weights, "beta")
    epsilon = float(options.get("epsilon", 1e-5))  # ONNX's default; Keras always writes it
    if not epsilon > 0 or set(node.weights) - {"gamma", "scale", "1", "beta"}:
        raise not_followed(f"epsilon {epsilon:g}, or weights of other roles")
    live = "trainable" in options  # Keras's axes are the normalized ones, ONNX's attribute is the first of them

    def normalized(values: list[Value], space: Space) -> Found:
        (value,) = values
        axes = _axes(options.get("axis", -1), value.centre.ndim, live)
        found = normalize(value, space, axes, epsilon, centred)
        return scaled_and_shifted(found, scale, shift, axes, space)

    return normalized


def _axes(given: object, rank: int, several: bool) -> tuple[int, ...]:
    """Return the last axes, those that are normalized over."""
    listed = [given] if isinstance(given, int) else list(given)  # type: ignore[call-overload]
    places = sorted(int(axis) % rank for axis in listed)
    axes = tuple(places) if several else tuple(range(places[0], rank))
    if axes != tuple(range(rank - len(axes), rank)) or 0 in axes:
        raise not_followed(f"the axes {given}")
    return axes


def scaled_and_shifted(
    found: Found, scale: Array | None, shift: Array | None, axes: tuple[int, ...], space: Space
) -> Found:
    """Return a normalized value times gamma plus beta."""
    value = space.value("", found)
    shape = found.centre.shape[axes[0] :]
    factors = np.ones(1) if scale is None else scale.reshape(shape)
    added = 0.0 if shift is None else shift.reshape(shape)
    after = through(scaling(factors), value, added)
    steep = float(np.abs(factors).max()) * (found.effect.constant if found.effect else 0.0)
    text = found.effect.rule if found.effect else ""
    most = None if found.most is None else found.most * np.abs(factors) * SPARE
    return after._replace(effect=Effect(up(steep), text), most=most)


def normalize(value: Value, space: Space, axes: tuple[int, ...], epsilon: float, centred: bool) -> Found:
    """Return each group of numbers over its deviation (its root of the mean square, where it is not `centred`)."""
    count = prod(value.centre.shape[axis] for axis in axes)
    u = space.value("", _without_mean(value, axes, count)) if centred else value
    groups = _grouped(u, axes, count)
    n = sqrt(count)
    squares = np.sum(groups.centre**2, axis=1)
    sigma = np.sqrt(squares / count + epsilon)
    off = (np.linalg.norm(groups.error, axis=1) / n + gamma(count + 8) * sigma) * SPARE + TINY
    moved = np.minimum(np.linalg.norm(groups.reach, axis=1), _distances(groups, space)) / n * SPARE
    least = np.maximum(sigma - off - moved, sqrt(epsilon) * (1 - 2.0**-50)) / SPARE
    g, farther = 1 / sigma, _reciprocal_moves(sigma, least, off + moved)
    w = groups.centre / (n * sigma[:, None])
    bent = _moved_direction(groups, w, sigma, off + moved, least, n)
    found = _through_direction(groups, space, w, bent, g, farther, least)
    shape = value.centre.shape
    centre = (groups.centre / sigma[:, None]).reshape(shape)
    error = (groups.error / least[:, None] + np.abs(w) * n * (off / least)[:, None]) * SPARE + rounding(
        count + 8, np.abs(centre).reshape(len(w), -1)
    )
    steep = float(np.max(1 / least))
    text = f"the deviation stays above {float(least.min()):.3g} on the ball"
    most = (np.minimum(2.0, bent) * n * SPARE).reshape(shape)  # entries of u / sigma are sqrt(n) w
    return Found(
        centre, error.reshape(shape), found[0].reshape(len(found[0]), *shape), found[1].reshape(shape), found[2],
        Effect(up(steep), text), most,
    )  # fmt: skip


def _reciprocal_moves(sigma: Array, least: Array, moved: Array) -> Array:
    """Return how far 1 / sigma gets from its centre, downwards to `least` or upwards by `moved`."""
    down, up_ = 1 / least - 1 / sigma, moved / (sigma * (sigma + moved))
    return np.asarray(np.maximum(down, up_) * SPARE + 4 * 2.0**-53 / least)


def _without_mean(value: Value, axes: tuple[int, ...], count: int) -> Found:
    def centred(v: Array) -> Array:
        return np.asarray(v - v.mean(axis=tuple(axis + 1 for axis in axes), keepdims=True))

    def size(v: Array) -> Array:
        return np.asarray(v + v.mean(axis=tuple(axis + 1 for axis in axes), keepdims=True))

    return through(Linear(centred, size, count + 2, 1.0, np.full(value.centre.shape, SPARE)), value)


def _grouped(value: Value, axes: tuple[int, ...], count: int) -> Value:
    """Return a value as (groups, numbers of a group)."""
    arrays = {name: getattr(value, name).reshape(-1, count) for name in ("centre", "error", "rest", "size", "rows")}
    arrays |= {name: getattr(value, name).reshape(-1, count) for name in ("reach", "moved")}
    return value._replace(
        tangents=value.tangents.reshape(len(value.tangents), value.centre.size // count, count), **arrays
    )


def _norms(groups: Value, space: Space) -> Array:
    """Return for each group an upper bound of the norm of its Jacobian."""
    rest = np.minimum(np.linalg.norm(groups.rest, axis=1), groups.whole)
    known = [space.open.norm(groups.tangents[:, k]) for k in range(groups.centre.shape[0])]
    return np.asarray(np.minimum(np.array(known) + rest, np.linalg.norm(groups.rows, axis=1)) * SPARE)


def _distances(groups: Value, space: Space) -> Array:
    """Return how far each group gets from its centre, as a vector."""
    return np.asarray((np.linalg.norm(groups.error, axis=1) + _norms(groups, space) * space.radius) * SPARE)


def _moved_direction(groups: Value, w: Array, sigma: Array, moved: Array, least: Array, n: float) -> Array:
    """Return how far each entry of w gets from its centre: `u / sigma - u_0 / sigma_0`, split in the middle."""
    bent = (groups.reach + np.abs(w) * n * moved[:, None]) / (n * least[:, None]) + 8 * 2.0**-53
    return np.asarray(np.minimum(bent * SPARE, 1 + np.abs(w) + 8 * 2.0**-53))


def _through_direction(
    groups: Value, space: Space, w: Array, bent: Array, g: Array, farther: Array, least: Array
) -> tuple[Array, Array, float]:
    """Return tangents, rest and whole behind `(I - w w^T) / sigma`."""
    tangents = space.open.padded(groups.tangents)
    size = np.abs(w)
    along = np.einsum("tgn,gn->tg", tangents, w)  # of w^T u at the centre
    rows = np.minimum(groups.rows, groups.size + groups.rest)
    off = np.minimum(np.sum(bent * groups.size, axis=1), np.linalg.norm(bent, axis=1) * _norms(groups, space))
    off = (off + np.minimum(np.sum((size + bent) * groups.rest, axis=1), groups.whole)) * SPARE
    length_along = space.open.sizes(along) + off
    after = (tangents - w * along[..., None]) * g[:, None]
    rest = groups.rest + size * off[:, None] + bent * length_along[:, None]
    rest = rest * (g + farther)[:, None] + farther[:, None] * (rows + size * length_along[:, None])
    lost = rounding(w.shape[1] + 12, (groups.size + size * np.sum(size * groups.size, axis=1)[:, None]) * g[:, None])
    steep = float(np.max(1 / least)) * SPARE
    change = float(np.max(farther + (g + farther) * 2 * np.minimum(1.0, np.linalg.norm(bent, axis=1))))
    straight = norm_of_tangents(groups, space)
    whole = min(steep * groups.whole + change * straight, length(rest)) + length(lost)
    return after, (rest + lost) * SPARE, whole * SPARE


def norm_of_tangents(value: Value, space: Space) -> float:
    """Return an upper bound of the norm of what the tangents tell of the Jacobian."""
    return space.open.norm(value.tangents) if len(value.tangents) else 0.0
