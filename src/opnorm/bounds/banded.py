"""The norm of a convolution on a small image, to any tolerance: by the band of its Gram matrix, factorized once.

Pixels that no window sees together have no entry in `A^T A`. In the order of the image's pixels all others lie in a
band, as wide as a window is high: a fraction of the memory and of the time that the whole matrix takes.
"""

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.sparse.linalg import ArpackError, LinearOperator, svds

from opnorm.bounds import lapack
from opnorm.bounds.certificates import gamma, shift, up
from opnorm.bounds.convolutions import image_below
from opnorm.bounds.deadlines import Deadline, OutOfTimeError
from opnorm.bounds.matrices import rescale
from opnorm.bounds.memory import Memory
from opnorm.checks import Array
from opnorm.operators.convolution import Convolution, alike

_WORK = 1e12  # multiplications of a factorization: about a minute
_PAIR = 1e5  # multiplications that take as long as the calls for two taps
_TRIES = 3  # factorizations, the second and third only where the lower end was poor
Window = tuple[int, slice, slice]  # of one axis: a tap, the pixels that it reads, the outputs that they go to
Taps = tuple[Window, ...]  # one for each axis


def narrowed(
    operator: Convolution, known: tuple[float, float], tolerance: float, deadline: Deadline, memory: Memory
) -> tuple[float, float]:
    """Return the bracket of an operator with a size, as narrow as `tolerance` asks where its band can be factorized.

    Args:
        operator: A convolution.
        known: A bracket of its norm, which is returned where there is nothing better.
        tolerance: Aim for `upper / lower - 1`.
        deadline: What would not end before it is not begun.
        memory: What holds the band.
    """
    lower, upper = known
    if not operator.has_size or upper <= lower * (1 + tolerance) or not _is_possible(operator, deadline, memory):
        return known
    exponent = -int(np.frexp(np.max(np.abs(operator.kernel)))[1])
    scaled = _times(operator, exponent)
    low, high = rescale(lower, upper, exponent)
    low = max(low, _from_below(scaled, tolerance / 10, deadline))
    for tries in range(_TRIES):
        tau = low * (1 + 0.9 * tolerance * 2**tries)  # a tenth is left for the roundings of both ends
        if tau >= high or not _is_possible(operator, deadline, memory):
            break
        if all(_is_proved(scaled, group, tau) for group in range(operator.groups)):
            high = up(tau)
            break
    low, high = rescale(low, high, -exponent)
    return max(lower, low), min(upper, high)


def _is_possible(operator: Convolution, deadline: Deadline, memory: Memory) -> bool:
    side, width = _band(operator)
    calls = _PAIR * prod(operator.kernel.shape[:-2]) ** 2
    work = operator.groups * (float(side) * width**2 + calls)
    return work <= _WORK and deadline.affords(work) and memory.holds(8.0 * side * width)


def _times(operator: Convolution, exponent: int) -> Convolution:
    """Return the operator times `2**exponent`, which is exact."""
    return alike(operator, np.ldexp(operator.kernel, exponent))


def _from_below(operator: Convolution, accuracy: float, deadline: Deadline) -> float:
    """Return a proved lower bound of the norm, by a vector that ARPACK finds; zero if it does not in time."""

    def timed(x: Array) -> Array:
        deadline.check()
        return np.asarray(operator.matvec(x))

    watched = LinearOperator(operator.shape, timed, operator.rmatvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(min(operator.shape))
    if len(start) < 2:  # ARPACK needs more
        return 0.0
    try:
        v = svds(watched, k=1, tol=accuracy, v0=start)[2][0]
    except (OutOfTimeError, ArpackError):
        return 0.0
    return image_below(operator, np.asarray(v))


def _band(operator: Convolution) -> tuple[int, int]:
    """Return the order of the Gram matrix of one group, and how many entries of a column the band has."""
    channels, sizes = operator.kernel.shape[-2], operator.input_shape
    last = sum((min(k, sizes[axis]) - 1) * prod(sizes[axis + 1 :]) for axis, k in enumerate(operator.extents))
    return prod(sizes) * channels, (last + 1) * channels  # from the first pixel of a window to its last


def _is_proved(operator: Convolution, group: int, tau: float) -> bool:
    """Return whether the norm of one group is proved to be at most `tau`; False means nothing."""
    taps = operator.blocks[group]
    band = _gram(operator, taps)
    side = len(band)
    seen = prod(taps.shape[:-2]) * taps.shape[-1]  # numbers that one input enters: terms of an entry of the matrix
    frobenius = up(float(np.sqrt(np.sum(band[:, 0]))) * (1 + gamma(side + seen + 8)))  # the trace is its square
    e = shift(tau, seen, side, frobenius, is_complex=False)
    if not tau**2 > e:
        return False
    np.negative(band, out=band)
    band[:, 0] += tau**2 - e
    return lapack.is_band_positive_definite(band)


def _gram(operator: Convolution, taps: Array) -> Array:
    """Return the band of `A^T A` of one group: row j holds the entries of column j from the diagonal downwards.

    An entry (i, j) stands in the band's memory at `j * (width - 1) + i`. The product of two taps is added wherever
    one window has them both inside the image.
    """
    side, width = _band(operator)
    band = np.zeros((side, width))
    flat, channels = band.ravel(), taps.shape[-2]
    for first, second in product(_taps(operator), repeat=2):
        positions = [tuple(window[0] for window in one) for one in (first, second)]
        start = _start(first, second, operator)
        if positions[0] > positions[1] or start is None:
            continue
        block = taps[positions[0]] @ taps[positions[1]].T
        (column, row), counts, steps = start
        for at, part in enumerate(_below(block)) if first == second else [(0, block)]:
            place = (column * channels + at) * (width - 1) + row * channels + at
            strides = [8 * step * channels * width for step in steps]
            as_strided(flat[place:], (*counts, *part.shape), (*strides, 8 * (width - 1), 8))[...] += part
    return band


def _below(block: Array) -> Iterator[Array]:
    """Yield the rows of a block on the diagonal, each from the diagonal on: the other half would leave the band."""
    for at in range(len(block)):
        yield block[at : at + 1, at:]


def _taps(operator: Convolution) -> list[Taps]:
    """Return the taps of the kernel that meet the image."""
    return list(product(*map(operator.windows, range(operator.rank))))


def _start(first: Taps, second: Taps, operator: Convolution) -> tuple[tuple[int, int], list[int], list[int]] | None:
    """Return the pixels that two taps read in the first window that has both inside, how many follow, and how far.

    Returns:
        The numbers of the two pixels; windows along each axis; pixels from one of them to the next. None: no window.
    """
    pixels, counts, steps = [0, 0], [], []
    for axis, windows in enumerate(zip(first, second, strict=True)):
        begin = max(goes.start for _, _, goes in windows)
        end = min(goes.stop for _, _, goes in windows)
        if begin >= end:
            return None
        stride, step = operator.strides[axis], prod(operator.input_shape[axis + 1 :])
        for k, (_, reads, goes) in enumerate(windows):
            pixels[k] += (reads.start + (begin - goes.start) * stride) * step
        counts.append(end - begin)
        steps.append(stride * step)
    return (pixels[0], pixels[1]), counts, steps
