"""Cubic polynomials of one value that a network writes out: the argument of GELU's tanh form."""

from collections.abc import Mapping
from math import isfinite, pi

from opnorm.checkpoints.records import Node
from opnorm.networks.effects import constants

Cubic = tuple[float, float, float, float]  # coefficients of 1, x, x^2, x^3
_DEEP = 8  # nodes on the longest way to x: the known forms have six
_GELU = 0.044715 * pi / 2  # d / c^3 in tanh(c x + d x^3), with c = sqrt(2 / pi)
_NEAR = 1e-5  # of it: the steepest slope then moves by 2.4e-7, and its constant has 9e-7 to spare


def is_gelu(argument: Cubic) -> bool:
    """Return whether `x (1 + tanh(argument)) / 2` has the slopes of GELU's tanh form: it is that of k x over k."""
    shift, c, square, d = argument
    return shift == square == 0 and c > 0 and abs(d / c**3 - _GELU) <= _NEAR * _GELU


def cubic(name: str, source: str, nodes: Mapping[str, Node]) -> tuple[Cubic, tuple[str, ...]] | None:
    """Return `name` as a cubic polynomial of `source`, and the nodes that compute it; None where it is none."""
    known: dict[str, Cubic | None] = {source: (0.0, 1.0, 0.0, 0.0)}
    found = _of(name, nodes, known, _DEEP)
    return None if found is None else (found, tuple(passed for passed in known if passed != source))


def _of(name: str, nodes: Mapping[str, Node], known: dict[str, Cubic | None], depth: int) -> Cubic | None:
    if name not in known:
        known[name] = _computed(nodes[name], nodes, known, depth - 1) if name in nodes and depth else None
    return known[name]


def _computed(node: Node, nodes: Mapping[str, Node], known: dict[str, Cubic | None], depth: int) -> Cubic | None:
    parts = [_of(name, nodes, known, depth) for name in node.inputs]
    stored = [_constant(values.item()) for values in constants(node) if values.size == 1]
    terms = [part for part in (*stored, *parts) if part is not None]  # constants first
    if len(terms) != len(node.inputs) + len(node.weights) or not 1 <= len(terms) <= 2:
        return None
    if "0" not in node.weights and stored:
        terms = terms[::-1]
    found = _combined(node.kind, *terms)
    return found if found is not None and all(map(isfinite, found)) else None


def _constant(value: float) -> Cubic:
    return value, 0.0, 0.0, 0.0


def _combined(kind: str, a: Cubic, b: Cubic = (1.0, 0.0, 0.0, 0.0)) -> Cubic | None:
    if kind == "Add":
        return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]
    if kind in ("Mul", "Multiply"):
        return _product(a, b)
    if any(b[1:]):
        return None
    if kind == "Div" and b[0]:
        return _product(a, _constant(1 / b[0]))
    if kind == "Pow" and b[0] in (2.0, 3.0):
        square = _product(a, a)
        return square if square is None or b[0] == 2 else _product(square, a)
    return None


def _product(a: Cubic, b: Cubic) -> Cubic | None:
    """Return the product, None when its degree is above three."""
    every = [sum(a[i] * b[k - i] for i in range(4) if 0 <= k - i < 4) for k in range(7)]
    return None if any(every[4:]) else (every[0], every[1], every[2], every[3])
