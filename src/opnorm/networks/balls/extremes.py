"""Maxima and minima of two values on a ball, `(a + b +- |a - b|) / 2`: both of the same two share the magnitudes."""

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.networks.balls.functions import entrywise
from opnorm.networks.balls.known_functions import known_function
from opnorm.networks.balls.linear import scaled_found, summed
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, Found, Space, Value
from opnorm.networks.effects import BoundWeight
from opnorm.networks.shape_rules import MAXIMA, MINIMA
from opnorm.networks.together import is_plain


@rule(*MAXIMA, *MINIMA)
def _(node: Node, bounds: BoundWeight) -> Rule:
    if len(node.inputs) != 2 or not is_plain(node):
        raise not_followed("the extreme of one value, of more than two, or beside a constant")
    pair, sign = frozenset(node.inputs), 1.0 if node.kind in MAXIMA else -1.0

    def extreme(values: list[Value], space: Space) -> Found:
        a, b = values
        if a.centre.shape != b.centre.shape:
            raise not_followed("one value is repeated to fit the other")
        if pair not in space.apart:
            space.apart[pair] = apart(a, b, space)
        return of_pair(a, b, space.apart[pair], sign, space)

    return extreme


def apart(a: Value, b: Value, space: Space) -> Value:
    """Return the magnitudes of the difference of two values."""
    difference = space.value("", summed([a, b], [1.0, -1.0], space, []))
    return space.value("", entrywise(known_function("Abs", {}), difference, space))


def of_pair(a: Value, b: Value, magnitudes: Value, sign: float, space: Space) -> Found:
    """Return the larger of two values, entry by entry; the smaller one where the sign is -1."""
    found = scaled_found(summed([a, b, magnitudes], [1.0, 1.0, sign], space, []), 0.5)
    return found._replace(effect=None, most=np.maximum(a.moved, b.moved) * SPARE)
