"""The norm of a convolution between two proved numbers: from above by its symbol, from below by its own products."""

from math import ceil, prod, sqrt

import numpy as np

from opnorm.bounds.certificates import down, gamma, up
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.estimates import bytes_per_frequency
from opnorm.bounds.forks import blas_section
from opnorm.bounds.matrices import bracket_blocks, rescale
from opnorm.bounds.memory import Memory
from opnorm.bounds.suprema import bracket_symbol, can_be_tiled
from opnorm.bounds.symbols import Symbol, own_strides, symbol_of, symbol_shape
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution, alike

_STEPS = 16  # Golub-Kahan steps: about half a percent below the norm at the sizes of real layers
_PRODUCTS = 2e8  # multiplications of one product beyond which a corner of the image stands for the whole
_ENTRIES = 5e5  # entries of an image likewise: the steps keep 32 images, 130 MB
_LONGEST = 1e10  # multiplications of one product that is still made: about a second
_MATRIX_TOLERANCE = 1e-6  # of a kernel's matrix, which costs little
_FOLDED_ENTRIES = 2**24  # entries of a kernel with axes written out: 128 MiB
_FOLDED = 512  # side of a symbol that is still cheap: 20 ms at each of a few dozen frequencies


def bracket_convolution(
    operator: Convolution, tolerance: float, deadline: Deadline = NEVER, memory: Memory | None = None
) -> tuple[float, float]:
    """Return `(lower, upper)` around the norm of `operator`; without `input_shape`, around its supremum over all sizes.

    Zeros around an image change nothing for the upper end: the operator is a compression of the convolution on the
    infinite grid, whose norm is the symbol's supremum.

    Args:
        operator: Any stride, dilation, groups and zero padding.
        tolerance: Aim for the symbol's bracket. A small image has a smaller norm than its symbol, by a distance that
            only `lower` shows.
        deadline: After it the upper end is the smallest that was proved by then.
        memory: Where the symbol takes more, the bracket is that of the kernel's matrix and its overlaps; None: half of
            the machine's.
    """
    memory = memory or Memory()
    peak = max(float(np.max(operator.kernel)), -float(np.min(operator.kernel)))
    if peak == 0:
        return 0.0, 0.0
    exponent = -int(np.frexp(peak)[1])
    symbol = _symbol(operator, exponent, tolerance, deadline, memory)
    if symbol is None:
        lower, upper = _by_matrix(operator, exponent, deadline, memory)
    else:
        if symbol.taps.shape[2:] != operator.blocks.shape[-2:] and operator.has_size:
            tolerance /= 2  # with an axis written out few frequencies are left, and the image's own gap is to be seen
        lower, upper = bracket_symbol(symbol, tolerance, deadline, memory)
    if operator.has_size:
        lower = _from_below(operator, exponent, deadline, memory)
    return rescale(lower, upper, -exponent)


def overlap(operator: Convolution) -> int:
    """Return in how many windows a pixel is seen at most: the norm is at most its root times the matrix norm."""
    spatial = operator.kernel.shape[:-2]
    strides = own_strides(spatial, operator.strides, operator.dilation_rate)
    return prod(ceil(k / s) for k, s in zip(spatial, strides, strict=True))


def _by_matrix(operator: Convolution, exponent: int, deadline: Deadline, memory: Memory) -> tuple[float, float]:
    """Return a bracket over all sizes from the norm of the kernel's matrix: what one window sees to what it gives.

    From below: the mean of `||M(w) x||^2` over all frequencies is `||W x||^2`.
    """
    memory.require(2.0 * operator.kernel.nbytes, "a copy of the kernel")
    blocks = np.ldexp(operator.blocks, exponent)
    windows = blocks.reshape(len(blocks), -1, blocks.shape[-1])
    lower, upper = bracket_blocks(windows, _MATRIX_TOLERANCE, deadline, memory)
    return lower, up(sqrt(overlap(operator)) * upper)


def _symbol(
    operator: Convolution, exponent: int, tolerance: float, deadline: Deadline, memory: Memory
) -> Symbol | None:
    """Return the symbol, with the axes of a small image written out as channels: no zero is then forgotten there.

    None where it takes more memory than there is, or its frequencies more cells than can be looked at.
    """
    folded = _foldable(operator) if operator.has_size else 0
    strides, rates = operator.strides[folded:], operator.dilation_rate[folded:]
    shape = _folded_shape(operator, folded)
    taps = symbol_shape(shape, own_strides(shape[1:-2], strides, rates))
    if not memory.holds(8.0 * (prod(shape) + 3 * prod(taps)) + bytes_per_frequency(taps)):
        return None
    blocks = np.ldexp(operator.blocks, exponent)
    for axis in range(folded):
        blocks = _fold_first_axis(operator, axis, blocks)
    symbol = symbol_of(blocks, strides, rates)
    return symbol if can_be_tiled(symbol, tolerance, memory) else None


def _folded_shape(operator: Convolution, folded: int) -> tuple[int, ...]:
    """Return the shape of the kernel by groups when so many axes are written out."""
    groups, *spatial, rows, columns = operator.blocks.shape
    inputs, outputs = (operator.input_shape, operator.output_shape) if folded else ((), ())
    return (groups, *spatial[folded:], rows * prod(inputs[:folded]), columns * prod(outputs[:folded]))


def _foldable(operator: Convolution) -> int:
    """Return how many leading axes can be written out before the symbol's matrices grow too large."""
    rows, columns = operator.blocks.shape[-2:]
    count = 0
    for n, m in zip(operator.input_shape, operator.output_shape, strict=True):
        rows, columns = rows * n, columns * m
        if min(rows, columns) > _FOLDED or rows * columns * operator.groups > _FOLDED**2:
            break
        count += 1
    count = min(count, operator.rank - 1)
    while count and prod(_folded_shape(operator, count)) > _FOLDED_ENTRIES:
        count -= 1
    return count


def _fold_first_axis(operator: Convolution, axis: int, blocks: Array) -> Array:
    """Return the kernel with its first spatial axis, number `axis` of the operator, made part of the channels.

    Args:
        operator: Whose sizes, stride and padding of that axis hold.
        axis: Number of the axis.
        blocks: (groups, k, *others, rows, columns).

    Returns:
        (groups, *others, n * rows, m * columns) for n pixels in and m out: block Toeplitz matrices.
    """
    groups, _, *others, rows, columns = blocks.shape
    n, m = operator.input_shape[axis], operator.output_shape[axis]
    result = np.zeros((groups, *others, n, rows, m, columns))
    for tap, reads, goes in operator.windows(axis):
        for pixel, output in zip(range(n)[reads], range(m)[goes], strict=True):
            result[..., pixel, :, output, :] = blocks[:, tap]
    return result.reshape(groups, *others, n * rows, m * columns)


def _from_below(operator: Convolution, exponent: int, deadline: Deadline, memory: Memory) -> float:
    """Return a proved lower bound of the norm of an operator with a size, its kernel scaled by `2**exponent`."""
    corner = _corner(operator, exponent)
    vectors = 8.0 * (2 * _STEPS + 6) * sum(corner.shape)
    few = min(corner.shape) <= _STEPS  # too few steps to forget where they began
    if few or corner.work > _LONGEST or not memory.holds(vectors) or not deadline.affords(2 * corner.work):
        return _from_window(operator, exponent, deadline, memory)
    with blas_section():
        return image_below(corner, _right_vector(corner, deadline))  # of a few Golub-Kahan steps the best


def _from_window(operator: Convolution, exponent: int, deadline: Deadline, memory: Memory) -> float:
    """Return a proved lower bound: the norm of one output pixel's row of blocks, in the middle of the image."""
    inside: list[slice] = []
    steps = zip(
        operator.kernel.shape,
        operator.input_shape,
        operator.output_shape,
        operator.pads,
        operator.strides,
        strict=False,
    )
    for (k, n, m, (low, _), s), d in zip(steps, operator.dilation_rate, strict=True):
        shift = (m // 2) * s - low  # tap j reads pixel shift + j d
        inside.append(slice(max(0, -(shift // d)), max(0, min(k, (n - 1 - shift) // d + 1))))
    seen = np.ldexp(operator.blocks[(slice(None), *inside)], exponent)
    if seen.size == 0:
        return 0.0
    return bracket_blocks(seen.reshape(len(seen), -1, seen.shape[-1]), _MATRIX_TOLERANCE, deadline, memory)[0]


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
    return alike(operator, np.ldexp(operator.kernel, exponent), sizes, pads)


def image_below(operator: Convolution, v: Array) -> float:
    """Return `||A v|| / ||v||` less every rounding error: a proved lower bound of the norm of an operator with a size.

    Args:
        operator: With entries that are not near the ends of float64.
        v: Not zero.
    """
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
