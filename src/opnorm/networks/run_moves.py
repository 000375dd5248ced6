"""The nodes of a run that move its channels about: parts and slices, transposed axes, values side by side, pairs.

What reshapes make of an image or a vector keeps the order of its numbers. As long as a shape ends, or begins behind the
batch, with axes that make up the channels, whatever a node does to these axes is told by the numbers of the channels.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.networks.effects import input_shapes
from opnorm.networks.picks import pick_of
from opnorm.networks.programs import Part
from opnorm.networks.reduction_rules import reduced_axes
from opnorm.networks.run_collector import Collector, times
from opnorm.networks.run_tensors import NotUnderstoodError, Tensor, channel_axes, still
from opnorm.networks.torus import Integers, Taps


def moved(run: Collector, node: Node, tensor: Tensor) -> Tensor:
    """Return the channels that a Split, Slice or Transpose leaves, in its order.

    Raises:
        NotUnderstoodError: When it does anything to other axes.
    """
    (shape,) = input_shapes(node) or (None,)
    if shape is None or node.kind not in MOVES:
        raise NotUnderstoodError(node.name)
    first, numbers = channel_axes(tensor, shape)
    return run.chosen(tensor, MOVES[node.kind](node, numbers, first, len(shape)).ravel())


def _picked(node: Node, numbers: Integers, first: int, rank: int) -> Integers:
    pick = pick_of(node)
    if pick is None or not first <= pick.axis < first + numbers.ndim:
        raise NotUnderstoodError(node.name)
    return numbers.take(list(pick.places), axis=pick.axis - first)


def _transposed(node: Node, numbers: Integers, first: int, rank: int) -> Integers:
    order = [int(axis) for axis in node.options.get("perm", node.options.get("axes"))]  # ONNX's, Keras's
    inside = range(first, first + numbers.ndim)
    if sorted(order) != list(range(rank)) or any(order[i] != i for i in range(rank) if i not in inside):
        raise NotUnderstoodError(node.name)
    return numbers.transpose([order[axis] - first for axis in inside])


MOVES: Mapping[str, Callable[[Node, Integers, int, int], Integers]] = {
    "Split": _picked,
    "Slice": _picked,
    "Transpose": _transposed,
}


def joined(run: Collector, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Return several tensors side by side along an axis of their channels."""
    shapes = input_shapes(node)
    if shapes is None:
        raise NotUnderstoodError(node.name)
    found = [channel_axes(tensor, shape) for tensor, shape in zip(inputs, shapes, strict=True)]
    starts = np.cumsum([0, *(tensor.channels for tensor in inputs)])
    first, axis = found[0][0], int(node.options.get("axis", -1)) % len(shapes[0])
    if not all(at == first <= axis < first + numbers.ndim for at, numbers in found):
        raise NotUnderstoodError(node.name)
    numbers = [each + start for (_, each), start in zip(found, starts, strict=False)]
    places = np.argsort(np.concatenate(numbers, axis=axis - first).ravel())  # of each channel of each input
    whole = inputs[0]._replace(channels=int(starts[-1]))
    return run.map(whole, [_placed(t, places[a : a + t.channels], whole) for t, a in zip(inputs, starts, strict=False)])


def _placed(tensor: Tensor, places: Integers, whole: Tensor) -> Part:
    """Return the part of a map that puts the channels of a tensor into these places."""
    if np.array_equal(places, np.arange(places[0], places[0] + len(places))):
        return times(1.0, tensor)._replace(row=int(places[0]))
    matrix = np.zeros((whole.channels, tensor.channels))
    matrix[places, np.arange(tensor.channels)] = 1.0
    return Part(tensor.name, Taps(matrix[None], still(tensor)))


def extreme(run: Collector, node: Node, tensor: Tensor) -> Tensor:
    """Return the larger, or the smaller, entry of each pair along an axis of the channels."""
    (shape,), axes = input_shapes(node) or (None,), reduced_axes(node)
    given = node.options.get("arguments") or node.options
    if shape is None or axes is None or len(axes) != 1 or given.get("initial") is not None:  # a third number
        raise NotUnderstoodError(node.name)
    first, numbers = channel_axes(tensor, shape)
    axis = axes[0] % len(shape) - first
    if not 0 <= axis < numbers.ndim or numbers.shape[axis] != 2:
        raise NotUnderstoodError(node.name)
    a, b = (run.chosen(tensor, numbers.take(i, axis=axis).ravel()) for i in (0, 1))
    return run.extreme(a, b, 0.5 if node.kind == "ReduceMax" else -0.5)
