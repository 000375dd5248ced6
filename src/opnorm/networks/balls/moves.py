"""Nodes without weights on a ball: what moves entries about, pools them, or puts values side by side."""

from collections.abc import Callable, Iterable, Sequence
from math import prod, sqrt

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array, real_array
from opnorm.networks.balls.linear import moved_by, moving, through
from opnorm.networks.balls.rules import Rule, is_keras, not_followed, rule
from opnorm.networks.balls.values import SPARE, Found, Space, Value
from opnorm.networks.effects import RULES, BoundWeight, Effect, find, integers
from opnorm.networks.picks import cuts, places_of_part
from opnorm.networks.shape_rules import SAME

_TO_THE_END = 2**31 - 1  # as exporters write it, in 32 bits or more


@rule(*SAME, "Cast")
def _(node: Node, bounds: BoundWeight) -> Rule:
    RULES[node.kind](node, bounds)  # raises in training mode, and where numbers are rounded to integers
    return moved_by(lambda v: v)


def _shaped(target: Callable[[tuple[int, ...]], Sequence[int]]) -> Rule:
    """Return the rule of a node that gives each value, batch included, another shape."""
    return lambda values, space: reshaped(values[0], target(values[0].centre.shape))


def reshaped(value: Value, shape: Sequence[int]) -> Found:
    """Return a value, batch included, in another shape."""
    exact = value.centre.reshape(*shape).shape
    return through(moving(lambda v: v.reshape(len(v), *exact)), value)


@rule("Flatten")
def _(node: Node, bounds: BoundWeight) -> Rule:
    if node.options.get("data_format") == "channels_first":
        raise not_followed("Keras arranges channels anew")
    axis = int(node.options.get("axis", 1))
    return _shaped(lambda shape: (prod(shape[:axis]), prod(shape[axis:])))  # counted from the back below zero


@rule("Reshape")
def _(node: Node, bounds: BoundWeight) -> Rule:
    target, stored = node.options.get("target_shape"), find(node.weights, "1")
    if target is not None:
        return _shaped(lambda shape: (shape[0], *target))
    if stored is None:
        if "target" in node.options:
            return _shaped(lambda shape: shape)  # the walk computes it
        raise not_followed("what it gives has a shape that is computed")
    sizes = [int(n) for n in stored]
    if node.options.get("allowzero") and 0 in sizes:
        raise not_followed("zeros in a shape")
    return _shaped(lambda shape: [shape[i] if n == 0 else n for i, n in enumerate(sizes)])


@rule("Transpose", "Permute")
def _(node: Node, bounds: BoundWeight) -> Rule:
    given = [0, *node.options["dims"]] if node.kind == "Permute" else node.options.get("perm")
    if given is None and is_keras(node):
        raise not_followed("its axes are not told")

    def transposed(values: list[Value], space: Space) -> Found:
        rank = values[0].centre.ndim
        order = [int(axis) % rank for axis in (range(rank)[::-1] if given is None else given)]
        return through(moving(lambda v: v.transpose(0, *(axis + 1 for axis in order))), values[0])

    return transposed


def _axes(node: Node) -> list[int] | None:
    stored = find(node.weights, "1")
    given = node.options.get("axes") if stored is None else stored.ravel().tolist()
    return None if given is None else [int(axis) for axis in np.atleast_1d(given)]


def require_apart(value: Value, axes: Iterable[int]) -> None:
    """Raise where axes of a node that picks or reduces may be that of the examples, of which here there is one.

    An axis in front with more entries is another one.
    """
    shape = value.centre.shape
    if shape[0] == 1 and any(axis % len(shape) == 0 for axis in axes):
        raise not_followed("it may run over the examples of a batch")


@rule("Repeat")
def _(node: Node, bounds: BoundWeight) -> Rule:
    (own,), whole = node.options["input_shapes"], node.options["shape"]
    spread = {axis: n for axis, (n, before) in enumerate(zip(whole, own, strict=True)) if n != before}
    if 0 in spread:
        raise not_followed("an example that is repeated for each of a batch")

    def repeated(values: list[Value], space: Space) -> Found:
        shape = tuple(spread.get(axis, n) for axis, n in enumerate(values[0].centre.shape))
        copies = moving(lambda v: np.broadcast_to(v, (len(v), *shape)), sqrt(node.options["count"]) * SPARE)
        return through(copies, values[0])

    return repeated


@rule("Squeeze")
def _(node: Node, bounds: BoundWeight) -> Rule:
    axes = _axes(node)
    if not axes:
        raise not_followed("no axes")
    return _shaped(lambda shape: [n for i, n in enumerate(shape) if i not in [axis % len(shape) for axis in axes]])


@rule("Unsqueeze", "ExpandDims")
def _(node: Node, bounds: BoundWeight) -> Rule:
    axes = _axes(node)
    if axes is None:
        raise not_followed("no axes")

    def target(shape: tuple[int, ...]) -> list[int]:
        rank, left = len(shape) + len(axes), list(shape)
        places = {axis % rank for axis in axes}
        return [1 if i in places else left.pop(0) for i in range(rank)]

    return _shaped(target)


@rule("Slice")
def _(node: Node, bounds: BoundWeight) -> Rule:
    if "cuts" in node.options:  # of a Keras tensor
        if node.options["cuts"][:1] != (slice(None),):
            raise not_followed("it picks among the examples of a batch")
        return moved_by(lambda v: v[(slice(None), *node.options["cuts"])])
    return lambda values, space: sliced(node, values[0], [])


def sliced(node: Node, value: Value, computed: list[Array]) -> Found:
    """Return part of a value.

    Args:
        node: A Slice.
        value: What it cuts.
        computed: Those of its starts and ends, in this order, that are no constants.
    """
    limits = iter(computed)
    starts, ends = (
        next(limits, None) if str(i) not in node.weights else integers(node.weights, str(i)) for i in (1, 2)
    )
    axes, steps = (integers(node.weights, str(i)) for i in (3, 4))
    if starts is None or ends is None or len(node.inputs) != 1 or next(limits, None) is not None:
        raise not_followed("limits that are computed")
    if computed and axes is None:
        raise not_followed("axes that may be computed")
    found = cuts(starts, ends, axes, steps)
    if min(cut.step for cut in found.values()) < 1:
        raise not_followed("a step backwards")
    require_apart(value, (axis for axis, cut in found.items() if cut.start or cut.stop < _TO_THE_END))

    def part(v: Array) -> Array:
        index = [slice(None)] * v.ndim
        for axis, cut in found.items():
            index[axis % (v.ndim - 1) + 1] = cut
        return np.asarray(v[tuple(index)])

    return through(moving(part), value)


@rule("Gather")
def _(node: Node, bounds: BoundWeight) -> Rule:
    places = find(node.weights, "1")
    if places is None or len(node.inputs) != 1:
        raise not_followed("places that are computed")
    axis, taken = int(node.options.get("axis", 0)), places.astype(int)

    def gathered(values: list[Value], space: Space) -> Found:
        place = axis % values[0].centre.ndim + 1
        require_apart(values[0], [axis])
        if len(np.unique(taken % values[0].centre.shape[place - 1])) < taken.size:
            raise not_followed("entries that are taken twice")
        found = through(moving(lambda v: np.take(v, taken, axis=place)), values[0])
        return found._replace(effect=Effect(1.0, "drops entries"))

    return gathered


@rule("Split")
def _(node: Node, bounds: BoundWeight) -> Rule:
    axis = int(node.options.get("axis", 0))

    def part(v: Array) -> Array:
        place = axis % (v.ndim - 1) + 1
        places = places_of_part(node, v.shape[place])
        return np.asarray(v[(slice(None),) * place + (slice(places.start, places.stop),)])

    def parted(values: list[Value], space: Space) -> Found:
        require_apart(values[0], [axis])
        return through(moving(part), values[0])

    return parted


@rule("Concat", "Concatenate")
def _(node: Node, bounds: BoundWeight) -> Rule:
    stored = {int(role): real_array(weight.read(), role) for role, weight in node.weights.items()}
    axis = int(node.options.get("axis", -1))

    def joined(values: list[Value], space: Space) -> Found:
        given = iter(zip(values, space.aligned(values), strict=True))
        count = len(values) + len(stored)
        parts = [_stored(stored[i], space) if i in stored else next(given) for i in range(count)]
        place = axis % values[0].centre.ndim

        def together(arrays: list[Array], place: int) -> Array:
            return np.concatenate(arrays, axis=place)

        rest, whole = together([v.rest for v, _ in parts], place), float(np.linalg.norm([v.whole for v, _ in parts]))
        centre, error = (together([getattr(v, name) for v, _ in parts], place) for name in ("centre", "error"))
        return Found(centre, error, together([t for _, t in parts], place + 1), rest, whole * SPARE)

    return joined


def _stored(numbers: Array, space: Space) -> tuple[Value, Array]:
    found = constant(numbers, space)
    return space.value("", found), found.tangents


def constant(numbers: Array, space: Space) -> Found:
    """Return numbers that do not depend on the input, right to a dozen roundings where they were computed."""
    tangents = space.open.padded(np.zeros((space.open.inputs, *numbers.shape)))
    zeros = np.zeros_like(numbers)
    error = np.where(np.isfinite(numbers), np.abs(numbers) * 2.0**-48, 0.0)
    return Found(numbers, error, tangents, zeros, 0.0)
