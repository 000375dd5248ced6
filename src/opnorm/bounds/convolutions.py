"""The norm of a convolution between two proved numbers: from above by its symbol, from below by its own products."""

from math import prod

import numpy as np

from opnorm.bounds.certificates import down, gamma
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.matrices import rescale
from opnorm.bounds.suprema import bracket_symbol
from opnorm.bounds.symbols import Symbol, symbol_of
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution

_STEPS = 16  # Golub-Kahan steps: about half a percent below the norm at the sizes of real layers
_PRODUCTS = 2e8  # multiplications of one product beyond which a corner of the image stands for the whole
_ENTRIES = 5e5  # entries of an image likewise: the steps keep 32 images, 130 MB
_FOLDED = 512  # side of a symbol that is still cheap: 20 ms at each of a few dozen frequencies


def bracket_convolution(operator: Convolution, tolerance: float, deadline: Deadline = NEVER) -> tuple[float, float]:
    """Return `(lower, upper)` around the norm of `operator`; without `input_shape`, around its supremum over all sizes.

    Zeros around an image change nothing for the upper end: the operator is a compression of the convolution on the
    infinite grid, whose norm is the symbol's supremum.

    Args:
        operator: Any stride, dilation, groups and zero padding.
        tolerance: Aim for the symbol's bracket. A small image has a smaller norm than its symbol, by a distance that
            only `lower` shows.
        deadline: After it the upper end is the smallest that was proved by then.
    """
    peak = float(np.max(np.abs(operator.kernel)))
    if peak == 0:
        return 0.0, 0.0
    exponent = -int(np.frexp(peak)[1])
    symbol = _symbol(operator, np.ldexp(operator.blocks, exponent))
    if symbol.taps.shape[2:] != operator.blocks.shape[-2:] and operator.has_size:
        tolerance /= 2  # with an axis written out few frequencies are left, and the image's own gap is to be seen
    lower, upper = bracket_symbol(symbol, tolerance, deadline)
    if operator.has_size:
        lower = _from_below(_corner(operator, exponent), deadline)
    return rescale(lower, upper, -exponent)


def _symbol(operator: Convolution, blocks: Array) -> Symbol:
    """Return the symbol, with the axes of a small image written out as channels: no zero is then forgotten there."""
    folded = _foldable(operator) if operator.has_size else 0
    for _ in range(folded):
        blocks = _fold_first_axis(operator, operator.rank - blocks.ndim + 3, blocks)
    return symbol_of(blocks, operator.strides[folded:], operator.dilation_rate[folded:])


def _foldable(operator: Convolution) -> int:
    """Return how many leading axes can be written out before the symbol's matrices grow too large."""
    rows, columns = operator.blocks.shape[-2:]
    count = 0
    for n, m in zip(operator.input_shape, operator.output_shape, strict=True):
        rows, columns = rows * n, columns * m
        if min(rows, columns) > _FOLDED or rows * columns * operator.groups > _FOLDED**2:
            break
        count += 1
    return min(count, operator.rank - 1)


def _fold_first_axis(operator: Convolution, axis: int, blocks: Array) -> Array:
    """Return the kernel with its first spatial axis, number `axis` of the operator, made part of the channels.

    Args:
        operator: Whose sizes, stride and padding of that axis hold.
        axis: Number of the axis.
        blocks: (groups, k, *others, rows, columns).

    Returns:
        (groups, *others, n * rows, m * columns) for n pixels in and m out: block Toeplitz matrices.
    """
    groups, taps, *others, rows, columns = blocks.shape
    n, m, low = operator.input_shape[axis], operator.output_shape[axis], operator.pads[axis][0]
    result = np.zeros((groups, *others, n, rows, m, columns))
    for tap in range(taps):
        reads = np.arange(m) * operator.strides[axis] + tap * operator.dilation_rate[axis] - low
        inside = np.flatnonzero((reads >= 0) & (reads < n))
        for pixel in inside:
            result[..., reads[pixel], :, pixel, :] = blocks[:, tap]
    return result.reshape(groups, *others, n * rows, m * columns)


def _corner(operator: Convolution, exponent: int) -> Convolution:
    """Return the operator restricted to a corner of the image, small enough to iterate on: its norm is no larger."""
    pixels = min(_PRODUCTS / operator.kernel.size, _ENTRIES / max(operator.channels))
    longest = pixels ** (1 / operator.rank)
    sizes, pads = [], []
    steps = zip(
        operator.input_shape, operator.pads, operator.output_shape, operator.extents, operator.strides, strict=True
    )
    for n, (low, high), outputs, extent, stride in steps:
        cut = min(n, max(int(longest), 2 * extent))
        kept = min(outputs, -(-(cut + low) // stride))
        sizes.append(cut)
        pads.append((low, high if cut == n else max(0, (kept - 1) * stride + extent - cut - low)))
    return Convolution(
        np.ldexp(operator.kernel, exponent),
        sizes,
        strides=operator.strides,
        padding=pads,
        dilation_rate=operator.dilation_rate,
        groups=operator.groups,
    )


def _from_below(operator: Convolution, deadline: Deadline) -> float:
    """Return a proved lower bound of the operator's norm: the best of a few Golub-Kahan steps, multiplied out."""
    v = _right_vector(operator, deadline)
    length = float(np.linalg.norm(v)) * (1 + gamma(2 * v.size + 8))
    image = float(np.linalg.norm(operator.matvec(v))) * (1 - gamma(2 * operator.shape[0] + 8))
    taps = prod(operator.kernel.shape[:-2])
    # || |A| || <= sum over taps of the tap's Frobenius norm <= sqrt(taps) ||K||
    error = gamma(taps * (operator.kernel.shape[-2] + 1)) * np.sqrt(taps) * float(np.linalg.norm(operator.kernel))
    return down(image / length - 2 * error)


def _right_vector(operator: Convolution, deadline: Deadline) -> Array:
    """Return an estimate of the right singular vector of the largest singular value, by Golub-Kahan steps."""
    v = np.random.default_rng(0).standard_normal(operator.shape[1])
    steps = min(_STEPS, *operator.shape)
    left, right = np.zeros((steps, operator.shape[0])), np.zeros((steps, operator.shape[1]))
    bidiagonal = np.zeros((steps, steps))
    for k in range(steps):
        right[k] = v / max(float(np.linalg.norm(v)), np.finfo(np.float64).tiny)
        u = operator.matvec(right[k])
        coefficients = left[:k] @ u
        u = u - coefficients @ left[:k]
        bidiagonal[:k, k], bidiagonal[k, k] = coefficients, np.linalg.norm(u)
        left[k] = u / max(bidiagonal[k, k], np.finfo(np.float64).tiny)
        v = operator.rmatvec(left[k])
        v = v - (right[: k + 1] @ v) @ right[: k + 1]
        if deadline.passed:
            break
    return np.asarray(np.linalg.svd(bidiagonal)[2][0] @ right)
