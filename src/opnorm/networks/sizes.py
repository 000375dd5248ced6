"""The sizes of images inside a network, where the model fixes them, and its convolutions at that size."""

import numpy as np
from scipy.sparse.linalg import LinearOperator

from opnorm.bounds.brackets import is_written_out
from opnorm.bounds.memory import Memory
from opnorm.bounds.products import written_out
from opnorm.checkpoints.records import Node, Weight
from opnorm.checks import Array, real_array
from opnorm.networks.effects import text_of
from opnorm.operators.convolution import Convolution, alike

_FIRST = ("Conv", "AveragePool", "MaxPool", "GlobalAveragePool")  # ONNX's: channels stand before the pixels
_SHORT = 8  # kernels on an axis beyond which the borders no longer show: about a percent of the norm
_WRITTEN = 1536  # numbers of an image, before and after a convolution, up to which its matrix joins a chain
_SIDE = 1536  # of the matrix of one size: a quarter of a second for its proof
_WIDE = 2048  # likewise, of kernels with so many channels that the bound of all sizes takes longer
_CHANNELS = 256  # from here on


def is_first(node: Node) -> bool:
    """Return whether a node that slides over an image reads its axis of channels before those of its pixels."""
    return node.kind in _FIRST or node.options.get("data_format") == "channels_first"


def image_size(node: Node) -> tuple[int, ...] | None:
    """Return the pixels of each axis that a node's one input has in every run, None where they are open.

    Only what the graph says of the call counts, not the size at which a layer was built once.
    """
    shapes = node.options.get("input_shapes")
    if not shapes or len(shapes) != 1 or len(node.inputs) != 1 or not isinstance(shapes[0], (list, tuple)):
        return None
    sizes = tuple(shapes[0][2:] if is_first(node) else shapes[0][1:-1])
    return sizes if sizes and all(type(size) is int and size > 0 for size in sizes) else None


def at_size(node: Node, weight: Weight) -> Weight | None:
    """Return the weight of a convolution as its operator on images of the model's size; None: for all sizes alike.

    None also where the proof would take long, or the operator's padding is only known up to a reflection.
    """
    sized, every = placed(node, weight), weight.geometry.operator
    if sized is None or every is None or max(sized.kernel.shape[:-2]) == 1 or not _is_worth(sized):
        return None
    sizes = sized.input_shape

    def make(values: Array) -> LinearOperator:
        return _sized(every(values), sizes) or every(values)

    text = f"{weight.geometry.text}, at {'x'.join(map(str, sizes))}"
    return weight._replace(geometry=weight.geometry._replace(text=text, operator=make))


def small_at_size(node: Node, weight: Weight) -> Convolution | None:
    """Return a convolution on images of the model's size whose matrix may be written out, None for any other."""
    sized = placed(node, weight)
    return None if sized is None or max(sized.shape) > _WRITTEN else sized


def matrix_of(node: Node, sized: Convolution) -> Array:
    """Return the matrix of a node's convolution, whose entries are the kernel's own, with no rounding.

    Rows and columns are the numbers of an image in the order in which the node's framework stores them.
    """
    inputs, outputs = sized.channels
    rows, columns = np.arange(sized.shape[0]).reshape(-1, outputs), np.arange(sized.shape[1]).reshape(-1, inputs)
    if is_first(node):
        rows, columns = rows.T, columns.T
    matrix = written_out(sized)
    matrix = matrix.T if sized.shape[0] < sized.shape[1] else matrix
    return np.asarray(matrix[np.ix_(rows.ravel(), columns.ravel())])


def placed(node: Node, weight: Weight) -> Convolution | None:
    """Return the convolution on images of the model's size, None where size or padding are not known."""
    sizes = image_size(node)
    if sizes is None or text_of(node.options.get("auto_pad")) == "SAME_LOWER" or weight.geometry.operator is None:
        return None
    return _sized(weight.geometry.operator(real_array(weight.read(), weight.name)), sizes)


def _sized(operator: LinearOperator, sizes: tuple[int, ...]) -> Convolution | None:
    if not isinstance(operator, Convolution) or operator.rank != len(sizes):
        return None
    return alike(operator, input_shape=sizes)


def _is_worth(operator: Convolution) -> bool:
    spans = zip(operator.input_shape, operator.extents, strict=True)
    near = any(size <= _SHORT * extent for size, extent in spans)
    side = _WIDE if min(operator.blocks.shape[-2:]) >= _CHANNELS else _SIDE
    return near and min(operator.shape) <= side and is_written_out(operator, Memory())
