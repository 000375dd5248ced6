"""The registry of what nodes do to a value on a ball, and why some do nothing that can be said."""

from collections.abc import Callable

from opnorm.checkpoints.records import Node
from opnorm.networks.balls.values import Found, Space, Value
from opnorm.networks.effects import BoundWeight, Unbounded

Rule = Callable[[list[Value], Space], Found]
Maker = Callable[[Node, BoundWeight], Rule]
MAKERS: dict[str, Maker] = {}


def rule(*kinds: str) -> Callable[[Maker], Maker]:
    """Return a decorator that registers what makes a node's rule, once for all balls, for nodes of these kinds."""

    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(kinds, maker))
        return maker

    return register


def is_keras(node: Node) -> bool:
    """Return whether a node is Keras's: some of its functions have names of ONNX's operators, and other options."""
    return "name" in node.options


def not_followed(why: str) -> Unbounded:
    """Return the exception of a node that is not evaluated on a ball."""
    return Unbounded(f"it is not evaluated on a ball: {why}")
