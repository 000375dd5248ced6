"""The norms of pooling and interpolation: products over the axes, since windows and weights are products too."""

from functools import lru_cache
from math import ceil, gcd, prod, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.certificates import up
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checks import Array
from opnorm.networks.effects import Unbounded

_ROWS = 2**16  # of all matrices of one axis together: half a second
_ENTRIES = 2**26
_PIXELS = 1024  # of an axis whose matrix is written out, and of the window: 40 ms
_READS = 2**22  # of all windows of an axis that are counted one by one
_TOLERANCE = 1e-9  # what is left of a proof's time is the factorization
Sizes = tuple[int, ...] | None
_FACTOR = 4096  # of an interpolation that is written out


class Window(NamedTuple):
    """One axis of a pooling layer."""

    size: int
    stride: int
    dilation: int = 1
    pads: tuple[int, int] | str = (0, 0)  # before and after; "same" as in Keras
    ceil_mode: bool = False  # the last, partial window counts too

    @property
    def extent(self) -> int:
        """Pixels that the window spans."""
        return (self.size - 1) * self.dilation + 1

    @property
    def visits(self) -> int:
        """The largest number of windows that read one pixel."""
        return ceil(self.size * gcd(self.stride, self.dilation) / self.stride)

    def fits(self, n: int) -> bool:
        """Return whether n pixels and the zeros around them hold a window, and those on one side no more than one."""
        return isinstance(self.pads, str) or (n + sum(self.pads) >= self.extent and not self.is_wide)

    @property
    def is_wide(self) -> bool:
        """Whether there are more zeros on one side than a window spans, as no runtime takes them."""
        return not isinstance(self.pads, str) and max(self.pads) > self.extent

    def is_counted(self, n: int) -> bool:
        """Return whether the windows on n pixels are few enough to look at each."""
        return (n + self.extent) * self.size <= _READS

    def is_inside(self, n: int) -> bool:
        """Return whether no window on n pixels reads over the border, and there is one."""
        if self.ceil_mode or not self.is_counted(n):
            return False
        starts, (low, _) = self.starts(n)
        return low == 0 and len(starts) > 0 and int(starts[-1]) + self.extent <= n

    def starts(self, n: int) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """Return where the windows on n pixels start, and the zeros around the pixels."""
        if isinstance(self.pads, str):
            total = max((-(-n // self.stride) - 1) * self.stride + self.extent - n, 0)
            low, high = total // 2, total - total // 2
        else:
            low, high = self.pads
        steps = (n + low + high - self.extent) / self.stride
        count = (ceil(steps) if self.ceil_mode else int(np.floor(steps))) + 1
        starts = np.arange(max(count, 0), dtype=np.int64) * self.stride - low
        return starts[starts < n], (low, high)  # a window wholly in the padding is dropped


def max_pooling(windows: list[Window], sizes: Sizes = None) -> float:
    """Return an upper bound of the Lipschitz constant of max pooling: sqrt of how often one pixel is read at most.

    `|max_i x_i - max_i y_i| <= max_i |x_i - y_i|`, so the squares add up to those of the pixels, as often as read.
    """
    return up(sqrt(prod(_visits(window, n) for window, n in _with_sizes(windows, sizes))))


def _with_sizes(windows: list[Window], sizes: Sizes) -> list[tuple[Window, int | None]]:
    return list(zip(windows, sizes or [None] * len(windows), strict=True))


def _visits(window: Window, n: int | None) -> int:
    """Return the largest number of windows that read one of n pixels; None: of any number."""
    if n is None or not window.is_counted(n):
        return window.visits
    reads = window.starts(n)[0][:, None] + np.arange(window.size) * window.dilation
    inside = reads[(reads >= 0) & (reads < n)]
    return int(np.bincount(inside, minlength=1).max())


def average_pooling(windows: list[Window], sizes: Sizes = None, *, counts: str) -> float:
    """Return an upper bound of the norm of average pooling.

    Args:
        windows: One for each axis.
        sizes: Pixels of each axis; None: the bound holds for every image size.
        counts: What a window at the border is divided by: "window", its size, zeros included; "pixels", only what lies
            inside the image; "replicate", its size, with the border's pixels repeated.
    """
    return up(prod(_average(window, n, counts) for window, n in _with_sizes(windows, sizes)))


@lru_cache(maxsize=256)
def _average(window: Window, n: int | None, counts: str) -> float:
    if n is None or n + window.extent > _PIXELS:
        return _average_axis(window, counts)
    return bracket_matrix(_average_matrix(window, counts, n), _TOLERANCE)[1]


@lru_cache(maxsize=256)
def _average_axis(window: Window, counts: str) -> float:
    """Return the root of the largest row sum of A A^T: entries are not negative, so it bounds the largest eigenvalue.

    A row sum sees one extent to each side. Beyond four extents the two borders do not meet, and the sums repeat with
    the stride: every size is covered. Of wide windows that are all divided by their size, row sums of A are at most
    one, and column sums `visits / size`.

    Raises:
        Unbounded: When the window is too wide for that, and counts only what lies inside the image.
    """
    if window.is_wide:
        raise Unbounded(f"the pads {window.pads} are wider than the window")
    longest = 4 * window.extent + 2 * window.stride
    if longest**2 > _ROWS * window.stride or longest**3 > _ENTRIES * window.stride:
        inside = window.pads == (0, 0) and not window.ceil_mode
        if counts != "window" and not inside:
            raise Unbounded(f"a window of {window.size} with stride {window.stride} is too wide to try all borders")
        return up(sqrt(window.visits / window.size)) if not window.ceil_mode else up(sqrt(window.visits))
    matrices = (_average_matrix(window, counts, n) for n in range(1, longest + 1))
    return max((_from_row_sums(A) for A in matrices if A.size), default=0.0)


def _from_row_sums(A: Array) -> float:
    return up(sqrt(float(np.max(A @ A.sum(axis=0)))))


def _average_matrix(window: Window, counts: str, n: int) -> Array:
    starts, (low, high) = window.starts(n)
    A = np.zeros((len(starts), n))
    for row, start in enumerate(starts):
        reads = start + np.arange(window.size) * window.dilation
        inside = reads[(reads >= 0) & (reads < n)]
        padded = reads[(reads >= -low) & (reads < n + high)]  # what ceil_mode adds beyond the padding never counts
        used = np.clip(padded, 0, n - 1) if counts == "replicate" else inside
        divisor = len(inside) if counts == "pixels" else len(padded)
        np.add.at(A[row], used, 1 / max(divisor, 1))
    return A


def nearest_upsampling(factors: tuple[int, ...]) -> float:
    """Return the norm of repeating each pixel `factors` times: the root of their product."""
    return up(sqrt(prod(factors)))


def linear_upsampling(factors: tuple[int, ...]) -> float:
    """Return an upper bound of the norm of (bi)linear interpolation by whole factors, half-pixel centres."""
    return up(prod(_interpolation_axis(factor) for factor in factors))


@lru_cache(maxsize=64)
def _interpolation_axis(factor: int) -> float:
    if factor > _FACTOR:
        raise Unbounded(f"an interpolation by {factor} is too large to write out")
    return max(_from_row_sums(_interpolation_matrix(factor, n)) for n in range(1, 9))  # as in `_average_axis`


def _interpolation_matrix(factor: int, n: int) -> Array:
    places = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
    left = np.minimum(places.astype(int), max(n - 2, 0))
    A = np.zeros((n * factor, n))
    A[np.arange(n * factor), left] = 1 - (places - left)
    A[np.arange(n * factor), np.minimum(left + 1, n - 1)] += places - left
    return A
