"""The kernels of two neighbouring linear nodes multiplied out, with the rounding errors of doing so.

Every kernel is brought to one layout, that of `opnorm.Convolution`: (*spatial, channels in / groups, channels out). A
matrix has no spatial axes; a transposed convolution stands for its adjoint.
"""

from collections.abc import Callable
from math import prod, sqrt
from typing import NamedTuple

import numpy as np
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.bounds.brackets import matrix_of
from opnorm.bounds.certificates import gamma, up
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checkpoints.records import Geometry, Node, Weight
from opnorm.checks import Array, real_array
from opnorm.networks.effects import Unbounded
from opnorm.networks.linear_rules import channel_factors, kernel_of
from opnorm.operators.convolution import Convolution
from opnorm.operators.sizes import Adjoint

_ENTRIES = 2**25  # of a product that may be formed: 256 MiB in float64
_ROUNDINGS = 12  # of a channel factor and its product
_WORTH = 1e-3  # of a norm: what joining may add to it at most
_DEPTH = 8  # so many products are made anew from each other, then one is kept: a chain of n would take n^2 of them


class Form(NamedTuple):
    """A node's kernel in the common layout, as its operator has it."""

    values: Array
    groups: int
    make: Callable[[Array, int], LinearOperator]  # of other values and groups, everything else alike
    pointwise: bool  # a map of the channels of one position
    adjoint: bool

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that go in and come out of the node, over all groups."""
        cin, cout = self.groups * self.values.shape[-2], self.values.shape[-1]
        return (cout, cin) if self.adjoint else (cin, cout)


class _Product(NamedTuple):
    """A kernel that was multiplied out."""

    values: Array
    again: Callable[[], Array]  # makes them anew
    groups: int
    error: float  # what it may be off by in norm, with all that was joined before
    text: str


def form_of(node: Node) -> Form:
    """Return the form of a node's kernel.

    Raises:
        Unbounded: When the node is not one matrix or one convolution.
    """
    weight = kernel_of(node)
    operator = weight.geometry.operator and weight.geometry.operator(real_array(weight.read(), weight.name))
    if isinstance(operator, Convolution):
        return _sliding(operator, adjoint=False)
    if isinstance(operator, Adjoint) and isinstance(operator.operator, Convolution):
        return _sliding(operator.operator, adjoint=True)
    matrix = None if operator is None else matrix_of(operator)
    if matrix is None:
        raise Unbounded("neither one matrix nor one convolution")
    return Form(matrix.T, 1, lambda values, groups: aslinearoperator(values.T), True, False)


def _sliding(operator: Convolution, *, adjoint: bool) -> Form:
    strides, dilation_rate, padding = (
        operator.strides,
        operator.dilation_rate,
        operator.padding,
    )  # not the operator, which holds the kernel

    def make(values: Array, groups: int) -> LinearOperator:
        made = Convolution(values, strides=strides, padding=padding, dilation_rate=dilation_rate, groups=groups)
        return Adjoint(made) if adjoint else made

    still = prod(operator.kernel.shape[:-2]) == prod(operator.strides) == operator.groups == 1
    return Form(operator.kernel, operator.groups, make, still and not adjoint, adjoint)


def scaled(node: Node, scale: Node, *, outputs: bool) -> Node:
    """Return the node of a kernel with the channel factors of `scale` multiplied into its outputs, or its inputs.

    Raises:
        Unbounded: When the two do not fit, or are not understood.
    """
    factors, form = channel_factors(scale), form_of(node)
    if factors.size not in (1, form.channels[outputs]):
        raise Unbounded(f"{factors.size} factors for {form.channels[outputs]} channels")

    def multiplied() -> Array:
        form = form_of(node)
        return form.values * _spread(factors, form, last=outputs != form.adjoint)

    values = multiplied()
    error = _error(node) * float(np.max(np.abs(factors))) + gamma(_ROUNDINGS) * _size(values)
    text = f"{kernel_of(node).geometry.text}, times the factors of {scale.kind}"
    return _with_kernel(node, node.name, _Product(values, multiplied, form.groups, error, text), form)


def _spread(factors: Array, form: Form, *, last: bool) -> Array:
    """Return the factor of each channel as numbers to multiply the last two axes of the form's values with."""
    cin, cout = form.values.shape[-2:]
    if last:
        return np.broadcast_to(factors, cout)
    by_group = np.broadcast_to(factors, form.groups * cin).reshape(form.groups, cin)
    return np.repeat(by_group.T, cout // form.groups, axis=1)


def product(a: Node, b: Node, name: str, deadline: Deadline = NEVER) -> Node | None:
    """Return one node for `b` after `a`, a matrix or convolution and a pointwise map; None for all other pairs.

    None too for products that would take longer than the deadline: they are formed again when they are read.
    """
    first, second = form_of(a), form_of(b)
    if first.adjoint or not second.pointwise or first.channels[1] != second.channels[0]:
        return None
    if prod(first.values.shape[:-1]) * first.groups * max(second.channels) > _ENTRIES:
        return None
    inner = second.channels[0]
    if not deadline.affords(float(prod(first.values.shape[:-1])) * first.groups * inner * second.channels[1] * _DEPTH):
        return None

    def multiplied() -> Array:
        first, second = form_of(a), form_of(b)
        return np.asarray(without_groups(first.values, first.groups) @ second.values.reshape(second.channels))

    left, right = _size(first.values), _size(second.values)
    error = _error(a) * right + left * _error(b) + _error(a) * _error(b) + gamma(inner) * left * right
    values = multiplied()
    # Compared with the root mean square of the singular values: beside a larger error it is not worth joining.
    if error > _WORTH * _size(values) / sqrt(prod(values.shape[:-2]) * min(values.shape[-2:])):
        return None
    text = f"product of {a.kind} and {b.kind}"
    return _with_kernel(a, name, _Product(values, multiplied, 1, error, text), first)


def _with_kernel(node: Node, name: str, found: _Product, form: Form) -> Node:
    """Return the node with another kernel, made anew whenever it is read: all of them may be larger than memory."""
    make, groups, again = form.make, found.groups, found.again  # neither `form` nor `found`, which hold numbers
    depth = int(node.options.get("joined", 0)) + 1
    kept = found.values if depth % _DEPTH == 0 else None
    geometry = Geometry(node.kind, found.text, lambda array: make(array, groups))
    kernel = Weight(name, found.values.shape, "float64", lambda: again() if kept is None else kept, geometry)
    options = {**node.options, "rounding": up(found.error), "joined": depth}
    return Node(name, node.kind, node.inputs, options, {"kernel": kernel})


def _error(node: Node) -> float:
    """Return what earlier products may have changed in the norm of a node's kernel."""
    return float(node.options.get("rounding", 0.0))


def _size(values: Array) -> float:
    """Return a bound of the norm of any operator with entries of these magnitudes: a sum over taps, by Cauchy."""
    taps = prod(values.shape[:-2])
    frobenius = float(blas.dnrm2(values.ravel(order="K")))  # unlike a sum of squares it does not overflow
    return up(sqrt(taps) * frobenius * (1 + gamma(2 * values.size + 8)))


def without_groups(values: Array, groups: int) -> Array:
    """Return the kernel of one group that does the same: zeros where groups do not meet."""
    if groups == 1:
        return values
    *spatial, cin, cout = values.shape
    full = np.zeros((*spatial, groups, cin, groups, cout // groups))
    split = values.reshape(*spatial, cin, groups, cout // groups)
    for g in range(groups):
        full[..., g, :, g, :] = split[..., g, :]
    return full.reshape(*spatial, groups * cin, cout)
