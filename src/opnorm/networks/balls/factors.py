"""Products on a ball, of a value with stored numbers or with another value."""

from math import prod, sqrt

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.networks.balls.linear import dense, scaling, through
from opnorm.networks.balls.products import over, product_of_entries, product_of_matrices, quotient_of_entries
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, Found, Space, Value
from opnorm.networks.effects import BoundWeight, Unbounded, constants
from opnorm.networks.linear_rules import MATRICES


@rule(*MATRICES)
def _(node: Node, bounds: BoundWeight) -> Rule:
    return product_of_matrices if len(node.inputs) == 2 and not node.weights else dense(node, bounds)


@rule("Mul", "Multiply", "Div", "Neg", "Negative")
def _(node: Node, bounds: BoundWeight) -> Rule:
    stored = constants(node)
    if len(node.inputs) == 2 and not stored:
        return quotient_of_entries if node.kind == "Div" else product_of_entries
    if len(node.inputs) != 1 or len(stored) > 1 or (node.kind == "Div" and node.options.get("arguments")):
        raise not_followed("several constants")
    numbers = stored[0] if stored else np.ones(1)
    if node.kind == "Div" and "0" in node.weights:
        return lambda values, space: over(values[0], space, numbers)
    if node.kind == "Div":
        if not np.all(numbers):
            raise Unbounded("divides by zero")
        numbers = 1 / numbers
    factors = -numbers if node.kind.startswith("Neg") else numbers

    def multiplied(values: list[Value], space: Space) -> Found:
        (value,) = values
        shape = np.broadcast_shapes(value.centre.shape, factors.shape)
        copies = prod(shape) // max(1, value.centre.size)
        linear = scaling(factors, 2)
        return through(linear._replace(norm=linear.norm * sqrt(copies) * SPARE), value)

    return multiplied
