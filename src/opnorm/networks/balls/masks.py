"""Entries that are left out of a softmax: minus infinity, added to scores or put in their place.

Such an entry does not move: it has no tangents, errors or rests. What reads it is a softmax, or moves entries.
"""

import numpy as np
from numpy.typing import NDArray

from opnorm.checkpoints.onnx_steering import STEADY
from opnorm.checkpoints.records import Node, Weight
from opnorm.checks import Array
from opnorm.networks.balls.linear import scaling, through
from opnorm.networks.balls.rules import MAKERS, Rule, not_followed, rule
from opnorm.networks.balls.values import Found, Space, Value
from opnorm.networks.effects import BoundWeight

_MOVED = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Cast", "Dropout", "Expand", "Slice")
_OWN = ("Add", "Where", "Softmax", "softmax")  # that know of such entries
MADE = (*_MOVED, "Add", "Where", STEADY)  # what may have them
_add = MAKERS["Add"]


def through_rule(node: Node, rule: Rule, values: list[Value], space: Space) -> Found:
    """Return what a node's rule makes of values, some entries of which may be minus infinity."""
    if node.kind in _OWN or not any(np.any(is_endless(value.centre)) for value in values):
        return rule(values, space)
    if node.kind not in _MOVED:
        raise not_followed("it reads minus infinity")
    (value,) = values
    places = rule([value._replace(centre=is_endless(value.centre).astype(float))], space).centre > 0.5
    return ended(rule([without_ends(value)], space), places)


def is_endless(numbers: Array) -> NDArray[np.bool_]:
    """Return where there is minus infinity."""
    return np.isneginf(numbers)


def ended(found: Found, mask: NDArray[np.bool_]) -> Found:
    """Return a result with minus infinity in the places of a mask."""
    kept = ~np.broadcast_to(mask, found.centre.shape)
    return found._replace(
        centre=np.where(kept, found.centre, -np.inf),
        error=found.error * kept,
        tangents=found.tangents * kept,
        rest=found.rest * kept,
        most=None if found.most is None else found.most * kept,
    )


def without_ends(value: Value) -> Value:
    """Return a value with zeros for minus infinity."""
    return value._replace(centre=np.where(is_endless(value.centre), 0.0, value.centre))


@rule("Add")
def _(node: Node, bounds: BoundWeight) -> Rule:
    stored = {role: np.asarray(weight.read(), dtype=float) for role, weight in node.weights.items()}
    masks = [is_endless(numbers) for numbers in stored.values()]
    if not any(np.any(mask) for mask in masks):
        plain = node
    else:
        plain = node._replace(weights={role: _finite(node.weights[role], numbers) for role, numbers in stored.items()})
    rule = _add(plain, bounds)

    def added(values: list[Value], space: Space) -> Found:
        found = rule([without_ends(value) for value in values], space)
        for mask in (*masks, *(is_endless(value.centre) for value in values)):
            found = ended(found, mask) if np.any(mask) else found
        return found

    return added


def _finite(weight: Weight, numbers: Array) -> Weight:
    return weight._replace(read=lambda: np.where(is_endless(numbers), 0.0, numbers), dtype="float64")


@rule("Where")
def _(node: Node, bounds: BoundWeight) -> Rule:
    if (
        "0" not in node.weights
        or set(node.weights) - {"0", "1", "2"}
        or len(node.weights) != 2
        or len(node.inputs) != 1
    ):
        raise not_followed("what it chooses by, or both choices, are computed")
    first = np.asarray(node.weights["0"].read(), dtype=bool)
    kept = first if "2" in node.weights else ~first
    other = np.asarray(node.weights["2" if "2" in node.weights else "1"].read(), dtype=float)
    if np.any(np.isnan(other) | np.isposinf(other)):
        raise not_followed("what it puts in is no number")

    def chosen(values: list[Value], space: Space) -> Found:
        (value,) = values
        shape = value.centre.shape
        if np.broadcast_shapes(shape, kept.shape, other.shape) != shape:
            raise not_followed("its input is repeated to fit")
        mask = is_endless(value.centre) & kept
        put = np.where(kept, 0.0, np.broadcast_to(other, shape))
        found = through(
            scaling(np.broadcast_to(kept, shape).astype(float)),
            without_ends(value),
            np.where(is_endless(put), 0.0, put),
        )
        return ended(found, mask | is_endless(put))

    return chosen
