"""What a kernel with three or more axes may do, where only its name and shape are known: every reading of it."""

import re
from collections.abc import Iterator
from itertools import combinations
from math import prod, sqrt

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array

_CONVOLUTION = re.compile(
    r"conv(?!er|ex|ey|in)|depthwise|pointwise|down_?sample|patch_?embed|(^|[._/])features[._/]\d+[._/](.*[._/])?weight$",
    re.IGNORECASE,
)
_DEPTHWISE = re.compile(r"(^|[^a-z])(depthwise|(dw_?conv\d?|conv_?dw\d?|dw)([^a-z]|$))", re.IGNORECASE)
_EXPERTS = re.compile(r"(^|[^a-z])(experts?|moe|switch_mlp)([^a-z]|$)", re.IGNORECASE)
_ROUNDING = 1e-9  # more than the relative error of a Frobenius norm in float64
_LONGEST = 64  # taps of a convolution over one axis whose name does not call it one


def guess_kernel(name: str, shape: tuple[int, ...], *, keras: bool) -> Geometry:
    """Return what a kernel probably does, with the readings between which its norm lies.

    Args:
        name: Its name.
        shape: Its shape, of at least three axes.
        keras: Whether it is stored as (*spatial, in, out), and not as PyTorch does, (out, in, *spatial).
    """
    if len(shape) > 5:
        reason = f"a tensor with {len(shape)} axes of an unknown layer"
        return g.unknown("unknown", reason, assumed=True)
    if _EXPERTS.search(name):
        return _experts(shape)
    named = is_convolution(name)
    if len(shape) == 3 and not named:
        return _three_axes(shape, keras=keras)
    depthwise = _DEPTHWISE.search(name) is not None
    found = _convolution(shape, keras=keras, depthwise=depthwise)
    if named:
        return found
    text = f"{len(shape)} axes: a {found.text}; or a matrix"
    return found._replace(text=text, readings=(*found.readings, *_matrices(shape)))


def is_convolution(name: str) -> bool:
    """Return whether a name says that its layer is a convolution."""
    return _CONVOLUTION.search(name) is not None


def with_taps(matrix: Geometry, shape: tuple[int, ...], *, keras: bool = False) -> Geometry:
    """Return a matrix with the readings as a depthwise convolution: (channels, taps), in Keras (taps, channels)."""
    whole = (*shape, 1) if keras else (shape[0], 1, shape[1])
    found = _convolution(whole, keras=keras, depthwise=True)
    found = g.scaled(found, lambda kernel: kernel.reshape(whole), "of a kernel with two axes")
    return matrix._replace(oriented=False, readings=(found._replace(readings=()), *found.readings))


def _experts(shape: tuple[int, ...]) -> Geometry:
    if len(shape) != 3:
        return g.unknown("experts", f"experts with {len(shape)} axes of an unknown layout", assumed=True)
    text = "a matrix for each expert, (out, in) or its transpose: the largest of their norms"
    return g.stacked("experts", text, each="expert", assumed=True)._replace(oriented=False)


def _three_axes(shape: tuple[int, ...], *, keras: bool) -> Geometry:
    """Return a stack of matrices or a convolution, each with the other readings: nothing tells which it is.

    Each matrix of a stack is a part of the whole as a matrix.
    """
    stack = g.stacked("unknown", "a matrix for each place of the first axis, which share no input", assumed=True)
    wide = tuple(_matrices(shape))
    if shape[0 if keras else 2] > _LONGEST:
        return stack._replace(text=f"{stack.text} (or not: three axes)", oriented=False, readings=wide)
    found = _convolution(shape, keras=keras, depthwise=False)
    text = f"three axes: a {found.text}; or a matrix, or a stack of matrices"
    return found._replace(text=text, readings=(*found.readings, stack, *wide))


def _matrices(shape: tuple[int, ...]) -> Iterator[Geometry]:
    """Yield the readings as one matrix: any one axis, or any two of more than three, against all others."""
    whole = range(len(shape))
    halves = [axes for axes in combinations(whole, 2) if len(shape) == 5 or (len(shape) == 4 and 0 in axes)]
    for axes in [*combinations(whole, 1), *halves]:
        text = f"matrix, {'axis' if len(axes) == 1 else 'axes'} {' and '.join(map(str, axes))} against the others"
        sides = prod(shape[axis] for axis in axes), prod(shape) // prod(shape[axis] for axis in axes)
        yield g.unfolded("unknown", text, (*axes, *(axis for axis in whole if axis not in axes)), sides, assumed=True)


def _convolution(shape: tuple[int, ...], *, keras: bool, depthwise: bool) -> Geometry:
    """Return a convolution at stride 1: of all readings it has the largest norm.

    Strides leave outputs away, groups leave products away, a dilation only moves frequencies; the transposed
    convolution has the same norm. The smallest norm is that of windows that do not overlap in the most groups, one for
    each place of the first axis, in Keras of the last: nothing that a file holds says how many channels a layer has.
    """
    most = shape[-1 if keras else 0]
    if keras and depthwise:
        found = g.depthwise("Conv", shape, g.Sliding(), assumed=True)
        text = "depthwise convolution (*spatial, channels, multiplier), strides 1 and zero padding assumed"
    else:
        sliding = g.Sliding(groups=most if depthwise and shape[-1 if keras else 1] == 1 else 1)
        make, layout = (g.convolution, "(*spatial, in, out)") if keras else (g.channels_first, "(out, in, *spatial)")
        found = make("Conv", shape, sliding, assumed=True)
        text = f"convolution {layout}, strides 1, groups {sliding.groups} and zero padding assumed"
    text += "; a transposed one has the same norm"
    by_inputs = keras and (depthwise or shape[-1] == 1)
    least = _separate_inputs(shape) if by_inputs else _separate_outputs(shape, keras=keras)
    single = not by_inputs and most == prod(shape[:-2] if keras else shape[2:]) == 1  # tap, and group
    return found._replace(text=text, oriented=False, readings=() if single else (least,))


def _separate_outputs(shape: tuple[int, ...], *, keras: bool) -> Geometry:
    """Return the reading of windows that do not overlap, each output in a group of its own."""

    def blocks(kernel: Array) -> Array:
        rows = kernel.reshape(-1, shape[-1]).T if keras else kernel.reshape(shape[0], -1)
        return _leading(rows[:, None])

    return g.stacked("Conv", "convolution, a group for each output, windows that do not overlap", blocks, assumed=True)


def _separate_inputs(shape: tuple[int, ...]) -> Geometry:
    """Return the reading of a depthwise kernel of Keras's whose windows do not overlap."""

    def blocks(kernel: Array) -> Array:
        return _leading(kernel.reshape(-1, *shape[-2:]).transpose(1, 2, 0))

    return g.stacked("Conv", "depthwise convolution, windows that do not overlap", blocks, assumed=True)


def _leading(blocks: Array) -> Array:
    """Return the blocks that may have the largest norm: it lies between the Frobenius norm and that / sqrt(sides)."""
    largest = np.abs(blocks).max()
    if largest == 0:
        return blocks[:1]
    lengths = np.linalg.norm((blocks / largest).reshape(len(blocks), -1), axis=1)
    return np.asarray(blocks[lengths >= (1 - _ROUNDING) * lengths.max() / sqrt(min(blocks.shape[1:]))])
