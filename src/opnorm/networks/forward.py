"""A network evaluated in float64, with a bound of every rounding error on the way: a running error analysis.

Each value has errors, entry by entry: the number that real arithmetic would give is no further away. A sum of n
products is off by at most gamma_n sum |w| |x|, in whatever order a BLAS adds; what was off before goes through |w|, or
through the slope of an activation. NumPy's and SciPy's elementary functions are taken to be right to 32 ulps.

Reference:
    N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 2002, section 3.3.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from opnorm.bounds.certificates import UNIT, gamma
from opnorm.checkpoints.records import Graph, Node
from opnorm.checks import Array
from opnorm.networks.activations import activation, parse
from opnorm.networks.effects import called_with, find, is_for_each
from opnorm.networks.linear_rules import channel_factors
from opnorm.networks.picks import pick_of
from opnorm.operators.convolution import Convolution

_ULPS = 64 * UNIT  # of an elementary function: 32 ulps
_SPARE = 1 + 2.0**-20  # pays for the roundings of the errors themselves
_TINY = 1e-290  # pays for underflow
_SAME = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "ActivityRegularization",
)
_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")


class NotEvaluatedError(Exception):
    """A node that this file has no error analysis of; the message names it."""


class Value(NamedTuple):
    """Numbers, examples first, and how far each may be from what real arithmetic gives."""

    values: Array
    errors: Array


def evaluate(graph: Graph, x: Array) -> Value:
    """Return the output of a network that was split, at the examples `x`.

    Raises:
        NotEvaluatedError: When a node is of a kind that is not known here.
    """
    found = {graph.inputs[0]: Value(x, np.zeros_like(x))}
    for node in graph.nodes:
        found[node.name] = _after(node, [found[name] for name in node.inputs])
    return found[graph.outputs[0]]


def _after(node: Node, inputs: list[Value]) -> Value:
    if node.kind in _MEETINGS and len(inputs) > 1 and not called_with(node):
        return _MEETINGS[node.kind](node, inputs)
    if is_for_each(node) and node.kind not in ("Dense", "Activation", *_SAME):
        raise NotEvaluatedError(node.name)
    if len(inputs) != 1 or set(called_with(node)) - {"training"}:  # in training mode: no bound
        raise NotEvaluatedError(node.name)
    return _RULES.get(node.kind, _activated)(node, inputs[0])


def _sum(node: Node, inputs: list[Value]) -> Value:
    _require_one_shape(node, inputs)
    rounding = gamma(len(inputs)) * sum(np.abs(values) for values, _ in inputs)
    return Value(sum(v for v, _ in inputs), (sum(e for _, e in inputs) + rounding) * _SPARE)  # type: ignore[arg-type]


def _extreme(node: Node, inputs: list[Value]) -> Value:
    _require_one_shape(node, inputs)
    choose = np.maximum if node.kind == "Maximum" else np.minimum
    return Value(choose.reduce([v for v, _ in inputs]), np.maximum.reduce([e for _, e in inputs]))


def _joined(node: Node, inputs: list[Value]) -> Value:
    axis = node.options.get("axis", -1)
    return Value(*(np.concatenate(parts, axis=axis) for parts in zip(*inputs, strict=True)))


def _require_one_shape(node: Node, inputs: list[Value]) -> None:
    if len({value.values.shape for value in inputs}) > 1:
        raise NotEvaluatedError(node.name)


def _same(node: Node, value: Value) -> Value:
    return value


def _picked(node: Node, value: Value) -> Value:
    pick = pick_of(node)
    if pick is None or pick.axis == 0:
        raise NotEvaluatedError(node.name)
    return Value(*(part.take(list(pick.places), axis=pick.axis) for part in value))


def _flat(node: Node, value: Value) -> Value:
    if node.options.get("data_format") == "channels_first":
        raise NotEvaluatedError(node.name)
    return Value(*(part.reshape(len(part), -1) for part in value))


def _reshaped(node: Node, value: Value) -> Value:
    return Value(*(part.reshape(len(part), *node.options["target_shape"]) for part in value))


def _repeated(node: Node, value: Value) -> Value:
    return Value(*(np.broadcast_to(part, (len(part), *node.options["shape"][1:])) for part in value))


def _dense(node: Node, value: Value) -> Value:
    kernel, bias = _kernel_and_bias(node)
    size = np.abs(kernel)
    return _affine(value, lambda v: v @ kernel, lambda v: v @ size, bias, len(kernel))


def _convolved(node: Node, value: Value) -> Value:
    kernel, bias = _kernel_and_bias(node)
    if node.options.get("data_format") != "channels_last" or node.options["padding"] not in ("same", "valid"):
        raise NotEvaluatedError(node.name)
    names = ("strides", "padding", "dilation_rate", "groups")
    sizes = value.values.shape[1:-1]
    plain, size = (
        Convolution(k, sizes, **{name: node.options[name] for name in names}) for k in (kernel, np.abs(kernel))
    )

    def applied(operator: Convolution, v: Array) -> Array:
        columns = operator.matmat(v.reshape(len(v), -1).T)
        return np.ascontiguousarray(columns.T).reshape(len(v), *operator.output_shape, kernel.shape[-1])

    return _affine(value, lambda v: applied(plain, v), lambda v: applied(size, v), bias, prod(kernel.shape[:-1]))


def _kernel_and_bias(node: Node) -> tuple[Array, Array]:
    kernel, bias = find(node.weights, "kernel"), find(node.weights, "bias")
    if kernel is None or not set(node.weights) <= {"kernel", "bias"}:
        raise NotEvaluatedError(node.name)
    return kernel, np.zeros(kernel.shape[-1]) if bias is None else bias


def _affine(value: Value, of: Callable[[Array], Array], size: Callable[[Array], Array], bias: Array, n: int) -> Value:
    """Return `of(value) + bias`, a sum of n products; `size` multiplies with the magnitudes of its numbers."""
    rounding = gamma(n + 2) * (size(np.abs(value.values)) + np.abs(bias))
    return Value(of(value.values) + bias, (size(value.errors) + rounding + _TINY) * _SPARE)


def _normalized(node: Node, value: Value) -> Value:
    last = value.values.ndim - 1
    if node.options.get("axis") not in (-1, last, [-1], [last]):
        raise NotEvaluatedError(node.name)
    mean, beta = find(node.weights, "moving_mean"), find(node.weights, "beta")
    if mean is None:
        raise NotEvaluatedError(node.name)
    shift = np.zeros_like(mean) if beta is None else beta
    return _scaled(value, channel_factors(node), -mean, shift)


def _rescaled(node: Node, value: Value) -> Value:
    factors = channel_factors(node).reshape(np.shape(node.options["scale"]))
    return _scaled(value, factors, np.zeros_like(factors), np.asarray(node.options.get("offset", 0.0), dtype=float))


def _scaled(value: Value, factors: Array, before: Array, after: Array) -> Value:
    """Return `(value + before) * factors + after`; the factors are off by eight roundings."""
    size = np.abs(factors)
    rounding = gamma(16) * ((np.abs(value.values) + np.abs(before)) * size + np.abs(after))
    values = (value.values + before) * factors + after
    return Value(values, (value.errors * size + rounding + _TINY) * _SPARE)


Function = Callable[[Array], Array]


def _leaky(slope: float, most: float | None = None) -> Function:
    return lambda v: np.where(v > 0, v if most is None else np.minimum(v, most), slope * v)


_FUNCTIONS: dict[str, Callable[[Mapping[str, Any]], Function]] = {
    "linear": lambda _: lambda v: v,
    "relu": lambda _: _leaky(0.0),
    "relu6": lambda _: _leaky(0.0, 6.0),
    "leaky_relu": lambda _: _leaky(0.2),
    "tanh": lambda _: np.tanh,
    "sigmoid": lambda _: expit,
    "silu": lambda _: lambda v: v * expit(v),
    "softplus": lambda _: lambda v: np.logaddexp(0.0, v),
    "elu": lambda _: lambda v: np.where(v > 0, v, np.expm1(np.minimum(v, 0.0))),
    "ReLU": lambda options: _leaky(float(options.get("negative_slope") or 0.0), options.get("max_value")),
    "LeakyReLU": lambda options: _leaky(float(options["negative_slope"])),
}

_PLAIN = ("relu", "relu6", "tanh", "sigmoid", "silu", "softplus")  # without options, also as functions of `keras.ops`


def _activated(node: Node, value: Value) -> Value:
    name, options = parse(node.options.get("activation")) if node.kind == "Activation" else (node.kind, node.options)
    known = name.lower() if name.lower() in _PLAIN and name not in _FUNCTIONS else name  # keras.ops.Relu
    if known not in _FUNCTIONS:
        raise NotEvaluatedError(node.name)
    constant = activation(name, options).constant
    values = _FUNCTIONS[known](options)(value.values)
    return Value(values, (constant * value.errors + _ULPS * np.abs(values) + _TINY) * _SPARE)


_MEETINGS: dict[str, Callable[[Node, list[Value]], Value]] = {
    "Add": _sum,
    "Maximum": _extreme,
    "Minimum": _extreme,
    "Concatenate": _joined,
}
_RULES: dict[str, Callable[[Node, Value], Value]] = {
    "Repeat": _repeated,
    "Split": _picked,
    "Slice": _picked,
    "Dense": _dense,
    "Flatten": _flat,
    "Reshape": _reshaped,
    "BatchNormalization": _normalized,
    "Rescaling": _rescaled,
    **dict.fromkeys(_CONVOLUTIONS, _convolved),
    **dict.fromkeys(_SAME, _same),
}
