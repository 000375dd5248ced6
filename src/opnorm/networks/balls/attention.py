"""Keras's multi-head attention on a ball, step by step: on a ball its queries, keys and values are bounded."""

from math import hypot, sqrt

import numpy as np

from opnorm.bounds.certificates import up
from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.linear import Linear, einsum, moving, scaling, through
from opnorm.networks.balls.open_neurons import norm_above
from opnorm.networks.balls.products import product_of_matrices, softmax
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import Found, Space, Value
from opnorm.networks.effects import BoundWeight, Effect, find

_PARTS = ("query", "key", "value", "output")
_ROLES = ("kernel", "bias", "seed_generator_state")  # the last of its dropout, which does nothing at inference


@rule("MultiHeadAttention")
def _(node: Node, bounds: BoundWeight) -> Rule:
    options = node.options
    arguments = {name: value for name, value in (options.get("arguments") or {}).items() if value not in (None, False)}
    gated = options.get("use_gate") or options.get("sliding_window")
    gated = gated or options.get("attention_axes") not in (None, [1], [-2])
    if arguments or gated or len(node.inputs) not in (2, 3):
        raise not_followed("a mask, a gate, or axes of its own")
    dense = {part: _projection(node, part) for part in _PARTS}
    scale = 1 / sqrt(float(options["key_dim"]))

    def attended(values: list[Value], space: Space) -> Found:
        query, value, *more = values
        key = more[0] if more else value
        if query.centre.ndim != 3:
            raise not_followed(f"a query with {query.centre.ndim} axes")

        def projected(part: str, of: Value) -> Value:  # (batch, heads, tokens, numbers)
            linear, bias = dense[part]
            before = space.value("", through(linear, of, bias))
            return space.value("", through(_heads_first(), before))

        q, k, v = projected("query", query), projected("key", key), projected("value", value)
        scores = product_of_matrices([q, space.value("", through(_transposed(), k))], space)
        scaled = through(scaling(np.full(1, scale), 4), space.value("", scores))
        weights = softmax(space.value("", scaled), space)
        found = product_of_matrices([space.value("", weights), v], space)
        linear, bias = dense["output"]
        after = through(linear, space.value("", through(_heads_first(), space.value("", found))), bias)
        norms = [dense[part][0].norm for part in _PARTS]
        return after._replace(
            effect=_effect(norms, scale, [part.effect.constant for part in (scores, weights, found) if part.effect])
        )

    return attended


def _effect(norms: list[float], scale: float, constants: list[float]) -> Effect:
    """Return the constant from queries, values and keys side by side."""
    query, key, value, output = norms
    scores, weights, found = constants
    attended = found * hypot(weights * scale * scores * hypot(query, key), value)
    return Effect(up(output * attended), f"softmax of products of bounded queries and keys: {weights:.3g}")


def _projection(node: Node, part: str) -> tuple[Linear, Array | float]:
    names = (f"{part}_dense", "attention_output" if part == "output" else part)  # in files, and of a live layer
    kernel, bias = (find(node.weights, *(f"{name}/{role}" for name in names)) for role in ("kernel", "bias"))
    if kernel is None or any(role.split("/")[-1] not in _ROLES for role in node.weights):
        raise not_followed(f"no plain kernel of its {part}")
    split = kernel.reshape(-1, kernel.shape[-1]) if part == "output" else kernel.reshape(len(kernel), -1)
    equation = "bthd,hde->bte" if part == "output" else "btc,chd->bthd"
    return einsum(equation, kernel, norm_above(split)), 0.0 if bias is None else bias


def _heads_first() -> Linear:
    return moving(lambda v: np.swapaxes(v, 2, 3))


def _transposed() -> Linear:
    return moving(lambda v: np.swapaxes(v, -1, -2))
