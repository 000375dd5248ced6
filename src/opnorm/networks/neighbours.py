"""Where a product of norms gives most away: neighbouring kernels whose worst directions are not the same.

A diagnosis, not a bound: norms are estimated by power iteration, which reads no more of a kernel than its products.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.records import Graph, Node
from opnorm.checks import Array, real_array
from opnorm.networks.activations import is_activation
from opnorm.networks.effects import kernels
from opnorm.networks.folding import places
from opnorm.networks.kernel_products import form_of
from opnorm.networks.linear_rules import CONVOLUTIONS, DEPTHWISE, MATRICES, kernel_of
from opnorm.networks.shape_rules import SAME
from opnorm.networks.sizes import image_size, matrix_of, small_at_size
from opnorm.operators.convolution import Convolution, alike
from opnorm.tables import number, printable

_STEPS = 12  # power iterations: norms to a few percent
_WORK = 2e8  # multiplications in all products of a pair: some 50 ms; images are cut to what that affords
_ALL = 2e10  # of all pairs: a few seconds
_ENTRIES = 2**22  # of a kernel that is read: 32 MiB
_PIXELS = 16  # of an axis of an image whose size is open
_BETWEEN = {*SAME, "Activation", "PReLU", "PRelu", "Gate", "Cast", "BatchNormalization", "Rescaling", "Normalization"}
_BETWEEN |= {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}  # these keep the order of an example's numbers


class Pair(NamedTuple):
    """Two kernels, one read by the other with nothing but functions of single entries between."""

    first: str
    second: str
    loss: float  # the product of their norms over the norm of one after the other, activations left out; an estimate

    @property
    def text(self) -> str:
        """What the pair costs, in words."""
        times = f"their norms multiply to {number(self.loss, 3)} times the norm of both together"
        return printable(f"{self.first}, then {self.second}: {times} (an estimate, without the activation between)")


def neighbours(graph: Graph, deadline: Deadline) -> tuple[Pair, ...]:
    """Return the pairs of neighbouring kernels, the one whose product of norms gives most away first.

    Args:
        graph: The network, split and folded.
        deadline: After it no more pairs are looked at.
    """
    left = _ALL
    before: dict[str, Node] = {}  # by the name of a value: the kernel that it is a function of, entry by entry
    found = []
    for node in graph.nodes:
        kernel = before.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if node.kind in (*MATRICES, *CONVOLUTIONS, *DEPTHWISE):
            before[node.name] = node
            left -= 0 if kernel is None else _work(kernel, node)
            loss = None if kernel is None or left < 0 or deadline.passed else _loss(kernel, node)
            found += [] if kernel is None or loss is None else [Pair(kernel.name, node.name, loss)]
        elif kernel is not None and (is_activation(node.kind) or node.kind in _BETWEEN):
            before[node.name] = kernel
    return tuple(sorted(found, key=lambda pair: -pair.loss))


def _work(first: Node, second: Node) -> float:
    """Return the multiplications that a pair takes, those of a convolution on a cut image."""
    entries = [prod(weight.shape) for node in (first, second) for _, weight in kernels(node)]
    return max(_WORK, 4.0 * _STEPS * sum(entries)) if max(entries, default=0) <= _ENTRIES else 0.0


def _loss(first: Node, second: Node) -> float | None:
    """Return how many times larger the product of the norms is, None where the two do not meet in one size."""
    try:
        maps = _maps(first, second)
        if maps is None or maps[0].shape[0] != maps[1].shape[1]:
            return None
        both = _stretch(maps)
        return _stretch(maps[:1]) * _stretch(maps[1:]) / both if both else None
    except Exception:  # not one kernel each, or not read: their own steps say why
        return None


def _maps(first: Node, second: Node) -> list[LinearOperator] | None:
    """Return what two kernels do, on images of one size."""
    one, other = _operator(first), _operator(second)
    if not isinstance(one, Convolution):
        return None if isinstance(other, Convolution) else [one, other]
    if not isinstance(other, Convolution):
        sized = small_at_size(first, kernel_of(first))
        return None if sized is None else [aslinearoperator(matrix_of(first, sized)), other]
    sizes = _sizes(first, (one, other))
    before = alike(one, input_shape=sizes)
    return [before, alike(other, input_shape=before.output_shape)]


def _operator(node: Node) -> LinearOperator:
    """Return a matrix, or a convolution without a size.

    Raises:
        ValueError: When channels do not stand where a matrix has them, or the kernel is large.
    """
    if prod(kernel_of(node).shape) > _ENTRIES:
        raise ValueError(node.name)
    if node.kind in MATRICES:
        if "last" not in places(node):
            raise ValueError(node.kind)
        return aslinearoperator(np.asarray(form_of(node).values.T))
    weight = kernel_of(node)
    assert weight.geometry.operator is not None  # as `kernel_of` holds
    return weight.geometry.operator(real_array(weight.read(), weight.name))


def _sizes(node: Node, convolutions: tuple[Convolution, Convolution]) -> tuple[int, ...]:
    """Return the size of the image to look at: the model's, cut to what there is time for."""
    rank = convolutions[0].rank
    each = sum(float(one.kernel.size) for one in convolutions)
    longest = int((_WORK / (4 * _STEPS * each)) ** (1 / rank))
    first, second = convolutions
    least = [
        k + more * s for k, more, s in zip(first.extents, second.extents, first.strides, strict=True)
    ]  # for a pixel
    given = image_size(node) or (_PIXELS,) * rank
    return tuple(min(n, max(longest, few)) for n, few in zip(given, least, strict=True))


def _stretch(maps: Sequence[LinearOperator]) -> float:
    """Return an estimate from below of the norm of maps, one after the other."""
    v: Array = np.random.default_rng(0).standard_normal(maps[0].shape[1])
    length = 0.0
    for _ in range(_STEPS):
        v = v / max(float(np.linalg.norm(v)), np.finfo(np.float64).tiny)
        for one in maps:
            v = one.matvec(v)
        length = float(np.linalg.norm(v))
        for one in reversed(maps):
            v = one.rmatvec(v)
    return length
