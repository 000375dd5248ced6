"""A network's nodes one after another on a ball around one input, and what of it holds for the network as a whole."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import NamedTuple

import numpy as np

import opnorm.networks.balls.attention
import opnorm.networks.balls.extremes
import opnorm.networks.balls.factors
import opnorm.networks.balls.linear
import opnorm.networks.balls.moves
import opnorm.networks.balls.norms
import opnorm.networks.balls.pooling
import opnorm.networks.balls.reductions
import opnorm.networks.balls.scales
import opnorm.networks.balls.spreads  # noqa: F401 - their rules are registered
from opnorm.checkpoints.onnx_steering import STEADY
from opnorm.checkpoints.records import Graph, Node
from opnorm.checks import Array
from opnorm.networks.activations import SIMPLEX, is_activation, parse
from opnorm.networks.balls.functions import of_function
from opnorm.networks.balls.masks import MADE, is_endless, through_rule
from opnorm.networks.balls.moves import constant, reshaped, sliced
from opnorm.networks.balls.rules import MAKERS, Rule, not_followed
from opnorm.networks.balls.shapes import steady_value
from opnorm.networks.balls.values import Found, Space, Value
from opnorm.networks.effects import BoundWeight, Effect, Unbounded, input_shapes, is_for_each, is_training
from opnorm.networks.shape_rules import MEETINGS, SAME

_SEVERAL = (
    *MEETINGS,
    "Mul",
    "Multiply",
    "Div",
    "MatMul",
    "MultiHeadAttention",
    "Reshape",
    "Slice",
)  # whose rules read more than one input
_ENTRIES = 2**26  # of one value's tangents: 512 MiB


class Met(NamedTuple):
    """What was found on one ball."""

    space: Space
    values: Mapping[str, Value]  # by node or input, as far as they are known
    effects: Mapping[str, Effect | Unbounded]  # of nodes, where the ball tells more than their global rule


class Network:
    """A network made ready for balls: each node's rule, whatever the ball.

    Args:
        graph: The network, split, gates as they are written out.
        bounds: As in `network_bound`.
        most: The largest number of tangents along the input; networks with larger inputs have none.
        neurons: The largest number of open neurons.
    """

    def __init__(self, graph: Graph, bounds: BoundWeight, most: int, neurons: int):
        self.graph, self.most, self.neurons = graph, most, neurons
        self.rules = {node.name: _made(node, bounds) for node in graph.nodes}

    def without_tangents(self) -> "Network":
        """Return the same network, of which balls tell values and their errors, but no Jacobians."""
        found = copy(self)
        found.most = found.neurons = 0
        return found

    def meet(self, points: Sequence[Array], radius: float, before: Met | None = None) -> Met:
        """Return what is found of the network on the ball around one example, the inputs as one vector.

        Args:
            points: One for each input, a batch of one.
            radius: Of the ball.
            before: What was found on a smaller ball around the same example.
        """
        size = sum(point.size for point in points)
        inner = {} if before is None else {name: value.moved for name, value in before.values.items()}
        smaller = before.space.radius if before else 0.0
        space = Space(size if size <= self.most else 0, radius, self.neurons, smaller, inner)
        values = dict(zip(self.graph.inputs, _inputs(points, space), strict=True))
        effects: dict[str, Effect | Unbounded] = {}
        for node in self.graph.nodes:
            try:
                found = self._after(node, values, space)
            except Unbounded as reason:
                effects[node.name] = reason
                continue
            if found is not None:
                values[node.name] = space.value(node.name, found)
                effects.update({node.name: found.effect} if found.effect else {})
        return Met(space, values, effects)

    def ended(self, met: Met) -> str:
        """Return the first node that was not followed, and why; nothing where all were."""
        for node in self.graph.nodes:
            reason = met.effects.get(node.name)
            if node.name not in met.values and isinstance(reason, Unbounded):
                return f"{node.name} ({node.kind}): {reason}"
        return ""

    def _after(self, node: Node, values: Mapping[str, Value], space: Space) -> Found | None:
        if node.kind == STEADY:
            return constant(steady_value(node.name, node.options["steady"], values).astype(float), space)
        rule = self.rules[node.name]
        if isinstance(rule, Unbounded):
            raise rule
        if not node.inputs or any(name not in values for name in node.inputs):
            return None
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                read = [values[name] for name in node.inputs]
                _require_told(node, read)
                follow = partial(_steered, node, known=values) if "target" in node.options else rule
                found = through_rule(node, follow, read, space)
        except Unbounded:
            raise
        except Exception as error:  # settings come from files, and rules trust them
            raise not_followed(f"{type(error).__name__}: {error}") from error
        if found.tangents.size > _ENTRIES:
            raise not_followed("its Jacobian does not fit")
        numbers = found.centre[~is_endless(found.centre)] if node.kind in MADE else found.centre
        if not all(np.all(np.isfinite(part)) for part in (numbers, found.error, found.tangents)):
            raise not_followed("its numbers leave the range of float64")
        return found


def _require_told(node: Node, values: Sequence[Value]) -> None:
    """Raise where values have other shapes than the file, or the model, tells: then something before was misread."""
    for value, told in zip(values, input_shapes(node) or (), strict=False):
        shape = value.centre.shape
        sizes = zip(shape, told, strict=True) if len(shape) == len(told) else ((0, 1),)
        if any(type(size) is int and n != size for n, size in sizes):
            raise not_followed(f"its input has the shape {shape} there, not {told}")


def _steered(node: Node, values: list[Value], space: Space, known: Mapping[str, Value]) -> Found:
    """Return a value in a shape, or cut at limits, that the network computes of shapes."""
    value = values[0]
    told = [steady_value(name, node.options["steady"], known) for name in node.options["target"]]
    if node.kind == "Slice":
        return sliced(node, value, told)
    sizes = [int(n) for n in told[0].ravel()]
    if len(told) != 1 or (node.options.get("allowzero") and 0 in sizes):
        raise not_followed("zeros in a shape")
    return reshaped(value, [value.centre.shape[i] if n == 0 else n for i, n in enumerate(sizes)])


def _made(node: Node, bounds: BoundWeight) -> Rule | Unbounded:
    try:
        _require_followed(node)
        if node.kind == "Activation" and parse(node.options.get("activation"))[0] in SIMPLEX:
            node = node._replace(kind="Softmax", options=parse(node.options.get("activation"))[1])
        if node.kind in MAKERS:
            return MAKERS[node.kind](node, bounds)
        if node.kind != "Activation" and not is_activation(node.kind):
            raise not_followed(f"opnorm has no rule for {node.kind} there")
        return of_function(node, bounds)
    except Unbounded as reason:
        return reason
    except Exception as error:  # settings come from files
        return not_followed(f"{type(error).__name__}: {error}")


def _require_followed(node: Node) -> None:
    if is_training(node):
        raise not_followed("it is called in training mode")
    if len(node.inputs) > 1 and node.kind not in _SEVERAL:
        raise not_followed("a second input, such as a mask, steers it")
    if is_for_each(node) and not _is_alike(node):
        raise not_followed("a layer that is applied to every position, and tells axes apart")


def _is_alike(node: Node) -> bool:
    """Return whether a layer that is applied to every position does the same to all of them at once."""
    name, options = parse(node.options.get("activation")) if node.kind == "Activation" else (node.kind, node.options)
    return name in ("Dense", *SAME) or (is_activation(name) and options.get("axis", -1) == -1)


def _inputs(points: Sequence[Array], space: Space) -> list[Value]:
    """Return the network's inputs: each entry its own tangent, or all of a constant of one."""
    found, start = [], 0
    for point in points:
        tangents = np.zeros((space.open.inputs, point.size))
        plain = 0.0 if space.open.inputs else 1.0
        if space.open.inputs:
            tangents[np.arange(start, start + point.size), np.arange(point.size)] = 1.0
        start += point.size
        rest, shape = np.full(point.shape, plain), point.shape
        known = Found(
            point,
            np.zeros(shape),
            tangents.reshape(-1, *shape) if len(tangents) else np.zeros((0, *shape)),
            rest,
            plain,
        )
        found.append(space.value("", known))
    return found
