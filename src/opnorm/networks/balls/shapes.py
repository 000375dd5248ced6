"""ONNX's shape arithmetic at the shapes that a ball's values have: targets of Reshape, the scale of attention."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.rules import not_followed
from opnorm.networks.balls.values import Value
from opnorm.networks.effects import integers

_DEEP = 64  # operators behind each other
_SMALL = 2**20  # numbers of a result: a mask


def steady_value(name: str, steady: Mapping[str, Node], values: Mapping[str, Value], deep: int = 0) -> Array:
    """Return what a node computes from shapes alone.

    Args:
        name: The node's.
        steady: The nodes of the network that compute with shapes, by name.
        values: Those that were found on the ball.
        deep: How many nodes have asked for it.

    Raises:
        Unbounded: When it is not worked out here.
    """
    node = steady.get(name)
    if node is None or deep > _DEEP:
        raise not_followed("numbers that it computes from shapes")
    if node.kind in ("Shape", "Size"):
        return _shape(node, values)
    inputs = iter([steady_value(one, steady, values, deep + 1) for one in node.inputs])
    count = len(node.inputs) + sum(role.isdigit() for role in node.weights)
    given = [next(inputs) if (own := _stored(node, str(i))) is None else own for i in range(count)]
    kind = node.kind.removesuffix(" of a constant")
    if kind not in _RULES:
        raise not_followed(f"{kind} of a shape")
    found = np.asarray(_RULES[kind](node.options, *given))
    if found.size > _SMALL:
        raise not_followed("large numbers of shapes")
    return found


def _stored(node: Node, role: str) -> Array | None:
    """Return a constant, integers as such; the limits of slices may be the largest there are, numbers no end."""
    if role not in node.weights:
        return None
    values = np.asarray(node.weights[role].read())
    return (
        np.asarray(integers(node.weights, role), dtype=np.int64) if values.dtype.kind in "iu" else values.astype(float)
    )


def _shape(node: Node, values: Mapping[str, Value]) -> Array:
    if node.inputs[0] not in values:
        raise not_followed("the shape of something that is not known")
    shape: Any = np.array(values[node.inputs[0]].centre.shape, dtype=np.int64)
    if node.kind == "Size":
        return np.asarray(np.prod(shape))
    return np.asarray(shape[slice(int(node.options.get("start", 0)), node.options.get("end"))])


def _slice(options: Mapping[str, Any], data: Array, *limits: Array) -> Array:
    given = [*limits, *(np.zeros(1), np.ones(1))[len(limits) - 2 :]]
    if len(given) != 4:
        raise not_followed("a slice of a shape without its limits")
    starts, ends, axes, steps = given
    if data.ndim != 1 or any(limit.size != 1 for limit in (starts, ends, axes, steps)) or axes.item() not in (0, -1):
        raise not_followed("a slice of several axes of a shape")
    end = min(int(ends.item()), len(data))
    return np.asarray(data[int(starts.item()) : end : int(steps.item())])


def _gather(options: Mapping[str, Any], data: Array, places: Array) -> Array:
    return np.asarray(data[places.astype(int)])


def _cast(options: Mapping[str, Any], data: Array) -> Array:
    to = options.get("to")
    if to not in (1, 6, 7, 11):  # ONNX's float32, int32, int64, float64
        raise not_followed(f"a cast of shapes to the type {to}")
    return data.astype(np.int64 if to in (6, 7) else np.float64)


def _concat(options: Mapping[str, Any], *parts: Array) -> Array:
    return np.concatenate([np.atleast_1d(part) for part in parts])


def _divide(options: Mapping[str, Any], a: Array, b: Array) -> Array:
    if a.dtype.kind != b.dtype.kind:
        raise not_followed("a quotient of two types")
    if a.dtype.kind != "i":
        return a / b
    if not np.all(b):
        raise not_followed("a quotient by zero")
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))  # towards zero


def _exact(options: Mapping[str, Any], data: Array, *axes: Array) -> Array:
    return np.atleast_1d(data)


def _unsqueezed(options: Mapping[str, Any], data: Array, *axes: Array) -> Array:
    places = axes[0].astype(int) if axes else np.asarray(options["axes"])
    return np.expand_dims(data, tuple(places.ravel())) if data.ndim > 1 else np.atleast_1d(data)


def _expanded(options: Mapping[str, Any], data: Array, shape: Array) -> Array:
    sizes = np.broadcast_shapes(data.shape, tuple(int(n) for n in shape.ravel()))
    if np.prod(sizes, dtype=float) > _SMALL:
        raise not_followed("large numbers of shapes")
    return np.broadcast_to(data, sizes)


def _chosen(options: Mapping[str, Any], by: Array, a: Array, b: Array) -> Array:
    return np.asarray(np.where(by != 0, a, b))


def _triangle(options: Mapping[str, Any], data: Array, *first: Array) -> Array:
    cut = np.triu if options.get("upper", 1) else np.tril
    return np.asarray(cut(data, int(first[0].item()) if first else 0))


_RULES: dict[str, Callable[..., Array]] = {
    "Slice": _slice,
    "Gather": _gather,
    "Cast": _cast,
    "Concat": _concat,
    "Div": _divide,
    "Add": lambda options, a, b: a + b,
    "Sub": lambda options, a, b: a - b,
    "Mul": lambda options, a, b: a * b,
    "Sqrt": lambda options, a: np.sqrt(a.astype(float)),
    "Reciprocal": lambda options, a: 1 / a.astype(float),
    "Neg": lambda options, a: -a,
    "Identity": _exact,
    "Unsqueeze": _unsqueezed,
    "Expand": _expanded,
    "Equal": lambda options, a, b: (a == b).astype(float),
    "Trilu": _triangle,
    "Where": _chosen,
    "Squeeze": _exact,
    "Reshape": _exact,
}
