"""Sums, means, maxima, minima and lengths over axes on a ball."""

from collections.abc import Callable, Sequence
from math import inf, prod, sqrt

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.functions import entrywise, root, squared
from opnorm.networks.balls.known_functions import known_function
from opnorm.networks.balls.linear import Linear, scaling, through
from opnorm.networks.balls.moves import require_apart
from opnorm.networks.balls.pooling import largest
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, Found, Space, Value
from opnorm.networks.effects import BoundWeight, called_with
from opnorm.networks.reduction_rules import reduced_axes

_PIXELS = ("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalAveragePool")
_TOPS = ("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GlobalMaxPool")
_ENTRIES = 2**24  # of all the tangents that a maximum looks at, one copy for each of its entries
Over = Callable[[int], tuple[int, ...]]  # of a value's rank, batch included


@rule(*_PIXELS, "ReduceMean")
def _(node: Node, bounds: BoundWeight) -> Rule:
    over, kept = _axes(node)

    def averaged(values: list[Value], space: Space) -> Found:
        return _summed(values[0], over, kept, mean=True)

    return averaged


@rule("ReduceSum", "ReduceL1", "ReduceL2")
def _(node: Node, bounds: BoundWeight) -> Rule:
    over, kept = _axes(node)

    def added(values: list[Value], space: Space) -> Found:
        (value,) = values
        if node.kind == "ReduceL1":
            value = space.value("", entrywise(known_function("Abs", {}), value, space))
        if node.kind != "ReduceL2":
            return _summed(value, over, kept)
        squares = space.value("", entrywise(squared(), value, space))
        total = space.value("", _summed(squares, over, kept))
        return entrywise(root(total), total, space)._replace(effect=None)  # that of the root alone

    return added


@rule(*_TOPS, "ReduceMax", "ReduceMin")
def _(node: Node, bounds: BoundWeight) -> Rule:
    over, kept = _axes(node)
    sign = -1.0 if node.kind == "ReduceMin" else 1.0

    def top(values: list[Value], space: Space) -> Found:
        (value,) = values
        axes = over(value.centre.ndim)
        require_apart(value, axes)
        if value.tangents.size + value.centre.size > _ENTRIES:
            raise not_followed("a maximum of too many entries")
        given = value if sign > 0 else space.value("", through(scaling(np.array(sign)), value))
        found = largest(given, space, lambda v: _entries(v, axes, kept), 1.0)
        return found if sign > 0 else through(scaling(np.array(sign)), space.value("", found))

    return top


def _entries(v: Array, axes: Sequence[int], kept: bool) -> list[Array]:
    """Return the values that each place along the axes has, of a stack of values."""
    places = [axis + 1 for axis in axes]
    count = prod(v.shape[place] for place in places)
    rows = np.moveaxis(v, places, range(len(places)))
    rows = rows.reshape(count, *rows.shape[len(places) :])
    return [np.expand_dims(row, places) if kept else row for row in rows]


def _axes(node: Node) -> tuple[Over, bool]:
    """Return the axes over which a node goes, and whether it keeps them."""
    arguments = called_with(node)
    if set(arguments) - {"axis", "keepdims"}:
        raise not_followed("arguments that opnorm does not read")
    if node.kind in (*_PIXELS, *_TOPS):
        first = node.kind in ("GlobalAveragePool", "GlobalMaxPool")
        kept = first or bool(node.options.get("keepdims"))
        first = first or node.options.get("data_format") == "channels_first"
        return (lambda rank: tuple(range(2, rank) if first else range(1, rank - 1))), kept
    axes = reduced_axes(node)
    if not axes:
        raise not_followed("no axes")
    kept = bool(node.options.get("keepdims", arguments.get("keepdims", int(not arguments))))  # ONNX keeps them
    return (lambda rank: tuple(axis % rank for axis in axes)), kept


def _summed(value: Value, over: Over, kept: bool, *, mean: bool = False) -> Found:
    """Return the sums over axes, or the means."""
    axes = over(value.centre.ndim)
    require_apart(value, axes)
    count = prod(value.centre.shape[axis] for axis in axes)
    places, share = tuple(axis + 1 for axis in axes), count if mean else 1

    def summed(v: Array) -> Array:
        return np.asarray(v.sum(axis=places, keepdims=kept) / share)

    norm = SPARE * sqrt(count) / share if count else inf
    return through(Linear(summed, summed, count + 2, norm), value)
