"""What a node of a network does to a distance: one record, and the registry of the rules that give it."""

from collections.abc import Callable, Iterator, Mapping
from operator import index
from typing import Any, NamedTuple

import numpy as np

from opnorm.bounds.brackets import Bounds
from opnorm.checkpoints.records import Node, Weight
from opnorm.checks import Array, real_array


class Unbounded(Exception):  # noqa: N818 - an answer, not an error: it becomes a row of the report
    """A node without a finite constant; the message is the reason."""


Slopes = tuple[float | Array, float | Array]  # the ends of an interval, of all entries or of each


class Effect(NamedTuple):
    """The Lipschitz constant of a node from any one of its inputs to its output."""

    constant: float  # rounded upwards
    rule: str  # for people: why
    slopes: Slopes | None = None  # of a function of each entry: every difference quotient lies in it
    adds: bool = False  # several inputs are added up; else each output entry moves no more than one side by side
    discrete: bool = False  # its input is a number of a row; see `row_distance`
    sized: bool | None = None  # it holds for images of the model's size alone; None: it does not depend on a size


BoundWeight = Callable[[Weight], Bounds]
Rule = Callable[[Node, BoundWeight], Effect]
RULES: dict[str, Rule] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a rule for nodes of these kinds."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def find(weights: Mapping[str, Weight], *roles: str) -> Array | None:
    """Return the values in float64 of the first of `roles` that is there, None if none is."""
    for role in roles:
        if role in weights:
            return real_array(weights[role].read(), role)
    return None


def integers(weights: Mapping[str, Weight], role: str) -> Array | None:
    """Return the integers of a role that say how entries are moved; the largest of all, "to the end", as 2^40."""
    if role not in weights:
        return None
    return np.asarray(np.clip(np.asarray(weights[role].read()), -(2**40), 2**40), dtype=float)


Shape = tuple[int | str | None, ...]  # a size that only a run knows is None (Keras) or has a name (ONNX)


def input_shapes(node: Node) -> list[Shape] | None:
    """Return the shapes of a node's inputs, batch included, None when nothing tells them.

    The readers put them under `input_shapes`, one shape for each input, None where they could not work it out.
    """
    shapes = node.options.get("input_shapes")
    if not shapes or len(shapes) != len(node.inputs) or any(shape is None for shape in shapes):
        return None
    return [tuple(shape) for shape in shapes]


def fits(constant: tuple[int, ...], shape: Shape) -> bool:
    """Return whether adding a constant leaves the shape as it is."""
    if len(constant) > len(shape):
        return False
    ends = shape[len(shape) - len(constant) :]
    return all(c in (1, n) for c, n in zip(constant, ends, strict=True))


def called_with(node: Node) -> Mapping[str, Any]:
    """Return what a node was called with beside its inputs."""
    return node.options.get("arguments") or {}


def is_training(node: Node) -> bool:
    """Return whether a node is called in training mode, where no rule holds."""
    return bool(called_with(node).get("training"))


def constants(node: Node) -> list[Array]:
    """Return the stored numbers that a node without parameters of its own combines its inputs with.

    Raises:
        Unbounded: When the node was called with something that is no number, or rounds.
    """
    given = called_with(node)
    plain = [
        *given.get("args", ()),
        *(value for key, value in given.items() if key not in ("args", "training", "mask")),
    ]
    if not all(isinstance(value, int | float) for value in plain):
        raise Unbounded("it was called with arguments that opnorm does not read")
    if node.kind == "Div" and any(weight.dtype.startswith(("int", "uint")) for weight in node.weights.values()):
        raise Unbounded("divides integers, and rounds")
    stored = [real_array(weight.read(), role) for role, weight in node.weights.items()]
    return stored + [real_array(value, "args") for value in plain]


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """Return one positive integer for each of `rank` axes.

    Raises:
        Unbounded: When it is anything else: settings come from files.
    """
    found = (index(value),) * rank if np.ndim(value) == 0 else tuple(index(v) for v in value)
    if len(found) != rank or min(found, default=1) < 1:
        raise Unbounded(f"{value!r} is no positive integer for each of {rank} axes")
    return found


def text_of(value: Any) -> str:
    """Return a setting that is a text, which ONNX has as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def is_for_each(node: Node) -> bool:
    """Return whether a layer is applied to every position of its input: it knows one axis less, the second."""
    return bool(node.options.get("for_each"))


def kernels(node: Node) -> Iterator[tuple[str, Weight]]:
    """Yield the weights of a node that are linear maps, with their roles."""
    for role, weight in node.weights.items():
        if weight.geometry.operator is not None:
            yield role, weight
