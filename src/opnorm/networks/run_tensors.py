"""What a value of a graph is inside a run: a vector, or an image of a known size on a torus."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.effects import Shape
from opnorm.networks.folding import places
from opnorm.networks.kernel_products import form_of
from opnorm.networks.linear_rules import CONVOLUTIONS, DEPTHWISE, MATRICES, kernel_of
from opnorm.networks.sizes import placed
from opnorm.networks.torus import Integers, Taps

SLIDING = (*CONVOLUTIONS, *DEPTHWISE)


class NotUnderstoodError(Exception):
    """A node that no run goes through."""


class Tensor(NamedTuple):
    """What a value of the graph is in the run."""

    name: str  # in the run: nodes that change nothing give their input's
    channels: int
    sizes: tuple[int, ...] = ()  # pixels of each axis; none: a vector, of one position or of the whole example
    ratio: tuple[int, ...] = ()  # pixels of the entry from one pixel to the next
    first: bool = False  # channels stand before the pixels
    clean: bool = True  # on the torus it is zero outside of its image
    listed: bool = False  # an image whose numbers now stand in one list

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return self.channels * prod(self.sizes)


def entry_of(name: str, kernel: Node) -> Tensor:
    """Return what goes into a run whose first kernel is this one.

    Raises:
        NotUnderstoodError: When that is not known.
    """
    if kernel.kind in MATRICES and "last" in places(kernel):
        return Tensor(name, form_of(kernel).channels[0])
    sized = placed(kernel, kernel_of(kernel)) if kernel.kind in SLIDING else None
    if sized is None:
        raise NotUnderstoodError(kernel.name)
    return Tensor(name, sized.channels[0], sized.input_shape, (1,) * sized.rank, "first" in places(kernel))


def channel_axes(tensor: Tensor, shape: Shape) -> tuple[int, Integers]:
    """Return the first of the axes that make up a tensor's channels, and the numbers of the channels by these axes.

    Args:
        tensor: A tensor of a run.
        shape: Of the value, batch included, that now holds its numbers, in the order in which the run has them.

    Raises:
        NotUnderstoodError: When no axes do.
    """
    count = len(tensor.sizes)
    last = len(shape) - count if tensor.first else len(shape)
    firsts = range(1, last) if not count else [1] if tensor.first else [1 + count]
    rest = shape[last:] if tensor.first else shape[1 : 1 + count]
    for first in firsts:
        sizes = [size for size in shape[first:last] if type(size) is int]
        if len(sizes) == last - first and prod(sizes) == tensor.channels and rest == tensor.sizes:
            return first, np.arange(tensor.channels).reshape(sizes)
    raise NotUnderstoodError(tensor.name)


def unlisted(tensor: Tensor, shape: Shape) -> Tensor:
    """Return a tensor, as an image where it has the shape of one again."""
    if not tensor.listed:
        return tensor
    try:
        return tensor._replace(listed=channel_axes(tensor, shape)[1].ndim != 1)
    except NotUnderstoodError:
        return tensor


def still(tensor: Tensor) -> Integers:
    """Return the shift of a kernel of one pixel."""
    return np.zeros((1, len(tensor.sizes)), np.int64)


def pixels(sizes: Sequence[int]) -> Integers:
    """Return the places of all pixels: (pixels, axes)."""
    return np.indices(tuple(sizes)).reshape(len(sizes), -1).T.astype(np.int64)


def convolved(kernel: Array, lows: Sequence[int], dilations: Sequence[int]) -> Taps:
    """Return the taps of a kernel (*spatial, inputs, outputs)."""
    *spatial, inputs, outputs = kernel.shape
    shifts = pixels(spatial) * np.array(dilations, np.int64) - np.array(lows, np.int64)
    return Taps(np.ascontiguousarray(kernel.reshape(-1, inputs, outputs).transpose(0, 2, 1)), shifts)
