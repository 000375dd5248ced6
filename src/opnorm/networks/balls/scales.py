"""Factors and slopes of each channel on a ball, and normalization over groups of channels or over pixels."""

from math import prod

import numpy as np
from numpy.typing import NDArray

from opnorm.checkpoints.records import Node
from opnorm.checks import Array, real_array
from opnorm.networks.balls.functions import entrywise
from opnorm.networks.balls.known_functions import Known
from opnorm.networks.balls.linear import Map, moving, scaling, through
from opnorm.networks.balls.norms import normalize
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, Found, Space, Value
from opnorm.networks.effects import RULES, BoundWeight, Effect, find


@rule("Normalization")
def _(node: Node, bounds: BoundWeight) -> Rule:
    mean, variance = _statistic(node, "mean"), _statistic(node, "variance")
    if node.options.get("invert"):
        raise not_followed("its inverse")
    given = node.options.get("axis", -1)
    axes = [] if given is None else [int(axis) for axis in np.atleast_1d(given)]

    def normalized(values: list[Value], space: Space) -> Found:
        (value,) = values
        shape = value.centre.shape
        kept = {axis % len(shape) for axis in axes}
        along = tuple(n if i in kept else 1 for i, n in enumerate(shape))
        shift = np.broadcast_to(-mean.ravel() if mean.size == 1 else -mean.reshape(along), along)
        deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras's epsilon
        factors = np.broadcast_to(
            (1 / deviation).ravel() if deviation.size == 1 else (1 / deviation).reshape(along), along
        )
        shifted = space.value("", through(scaling(np.ones(1)), value, shift))
        return through(scaling(factors, 8), shifted)

    return normalized


def _statistic(node: Node, name: str) -> Array:
    found = find(node.weights, name)
    given = node.options.get(name)
    if found is None and given is None:
        raise not_followed("its statistics are not there")
    return real_array(given, name) if found is None else found


@rule("keras.applications.LayerScale")
def _(node: Node, bounds: BoundWeight) -> Rule:
    RULES[node.kind](node, bounds)  # raises where its factors are not there
    (weight,) = node.weights.values()
    factors = real_array(weight.read(), weight.name)
    return lambda values, space: through(scaling(factors, 2), values[0])


@rule("PReLU", "PRelu")
def _(node: Node, bounds: BoundWeight) -> Rule:
    RULES[node.kind](node, bounds)  # raises where its slopes are not there, or may repeat its input
    (weight,) = node.weights.values()
    stored, by_channel = real_array(weight.read(), weight.name), bool(node.options.get("channels"))

    def sloped(values: list[Value], space: Space) -> Found:
        (value,) = values
        rank = value.centre.ndim
        slopes = stored.reshape(-1, *[1] * (rank - 2)) if by_channel and stored.ndim == 1 else stored
        slopes = np.broadcast_to(slopes, value.centre.shape)

        def between(low: Array, high: Array) -> tuple[Array, Array]:
            ends = np.where(low >= 0, 1.0, slopes), np.where(high <= 0, slopes, 1.0)
            return np.minimum(*ends), np.maximum(*ends)

        return entrywise(Known(lambda v: np.where(v > 0, v, slopes * v), between), value, space)

    return sloped


@rule("InstanceNormalization", "GroupNormalization")
def _(node: Node, bounds: BoundWeight) -> Rule:
    scale, shift = find(node.weights, "gamma", "scale", "1"), find(node.weights, "beta", "2")
    epsilon, live = float(node.options.get("epsilon", 1e-5)), "trainable" in node.options  # ONNX's default
    groups, axis = node.options.get("groups" if live else "num_groups"), int(node.options.get("axis", 1))
    known = {"gamma", "scale", "beta", "1", "2"}
    if not epsilon > 0 or set(node.weights) - known or node.options.get("stash_type", 1) != 1:
        raise not_followed(f"epsilon {epsilon:g}, or weights of other roles")
    if node.kind == "GroupNormalization" and not live:
        raise not_followed("ONNX's, whose factors are of groups or of channels by its version")

    def normalized(values: list[Value], space: Space) -> Found:
        (value,) = values
        shape, place = value.centre.shape, axis % value.centre.ndim if live else 1
        channels = shape[place]
        order = _groups(shape, place, channels if groups is None or int(groups) == -1 else int(groups))
        grouped, ungrouped = _rearranged(order, order.shape), _rearranged(np.argsort(order.ravel()), shape)
        found = normalize(space.value("", through(moving(grouped), value)), space, (2,), epsilon, centred=True)
        whole = space.value("", through(moving(ungrouped), space.value("", found)))
        along = [channels if i == place else 1 for i in range(len(shape))]
        factors = np.ones(along) if scale is None else scale.reshape(along)
        added = 0.0 if shift is None else shift.reshape(along)
        own = found.effect or Effect(0.0, "")
        steep = float(np.abs(factors).max()) * own.constant * SPARE
        return through(scaling(factors), whole, added)._replace(effect=Effect(steep, own.rule))

    return normalized


def _groups(shape: tuple[int, ...], place: int, count: int) -> NDArray[np.int64]:
    """Return the places of a value's numbers: (examples, groups of channels, numbers of a group)."""
    first = np.moveaxis(np.arange(prod(shape)).reshape(shape), place, 1)
    return first.reshape(len(first), count, -1)


def _rearranged(order: NDArray[np.int64], shape: tuple[int, ...]) -> Map:
    """Return what gives each of a stack of values its numbers in another order and shape."""
    return lambda v: np.asarray(v.reshape(len(v), order.size)[:, order.ravel()].reshape(len(v), *shape))
