"""Gated activations in networks that write them out, `x (p + q phi(k x + b))`: GELU, SiLU, Mish, hard swish from ONNX.

A product of two branches has no Lipschitz constant; one whose branches are functions of the same entry may have one.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import NamedTuple

from opnorm.bounds.certificates import up
from opnorm.checkpoints.records import Node
from opnorm.networks.activations import FIXED
from opnorm.networks.cubics import cubic, is_gelu
from opnorm.networks.effects import BoundWeight, Effect, constants, find, rule

PRODUCTS = ("Mul", "Multiply")
_STEPS = 8  # nodes between the product and x: the longest of the known forms has five
Nodes = Mapping[str, Node]  # by name
_SILU, _GELU = FIXED["silu"], FIXED["gelu"]
_SMOOTH = {  # slopes of x phi(k x), whatever k > 0: with f(z) = z phi(z) it is f(k x) / k, of slope f'(k x)
    ("Sigmoid",): _SILU,
    ("Tanh",): (2 * _SILU[0] - 1, 2 * _SILU[1] - 1),  # tanh(z) = 2 sigmoid(2 z) - 1
    ("Erf",): (2 * _GELU[0] - 1, 2 * _GELU[1] - 1),  # gelu(x) = x (1 + erf(x / sqrt(2))) / 2
    ("Tanh", "Softplus"): FIXED["mish"],
}


Slopes = tuple[float, float]


class Affine(NamedTuple):
    """The function `shift + factor x`."""

    shift: float
    factor: float

    def after(self, inner: "Affine") -> "Affine":
        """Return this function of another."""
        return Affine(self.shift + self.factor * inner.shift, self.factor * inner.factor)


_IDENTITY = Affine(0.0, 1.0)


class Gate(NamedTuple):
    """The function `outer(phi(inner(x)))` of each entry."""

    outer: Affine
    phi: tuple[Node, ...]  # outermost first
    inner: Affine


def gate_node(node: Node, nodes: Nodes) -> tuple[Node, tuple[str, ...]] | None:
    """Return a product of two functions of one entry as one node, and the nodes that it replaces; else None.

    Args:
        node: Any node.
        nodes: Those before it.
    """
    if node.kind not in PRODUCTS or len(node.inputs) != 2 or node.weights:
        return None
    try:
        return next(_gates(node, nodes), None)
    except Exception:  # not understood: the node's own rule says why
        return None


def _gates(node: Node, nodes: Nodes) -> Iterator[tuple[Node, tuple[str, ...]]]:
    for factor, gate in (node.inputs, node.inputs[::-1]):
        for source, scale, passed in _scaled(factor, nodes):
            for slopes, within in (*_found(gate, source, nodes), *_cubic(gate, source, nodes)):
                ends = sorted(scale * slope for slope in slopes)
                yield Node(node.name, "Gate", (source,), {"slopes": ends}, {}), (*passed, *within)


def _found(gate: str, source: str, nodes: Nodes) -> Iterator[tuple[Slopes, tuple[str, ...]]]:
    """Yield the slopes of x times the function that leads from `source` to `gate`, and the nodes on its way."""
    found = _path(gate, source, nodes)
    slopes = None if found is None else _slopes(found[0])
    if found is not None and slopes is not None:
        yield slopes, found[1]


def _cubic(name: str, source: str, nodes: Nodes) -> Iterator[tuple[Slopes, tuple[str, ...]]]:
    """Yield likewise where the function is `p + q tanh(c x + d x^3)` with the ratio of GELU's."""
    outer = _IDENTITY
    passed: tuple[str, ...] = (name,)
    while len(passed) < _STEPS and name in nodes and nodes[name].kind != "Tanh":
        step = _affine(nodes[name])
        if step is None:
            return
        outer, name = outer.after(step), nodes[name].inputs[0]
        passed += (name,)
    argument = cubic(nodes[name].inputs[0], source, nodes) if name in nodes else None
    if argument is not None and nodes[name].kind == "Tanh" and is_gelu(argument[0]):
        low, high = _SMOOTH["Erf",]  # gelu(x) = x (1 + tanh(..)) / 2, and one interval holds both forms' slopes
        yield (outer.shift + outer.factor * low, outer.shift + outer.factor * high), (*passed, *argument[1])


def _scaled(name: str, nodes: Nodes) -> Iterator[tuple[str, float, tuple[str, ...]]]:
    """Yield the sources of which `name` is a multiple, with the factors and the nodes between."""
    scale = 1.0
    passed: tuple[str, ...] = ()
    yield name, scale, passed
    for _ in range(_STEPS):
        step = _affine(nodes[name]) if name in nodes else None
        if step is None or step.shift:
            return
        scale, passed, name = scale * step.factor, (*passed, name), nodes[name].inputs[0]
        yield name, scale, passed


def _path(name: str, source: str, nodes: Nodes) -> tuple[Gate, tuple[str, ...]] | None:
    """Return the function that leads from `source` to `name`, and the nodes on its way."""
    gate = Gate(_IDENTITY, (), _IDENTITY)
    passed: tuple[str, ...] = ()
    for _ in range(_STEPS):
        if name == source:
            return gate, passed
        longer = _before(gate, nodes[name]) if name in nodes else None
        if longer is None:
            return None
        gate, passed, name = longer, (*passed, name), nodes[name].inputs[0]
    return None


def _before(gate: Gate, node: Node) -> Gate | None:
    """Return the function of one node more."""
    step = _affine(node)
    if step is None:
        plain = len(node.inputs) == 1 and gate.inner == _IDENTITY
        return gate._replace(phi=(*gate.phi, node)) if plain else None
    return gate._replace(inner=gate.inner.after(step)) if gate.phi else gate._replace(outer=gate.outer.after(step))


def _affine(node: Node) -> Affine | None:
    """Return what a node with one stored number does to each entry, None for any other node."""
    if node.kind in ("Neg", "Negative") and len(node.inputs) == 1:
        return Affine(0.0, -1.0)
    if len(node.inputs) != 1 or node.kind not in ("Add", "Sub", "Mul", "Multiply", "Div"):
        return None
    values = constants(node)
    if len(values) != 1 or values[0].size != 1 or not isfinite(values[0].item()):
        return None
    value, is_second = values[0].item(), "0" not in node.weights
    if node.kind == "Div":
        return Affine(0.0, 1 / value) if value and is_second else None
    if node.kind == "Sub":
        return Affine(-value, 1.0) if is_second else Affine(value, -1.0)
    return Affine(value, 1.0) if node.kind == "Add" else Affine(0.0, value)


def _slopes(gate: Gate) -> tuple[float, float] | None:
    """Return an interval that holds the slopes of `x gate(x)`, None when none is known."""
    kinds = tuple(node.kind for node in gate.phi)
    own = _clipped(gate) if len(kinds) == 1 else None
    if own is None and kinds in _SMOOTH and gate.inner.shift == 0 and (gate.inner.factor > 0 or len(kinds) == 1):
        own = _SMOOTH[kinds]  # of a single one for k < 0 too: phi(-z) = 2 phi(0) - phi(z), the interval's mirror image
    if own is None:
        return None
    shift, factor = gate.outer
    return shift + factor * own[0], shift + factor * own[1]


def _clipped(gate: Gate) -> tuple[float, float] | None:
    """Return the slopes of `x clip(k x + b, low, high)`: low, high, and `2 (k x + b) - b` between."""
    node = gate.phi[0]
    if node.kind == "HardSigmoid":
        shift, low, high = float(node.options.get("beta", 0.5)), 0.0, 1.0
        if gate.inner.shift:  # moved by alpha times it, which ONNX and Keras have different defaults for
            return None
    elif node.kind in ("relu6", "ReLU6", "Relu6"):
        shift, low, high = gate.inner.shift, 0.0, 6.0
    elif node.kind == "Clip":
        shift, low, high = gate.inner.shift, _end(node, "1", "min"), _end(node, "2", "max")
    else:
        return None
    ends = (min(low, 2 * low - shift), max(high, 2 * high - shift))
    return ends if low <= high and all(map(isfinite, ends)) else None


def _end(node: Node, role: str, option: str) -> float:
    stored = find(node.weights, role, option)
    return float(node.options.get(option, "nan")) if stored is None else float(stored.item())


@rule("Gate")
def _(node: Node, bounds: BoundWeight) -> Effect:
    low, high = node.options["slopes"]
    text = f"x times a function of x: slopes in [{low:g}, {high:g}]"
    return Effect(up(max(abs(low), abs(high))), text, (low, high))
