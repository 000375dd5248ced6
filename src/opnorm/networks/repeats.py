"""Values that a node repeats along axes of one entry, to fit its others: a node of its own says how often.

Repeated n times a change is sqrt(n) times as long. A value less its own mean is no longer than it: a projection.
"""

from collections.abc import Mapping, Sequence
from math import prod, sqrt

from opnorm.bounds.certificates import up
from opnorm.checkpoints.records import Node
from opnorm.networks.effects import BoundWeight, Effect, Shape, called_with, input_shapes, rule
from opnorm.networks.reduction_rules import reduced_axes

_SUMS = ("Add", "Subtract", "Sub", "Sum", "Average", "Mean", "Maximum", "Minimum", "Max", "Min")
_FACTORS = ("Mul", "Multiply", "Div")  # with stored numbers
Nodes = Mapping[str, Node]  # by name


def repeated(node: Node) -> list[Node]:
    """Return a node that combines values entry by entry, behind one node for each input that is repeated to fit.

    Where the shapes do not tell how often, it is the node as it was.
    """
    shapes = input_shapes(node)
    if shapes is None or node.kind not in (*_SUMS, *_FACTORS) or (node.kind in _FACTORS and len(shapes) > 1):
        return [node]
    whole = _fitting([*shapes, *(_filled(tuple(weight.shape), shapes[0]) for weight in node.weights.values())])
    if whole is None:
        return [node]
    before = [_repeat(node, i, shape, whole) for i, shape in enumerate(shapes)]
    inputs = tuple(name if one is None else one.name for name, one in zip(node.inputs, before, strict=True))
    options = {**node.options, "input_shapes": [whole] * len(shapes)}
    return [*(one for one in before if one is not None), node._replace(inputs=inputs, options=options)]


def _filled(stored: tuple[int, ...], shape: Shape) -> Shape:
    """Return the shape of stored numbers, with a value's sizes along axes where these have one entry."""
    front = len(shape) - len(stored)
    return (
        stored
        if front < 0
        else (*shape[:front], *(own if n == 1 else n for n, own in zip(stored, shape[front:], strict=True)))
    )


def _fitting(shapes: Sequence[Shape]) -> Shape | None:
    """Return the shape to which all of these are repeated, None where it is theirs already or is not known."""
    if len({len(shape) for shape in shapes}) > 1 or len(set(shapes)) == 1:
        return None
    found: list[int | str | None] = []
    for sizes in zip(*shapes, strict=True):
        others = set(sizes) - {1} or {1}
        if len(others) > 1 or (1 in sizes and not all(type(n) is int and n > 0 for n in others)):
            return None
        found.append(others.pop())
    return tuple(found)


def _repeat(node: Node, place: int, shape: Shape, whole: Shape) -> Node | None:
    if shape == whole:
        return None
    count = prod(n for n, own in zip(whole, shape, strict=True) if n != own and isinstance(n, int))
    options = {"input_shapes": [shape], "shape": whole, "count": count}
    return Node(f"{node.name}/repeated {place}", "Repeat", (node.inputs[place],), options, {})


@rule("Repeat")
def _(node: Node, bounds: BoundWeight) -> Effect:
    count = node.options["count"]
    return Effect(up(sqrt(count)), f"repeats its input {count} times, to fit what it is combined with", sized=True)


def centred(node: Node, nodes: Nodes) -> tuple[Node, tuple[str, ...]] | None:
    """Return a value less its own mean, which it writes out, as one node, and the node that it replaces; else None.

    Args:
        node: Any node.
        nodes: Those before it.
    """
    if node.kind not in ("Sub", "Subtract") or len(node.inputs) != 2 or node.weights or called_with(node):
        return None
    source, mean = node.inputs[0], nodes.get(node.inputs[1])
    if mean is None or mean.kind != "ReduceMean" or mean.inputs != (source,) or not _keeps_axes(mean, node):
        return None
    return Node(node.name, "Centring", (source,), {}, {}), (mean.name,)


def _keeps_axes(mean: Node, node: Node) -> bool:
    """Return whether a mean is repeated along the very axes over which it goes."""
    shapes, axes = input_shapes(node), reduced_axes(mean)
    if shapes is None or not axes or len(shapes[0]) != len(shapes[1]):
        return False
    rank = len(shapes[0])
    over = {axis % rank for axis in axes}
    return all(size == (1 if i in over else whole) for i, (whole, size) in enumerate(zip(*shapes, strict=True)))


@rule("Centring")
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "its input less its own mean: a projection")
