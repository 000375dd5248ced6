"""The operator norm of a convolution, valid for every image size: power iteration at many frequencies at once.

At the frequency w a kernel with taps K_n is the matrix M(w) = sum_n exp(-i n.w) K_n. With zero padding ("same",
"valid", "causal"), whatever the size of the image and the dilation, the operator's norm is at most S = sup_w ||M(w)||,
and comes as close to S as one likes on large images. Strides s turn the kernel into one of `ceil(k / s)` taps and
`prod(s)` times the channels (polyphase), with the same two properties where the dilation is 1.

No matrix M(w) is ever built: all frequencies' vectors are multiplied with the kernel in one matrix product, which reads
the kernel once, and the taps' results are then rotated by their phases. Complex numbers are pairs of real ones, so that
each singular value occurs twice.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import cos as cosine
from math import pi, prod
from typing import NamedTuple

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.checks import positive_integers, require
from opnorm.iterations.maps import Maps, Part, joined, stacked
from opnorm.iterations.power import Estimate, apart, power_iteration

Strides = int | tuple[int, ...]
Shape = tuple[int, ...]
Iterate = Callable[[Maps, Tensor], Estimate]
_DENSITY = 6  # points of the grid along an axis, over k - 1: S is within 1 / cos(pi / 12) = 1.035 an axis
_OFFSETS = (-0.75, -0.25, 0.25, 0.75)  # where to look between the points, in half spacings: 0.2 % of S apart, an axis
# Of the climbs: measured on 42 kernels, S is within 0.6 % (1.3 % once) after 1, 0.3 % after 3. The gradient of
# W / S(W) errs by the distance to the peak itself, not its square: on 40 kernels by up to 12 % after 1, 1.3 % after 4.
_REACHES = (1.0, 0.6, 0.2, 0.07)


class Taps(NamedTuple):
    """Where the taps of a kernel lie: tap n = strides * place + phase, each phase being a channel of its own."""

    places: np.ndarray  # (taps, axes)
    phases: np.ndarray  # (prod(strides), taps), one-hot


class Sliding(NamedTuple):
    """A convolution kernel and how it slides."""

    blocks: Tensor  # (groups, taps * cin, cout), all of one group
    spatial: Shape
    strides: Shape
    alone: bool  # whether each group's norm counts by itself


class Peaks(NamedTuple):
    """The largest singular values at some frequencies, the same for all groups or each group's own."""

    frequencies: Tensor  # (groups or 1, count, axes), in radians
    rotations: Tensor  # (groups or 1, count, 2 phases, 2 taps): from the taps' results to the polyphase kernel's
    estimate: Estimate  # blocks: groups * count


class Survey(NamedTuple):
    """What was found of each group's S, and where the norm is large."""

    sigma: Tensor  # (groups,), estimates from below
    vectors: Tensor  # the next start
    frequencies: Tensor  # (groups, count, axes): for each point of the grid one near it, in radians
    heights: Tensor  # (groups, count): the norms there are at least these
    peaks: tuple[Peaks, ...]  # on the grid, and of each further search: sigma is the largest of theirs


def sliding(kernel: Tensor, strides: Strides, groups: int, alone: bool = False) -> Sliding:
    """Return a kernel, `(*spatial, cin / groups, cout)`, as what slides; see `Sliding` for `alone`."""
    spatial = of(kernel).shape(kernel)[:-2]
    return Sliding(_blocks(kernel, groups), spatial, positive_integers(strides, len(spatial), "strides"), alone)


def survey(several: Sequence[Sliding], iterate: Iterate, vectors: Sequence[Tensor], climbs: int) -> list[Survey]:
    """Return an estimate from below of each group's S, the frequencies it rests on, and the next vectors.

    Once `iterate` has converged, S is at most `grid_factor` times the estimate, for every kernel: so much is true of
    the largest norm on the grid. Further searches climb from there to the likely peak between the grid's points.

    Args:
        several: Kernels, whose grids are searched together.
        iterate: Finds the largest singular values of `Maps` from given vectors.
        vectors: One for each kernel, `(1, *start_shape(...))`.
        climbs: The number of the further searches, at least 1 and at most 4.
    """
    grids = [of(one.blocks).table(one.blocks, _points_of_grid, one.spatial, one.strides) for one in several]
    peaks: list[tuple[Peaks, ...]] = [(peak,) for peak in _search(several, iterate, grids, vectors)]
    between = near = [_between(one, found[0], _REACHES[0]) for one, found in zip(several, peaks, strict=True)]
    for i, reach in enumerate(_REACHES[:climbs]):
        if i:
            near = [_between(one, found[-1], reach) for one, found in zip(several, peaks, strict=True)]
        summits = [_summit(found[-1], *where) for found, where in zip(peaks, near, strict=True)]
        climbed = _search(several, power_iteration, *zip(*summits, strict=True))  # nearly at rest: one step
        peaks = [(*found, peak) for found, peak in zip(peaks, climbed, strict=True)]
    return [_survey(one, found, *where) for one, found, where in zip(several, peaks, between, strict=True)]


def _survey(one: Sliding, peaks: tuple[Peaks, ...], frequencies: Tensor, heights: Tensor) -> Survey:
    xp, groups = of(one.blocks), one.blocks.shape[0]
    norms = [xp.reshape(peak.estimate.sigma, (groups, -1)) for peak in peaks]
    sigma = xp.reshape(xp.largest(xp.concatenate(norms, axis=1), (1,)), (-1,))
    return Survey(sigma, peaks[0].estimate.vectors, frequencies, heights, peaks)


def peak_maps(one: Sliding, peaks: Peaks) -> Maps:
    """Return the maps `w -> M(w)` of a kernel at the frequencies of `peaks`, block-diagonal over groups and these."""
    return _maps(one, peaks.rotations)


def convolution_shape(shape: Shape, axis: int | Shape) -> Shape:
    """Return the shape `(*spatial, cin / groups, cout)` of a kernel whose output channels lie along `axis`.

    It is another one for two axes: those of a depthwise kernel, `(*spatial, channels, multiplier)`.
    """
    return shape if axis in (-1, (-1,)) else (*shape[:-2], 1, prod(shape[-2:]))


def start_shape(shape: Shape, strides: Strides, groups: int) -> Shape:
    """Return the shape of `u` for a kernel of `shape`: `(groups * frequencies, 2 * cout / groups)`.

    Raises:
        ValueError: When the kernel is none of a convolution, or does not fit `strides` or `groups`.
    """
    require(len(shape) in (3, 4, 5), "operator", f"must be 'matrix' for a kernel of shape {shape}", "convolution")
    steps = positive_integers(strides, len(shape) - 2, "strides")
    require(shape[-1] % groups == 0, "groups", f"must divide the number of output channels, {shape[-1]}", groups)
    return groups * len(_grid(shape[:-2], steps)), 2 * shape[-1] // groups


def grid_factor(spatial: Shape, strides: Strides) -> float:
    """Return the factor `prod_i 1 / cos(pi (k_i - 1) / (2 N_i))`: S is at most that times the grid's maximum."""
    sizes = _sides(spatial, positive_integers(strides, len(spatial), "strides"))
    return prod(1 / cosine(pi * (k - 1) / (2 * n)) for k, n in zip(sizes, _points(sizes), strict=True))


def _sides(spatial: Shape, strides: Shape) -> Shape:
    return tuple(-(-k // s) for k, s in zip(spatial, strides, strict=True))


def _points(sides: Shape) -> Shape:
    return tuple(max(1, _DENSITY * (k - 1)) for k in sides)


@lru_cache(maxsize=64)
def _grid(spatial: Shape, strides: Shape) -> np.ndarray:
    # (frequencies, axes). The kernel is real: M(-w) is the conjugate of M(w), half the grid is enough.
    points = _points(_sides(spatial, strides))
    index = np.indices(points).reshape(len(points), -1)
    mirror = np.ravel_multi_index(tuple(-index % np.array(points)[:, None]), points)
    half = index[:, np.arange(mirror.size) <= mirror]
    return (2 * pi * half.T / points).astype("float32")


@lru_cache(maxsize=64)
def _offsets(spatial: Shape, strides: Shape, reach: float) -> np.ndarray:
    # (offsets, axes), from a grid point to the frequencies nearer to it than to any other, times `reach`.
    axes = [[reach * pi / n * x for x in _OFFSETS] if n > 1 else [0.0] for n in _points(_sides(spatial, strides))]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes)).astype("float32")


def _waves(spatial: Shape, strides: Shape, reach: float) -> np.ndarray:
    # (2 taps, 2 offsets): the real and the imaginary part, at the offsets, of a polynomial with given coefficients.
    angles = _taps(spatial, strides).places @ _offsets(spatial, strides, reach).T
    c, s = np.cos(angles), np.sin(angles)
    return np.block([[c, -s], [s, c]]).astype("float32")


def places(spatial: Shape, strides: Strides, like: Tensor) -> Tensor:
    """Return the places of the taps, (axes, taps), where the tensor `like` is; see `Taps`."""
    return of(like).table(like, _places, spatial, positive_integers(strides, len(spatial), "strides"))


def phases(spatial: Shape, strides: Strides, like: Tensor) -> Tensor:
    """Return the phases of the taps, (prod(strides), taps), where the tensor `like` is; see `Taps`."""
    return of(like).table(like, _phases, spatial, positive_integers(strides, len(spatial), "strides"))


def _places(spatial: Shape, strides: Shape) -> np.ndarray:
    return _taps(spatial, strides).places.T


def _phases(spatial: Shape, strides: Shape) -> np.ndarray:
    return _taps(spatial, strides).phases


def _points_of_grid(spatial: Shape, strides: Shape) -> np.ndarray:
    return _grid(spatial, strides)[None]


@lru_cache(maxsize=64)
def _taps(spatial: Shape, strides: Shape) -> Taps:
    index = np.indices(spatial).reshape(len(spatial), -1)
    places, phases = index // np.array(strides)[:, None], index % np.array(strides)[:, None]
    number = np.ravel_multi_index(tuple(phases), strides)
    return Taps(places.T.astype("float32"), np.eye(prod(strides), dtype="float32")[:, number])


def _blocks(kernel: Tensor, groups: int) -> Tensor:
    # (groups, taps * cin, cout), all of one group; no copy is made of an ungrouped kernel.
    xp = of(kernel)
    *spatial, inputs, outputs = xp.shape(kernel)
    if groups == 1:
        return xp.reshape(kernel, (1, -1, outputs))
    return xp.transpose(xp.reshape(kernel, (prod(spatial) * inputs, groups, outputs // groups)), (1, 0, 2))


def _maps(one: Sliding, rotations: Tensor) -> Maps:
    """Return the maps `w -> M(w)`, block-diagonal over groups and frequencies."""
    xp, blocks = of(one.blocks), one.blocks
    groups, _, outputs = xp.shape(blocks)
    _, count, rows, parts = xp.shape(rotations)
    backwards = xp.transpose(rotations, (0, 1, 3, 2))

    def times(u: Tensor) -> Tensor:
        return xp.reshape(rotations @ _times_taps(blocks, u, parts), (1, groups * count, -1))

    def transposed(v: Tensor) -> Tensor:
        z = backwards @ xp.reshape(v, (groups, count, rows, -1))
        z = xp.reshape(z, (groups, 2 * count, -1)) @ blocks
        return xp.reshape(z, (1, groups * count, 2 * outputs))

    channels = rows * xp.shape(blocks)[1] // (parts // 2)
    sizes = channels, 2 * outputs, False
    return Maps(times, transposed, (Part(count, *sizes),) * groups if one.alone else (Part(groups * count, *sizes),))


def _times_taps(blocks: Tensor, u: Tensor, parts: int) -> Tensor:
    # K_n u of every tap, group and frequency: (groups, frequencies, 2 taps, cin), real parts first.
    xp = of(blocks)
    groups, rows, outputs = xp.shape(blocks)
    z = xp.reshape(u, (groups, -1, outputs)) @ xp.transpose(blocks, (0, 2, 1))
    return xp.reshape(z, (groups, -1, parts, 2 * rows // parts))


def _search(
    several: Sequence[Sliding], iterate: Iterate, frequencies: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Peaks]:
    rotations = [_rotations(one, where) for one, where in zip(several, frequencies, strict=True)]
    maps = [_maps(one, rotation) for one, rotation in zip(several, rotations, strict=True)]
    together = joined(maps)
    found = iterate(together, stacked(vectors, together.columns))
    return [Peaks(*one) for one in zip(frequencies, rotations, apart(found, maps), strict=True)]


def _rotations(one: Sliding, frequencies: Tensor) -> Tensor:
    xp = of(one.blocks)
    angles = (frequencies @ places(one.spatial, one.strides, frequencies))[:, :, None]
    shifts = phases(one.spatial, one.strides, frequencies)
    c, s = xp.cos(angles) * shifts, xp.sin(angles) * shifts
    return xp.concatenate([xp.concatenate([c, s], axis=-1), xp.concatenate([-s, c], axis=-1)], axis=-2)


def _between(one: Sliding, peaks: Peaks, reach: float) -> tuple[Tensor, Tensor]:
    # Returns for each point the frequency point + offset where the norm promises to be largest, and that promise.
    # With v, u fixed, |v* M(w) u| <= ||M(w)|| is the modulus of a trigonometric polynomial of w.
    xp, where = of(one.blocks), (one.spatial, one.strides, reach)
    groups, count = one.blocks.shape[0], peaks.frequencies.shape[1]
    coefficients = _coefficients(one.blocks, peaks)
    waves = coefficients @ xp.table(coefficients, _waves, *where)
    offsets = xp.table(coefficients, _offsets, *where)
    heights = xp.total(xp.reshape(waves, (groups, count, 2, -1)) ** 2, (2,))[:, :, 0]
    chosen = xp.take(offsets, xp.argmax(heights))
    top = xp.reshape(xp.largest(heights, (2,)), (groups, count))
    return peaks.frequencies + chosen, xp.sqrt(top) * xp.largest(peaks.estimate.sigma, (0, 1, 2))[0]


def _summit(peaks: Peaks, frequencies: Tensor, heights: Tensor) -> tuple[Tensor, Tensor]:
    # Each group's most promising frequency, (groups, 1, axes), and the vectors of the point it belongs to.
    xp = of(heights)
    groups, count = xp.shape(heights)
    best = xp.argmax(heights)[:, None]
    vectors = xp.reshape(peaks.estimate.vectors, (groups, count, -1))
    return xp.rows(frequencies, best), xp.reshape(xp.rows(vectors, best), (1, groups, -1))


def _coefficients(blocks: Tensor, peaks: Peaks) -> Tensor:
    # v* exp(-i n.w) K_n u over the norm, for every group, point and tap n: real parts first.
    xp, estimate = of(blocks), peaks.estimate
    _, count, phases, taps = xp.shape(peaks.rotations)
    groups = blocks.shape[0]
    v = xp.reshape(estimate.image, (groups, count, phases, -1))
    y = xp.transpose(peaks.rotations, (0, 1, 3, 2)) @ v
    z = _times_taps(blocks, estimate.vectors, taps) / (xp.largest(estimate.sigma, (0, 1, 2))[..., None] + TINY)
    split = (groups * count, 2, taps // 2, -1)
    y, z = xp.reshape(y, split), xp.reshape(z, split)
    real = xp.reshape(xp.total(y * z, (1, 3)), (groups * count, -1))
    imaginary = xp.reshape(xp.total(y[:, 0] * z[:, 1] - y[:, 1] * z[:, 0], (2,)), (groups * count, -1))
    return xp.concatenate([real, imaginary], axis=-1)
