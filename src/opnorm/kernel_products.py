"""The kernels of two neighbouring linear nodes multiplied out, with the rounding errors of doing so.

Every kernel is brought to one layout, Keras's of a convolution: (*spatial, channels in / groups, channels out). A
matrix has no spatial axes; a transposed convolution stands for its adjoint.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.arguments import Array, real_array
from opnorm.certificates import gamma, up
from opnorm.checkpoints.records import Geometry, Node, Weight
from opnorm.convolution import Convolution
from opnorm.effects import Unbounded, per_axis
from opnorm.linear_rules import CONVOLUTIONS, DEPTHWISE, MATRICES, TRANSPOSED, channel_factors, kernel_of

_ONNX = ("Conv", "ConvTranspose")
_ENTRIES = 2**25  # of a product that may be formed: 256 MiB in float64
_ROUNDINGS = 12  # of a channel factor and its product


def standard(node: Node) -> tuple[Array, int]:
    """Return a node's kernel in the common layout, and its number of groups."""
    values = real_array(kernel_of(node).read(), "kernel")
    if node.kind in DEPTHWISE:
        return values.reshape(*values.shape[:-2], 1, -1), values.shape[-2]
    if node.kind in _ONNX or (node.kind == "Gemm" and node.options.get("transB")):
        values = values.transpose(_reversed(values.ndim))
    if node.kind in MATRICES:
        _require_columns(node, values)
    return values, int(node.options.get("groups", node.options.get("group", 1)))


def _require_columns(node: Node, values: Array) -> None:
    """Raise unless the node multiplies the last axis of its input: ONNX's MatMul may have its matrix on the left."""
    weight = kernel_of(node)
    operator = weight.geometry.operator
    probe = np.random.default_rng(0).standard_normal(len(values))
    product = operator(real_array(weight.read(), "kernel")) if operator and values.ndim == 2 else None
    same = product is not None and product.shape == values.shape[::-1]
    if not same or not np.allclose(product @ probe, values.T @ probe):  # type: ignore[operator]
        raise Unbounded("its matrix stands on the left, or has more than two axes")


def _reversed(ndim: int) -> list[int]:
    return [*range(2, ndim), 1, 0]


def _restored(node: Node, values: Array, shape: tuple[int, ...]) -> Array:
    """Undo `standard`."""
    if node.kind in _ONNX or (node.kind == "Gemm" and node.options.get("transB")):
        return values.transpose(np.argsort(_reversed(values.ndim)))
    return values.reshape(shape)


def scaled(node: Node, scale: Node, *, outputs: bool) -> Node:
    """Return the node of a kernel with the channel factors of `scale` multiplied into its outputs, or its inputs."""
    factors, weight = channel_factors(scale), kernel_of(node)
    values, groups = standard(node)
    values = values * _spread(factors, values, groups, last=outputs != (node.kind in TRANSPOSED))
    error = _error(node) * float(np.max(np.abs(factors))) + gamma(_ROUNDINGS) * _total(values)
    result = _restored(node, values, weight.shape)
    geometry = weight.geometry._replace(text=f"{weight.geometry.text}, times the factors of {scale.kind}")
    kernel = Weight(node.name, weight.shape, "float64", lambda: result, geometry)
    return node._replace(options={**node.options, "rounding": up(error)}, weights={"kernel": kernel})


def _spread(factors: Array, values: Array, groups: int, *, last: bool) -> Array:
    """Return the factors of each channel as numbers to multiply the last two axes of `values` with."""
    if last:
        return np.broadcast_to(factors, values.shape[-1])
    by_group = np.broadcast_to(factors, groups * values.shape[-2]).reshape(groups, -1)
    return np.repeat(by_group.T, values.shape[-1] // groups, axis=1)


def _error(node: Node) -> float:
    """Return what earlier products may have changed in the norm of a node's kernel."""
    return float(node.options.get("rounding", 0.0))


def _total(values: Array) -> float:
    """Return the sum of all magnitudes: it bounds the norm of any operator that these entries make."""
    return up(float(np.sum(np.abs(values))) * (1 + gamma(values.size)))


def product(a: Node, b: Node, name: str) -> Node | None:
    """Return one node for `b` after `a`, a matrix or convolution and a pointwise map; None for all other pairs."""
    if a.kind not in (*MATRICES, *CONVOLUTIONS, *DEPTHWISE) or not _is_pointwise(b):
        return None
    (first, groups), (second, _) = standard(a), standard(b)
    second = second.reshape(second.shape[-2:])
    if prod(first.shape[:-1]) * groups * max(second.shape) > _ENTRIES:
        return None
    values = _without_groups(first, groups) @ second
    error = _error(a) * _total(second) + _total(first) * _error(b) + _error(a) * _error(b)
    error += gamma(len(second)) * _total(first) * _total(second)
    kind, options, operator = _kind_of_product(a, values.ndim - 2)
    geometry = Geometry(kind, f"product of {a.kind} and {b.kind}", operator)
    kernel = Weight(name, values.shape, "float64", lambda: values, geometry)
    return Node(name, kind, a.inputs, {**options, "rounding": up(error)}, {"kernel": kernel})


def _is_pointwise(node: Node) -> bool:
    if node.kind in MATRICES:
        return True
    values, groups = standard(node) if node.kind in CONVOLUTIONS else (np.empty(0), 0)
    return groups == 1 and values[..., 0, 0].size == 1 and all(step == 1 for step in _steps(node, values.ndim - 2)[0])


def _steps(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return strides and dilation rates, by Keras's names or ONNX's."""
    options = node.options
    dilation_rate = options.get("dilation_rate") or options.get("dilations") or 1
    return per_axis(options.get("strides") or 1, rank), per_axis(dilation_rate, rank)


def _without_groups(values: Array, groups: int) -> Array:
    """Return the kernel of one group that does the same: zeros where groups do not meet."""
    if groups == 1:
        return values
    *spatial, cin, cout = values.shape
    full = np.zeros((*spatial, groups, cin, groups, cout // groups))
    split = values.reshape(*spatial, cin, groups, cout // groups)
    for g in range(groups):
        full[..., g, :, g, :] = split[..., g, :]
    return full.reshape(*spatial, groups * cin, cout)


def _kind_of_product(a: Node, rank: int) -> tuple[str, dict[str, Any], Callable[[Array], LinearOperator]]:
    """Return kind, options and operator of a product in the common layout that stands where `a` stood."""
    if a.kind in MATRICES:
        return a.kind, {}, lambda values: aslinearoperator(values.T)
    strides, dilation_rate = _steps(a, rank)
    place = "channels_first" if a.kind in _ONNX else a.options.get("data_format", "channels_last")
    options = {"strides": strides, "dilation_rate": dilation_rate, "data_format": place}
    return f"Conv{rank}D", options, lambda values: Convolution(values, strides=strides, dilation_rate=dilation_rate)
