"""Power iteration on tensors: the spectral norm from below, warm-started from the last update's vectors.

An operator is a pair of functions on stacks of vectors, `Maps`; it may have many diagonal blocks, each with vectors of
its own. A v = sigma u: `u` lives on the output side, `v` on the input side. Vectors are stacked along a first axis:
`u`, and its companion, which follows the second singular vector so that a singular value that overtakes the first one
in training is seen in the same update or the next. Everything is in the vectors' dtype, float32 in training.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.iterations.maps import Maps, Part, only, unstacked

# A settled vector's gain is noise of up to four float32 roundings: the norm is above by < sqrt(1e-6 / 2) = 7e-4.
_LEAST_GAIN = 1e-6
_SMALLEST = 1e3 * TINY  # of a vector's length: its direction is lost in numbers that are not normal any more
_ROUNDING = 1e-5  # of a vector, relative: what is left of it below that is float32 rounding
_FAR, _NEAR = 5.0, 0.01  # kernels that start orthogonal, Adam 1e-3: at most 7e-4 above their target
_MOST_STEPS = 2000  # more would not help: only singular values equal to the first digits need as many


class Estimate(NamedTuple):
    """A lower estimate of the spectral norm of each block, and how it was found; lengths keep their axis."""

    vectors: Tensor  # unit vectors, `u` first: the next start
    sigma: Tensor  # (1, blocks, 1)
    rotation: Tensor  # what the last half step still added to sigma, relative: 0 when `u` is a singular vector
    start: Tensor  # the unit vector x that the last step set out from ...
    image: Tensor  # ... its image W x, scaled to unit length ...
    length: Tensor  # ... and |W x|
    weight: Tensor  # of a gain: near 1 / (1 - the squared ratio of the two leading singular values), at least 1


class Search(NamedTuple):
    """How far to look for a norm."""

    steps: int  # power iterations in any case
    extra_steps: int  # and beyond those, at most, while sigma moves: a cold start, newly loaded weights, a spike
    tolerance: float  # it moves while half a step gains more than this, relative; less where singular values are near
    perturbation: float  # relative size of fixed vectors mixed in, so that a `u` orthogonal to the leading one escapes


def converged(search: Search) -> Search:
    """Return the search that goes on until nothing more is to be gained."""
    return search._replace(extra_steps=_MOST_STEPS, tolerance=_LEAST_GAIN)


def settled_power_iteration(maps: Maps, vectors: Tensor, search: Search) -> Estimate:
    """Return the estimate after `search.steps` power iterations, and further ones while it still moves.

    The perturbation costs about its square in sigma.
    """
    return settled(maps, first_steps(maps, vectors, search), search)


def first_steps(maps: Maps, vectors: Tensor, search: Search) -> Estimate:
    """Return the estimate after `search.steps` power iterations."""
    further = search.extra_steps > 0
    estimate = power_iteration(maps, perturbed(maps, vectors, search.perturbation), further)
    for _ in range(search.steps - 1):
        estimate = power_iteration(maps, estimate.vectors, further)
    return estimate


def settled(maps: Maps, estimate: Estimate, search: Search) -> Estimate:
    """Return the estimate after further steps, made while it still moves; of each kernel as it would be alone."""
    return estimate if exact(maps) else moved(maps, _accelerated_step, estimate, search)


def moved(maps: Maps, step: Callable[[Maps, Estimate], Estimate], estimate: Estimate, search: Search) -> Estimate:
    """Return the estimate after at most `search.extra_steps` times `step`; kernels that have settled are left out."""
    if not search.extra_steps:
        return estimate
    xp = of(estimate.sigma)

    def moves(last: Estimate) -> Tensor:
        return still_moves(maps, last, search.tolerance)

    def masked(last: Estimate) -> Estimate:
        going = moves(last)
        return chosen(going, step(only(maps, going), last), last)

    body = partial(step, maps) if maps.blocks == 1 else masked
    found: Estimate = xp.repeat_while(lambda last: xp.any_of(moves(last)), body, estimate, search.extra_steps)
    return found


def chosen(which: Tensor, this: Estimate, other: Estimate) -> Estimate:
    """Return what `this` says of the blocks where `which`, `(1, blocks, 1)`, is true, and `other` of the rest."""
    return Estimate(*(of(which).where(which, one, two) for one, two in zip(this, other, strict=True)))


def seen(maps: Maps, estimate: Estimate) -> Estimate:
    """Return the estimate with the image of its `u`, from which the search can go on."""
    xp = of(estimate.sigma)
    start = estimate.vectors[:1]
    image = maps.times(start)
    scale = xp.largest(abs(image), (0, 2)) + TINY
    size = xp.length(image / scale)
    return estimate._replace(start=start, image=image / scale / (size + TINY), length=size * scale)


def exact(maps: Maps) -> bool:
    """Return whether one power iteration finds every norm: those of single rows and columns, which are lengths."""
    return all(min(part.rows, part.columns) == 1 for part in maps.parts)


def still_moves(maps: Maps, estimate: Estimate, tolerance: float) -> Tensor:
    """Return, (1, blocks, 1), which blocks go on: a block of theirs that counts gained more than `tolerance`."""
    # A unit vector whose sigma gains a rotation of r is within about sqrt(r) of a singular vector, so that sigma can
    # still grow by about that: blocks that stay below the largest even then do not count.
    # Of singular values in the ratio r each half step leaves r**2 of what is to be gained: `weight` sums that up.
    moving = (estimate.rotation * estimate.weight > tolerance) & (estimate.rotation > min(tolerance, _LEAST_GAIN))
    if not maps.coupled:
        return moving
    xp = of(estimate.sigma)
    reach = estimate.sigma * (1 + xp.sqrt(xp.where(estimate.rotation > 0, estimate.rotation, 0.0)))
    counts = reach >= of_each_kernel(estimate.sigma, maps.parts)
    return of_each_kernel(xp.cast(moving & counts, xp.dtype(reach)), maps.parts) > 0


def of_each_kernel(values: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """Return, for each block, the largest value among those it counts with; `(1, blocks, 1)`."""
    xp = of(values)
    pieces, end = [], 0
    for part in parts:
        end += part.blocks
        piece = values[:, end - part.blocks : end]
        pieces.append(piece if part.alone else xp.largest(piece, (1,)) + 0 * piece)
    return xp.concatenate(pieces, axis=1)


def apart(estimate: Estimate, several: Sequence[Maps]) -> list[Estimate]:
    """Return what was found on the operator that `joined` made of `several`, for each of them."""
    columns, rows, ones = [one.columns for one in several], [one.rows for one in several], [1] * len(several)
    sizes = Estimate(columns, ones, ones, columns, rows, ones, ones)
    fields = (unstacked(field, several, size) for field, size in zip(estimate, sizes, strict=True))
    return [Estimate(*one) for one in zip(*fields, strict=True)]


def perturbed(maps: Maps, vectors: Tensor, size: float) -> Tensor:
    """Return the vectors with fixed ones of relative size `size` mixed in."""
    if not size:
        return vectors
    return unit(vectors) + fixed_directions(vectors.shape[0], maps.parts, vectors, size)


def power_iteration(maps: Maps, vectors: Tensor, further: bool = False) -> Estimate:
    """Return the estimate one power iteration after `vectors`: one `times` and one `transposed`.

    A companion takes part in it; if `further`, a third half step follows, of `u` alone.
    """
    xp = of(vectors)
    vectors = _orthonormal(vectors)
    images = maps.times(vectors)
    scale = xp.largest(abs(images), (0, 2)) + TINY  # squares of 1e-30, 1e+30 would leave the range
    images = images / scale
    if vectors.shape[0] == 1:
        return _half_step(maps, vectors, images, scale)
    c, s = _ritz(images[:1], images[1:])
    basis, images = c * vectors + s * _turned(vectors), c * images + s * _turned(images)
    if further and not exact(maps):
        return _two_half_steps(maps, vectors, basis, images, scale)
    return _half_step(maps, basis, images, scale)


def _turned(pair: Tensor) -> Tensor:
    return of(pair).concatenate([pair[1:], -pair[:1]])


def random_directions(shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Return isotropic unit vectors along the last axis, float32, the same on every backend."""
    directions = np.random.default_rng(seed).standard_normal(shape)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions.astype("float32")


def fixed_directions(count: int, parts: tuple[Part, ...], like: Tensor, size: float = 1.0) -> Tensor:
    """Return isotropic vectors of length `size`, always the same for a kernel, where the tensor `like` is.

    Of each kernel `count`, but no more than it has columns; those missing are zero.
    """
    shapes = tuple((part.blocks, part.columns) for part in parts)
    return of(like).table(like, _fixed_directions, int(count), shapes, size)


@lru_cache(maxsize=256)
def _fixed_directions(count: int, shapes: tuple[tuple[int, int], ...], size: float) -> np.ndarray:
    blocks = [blocks for blocks, _ in shapes]
    result = np.zeros((count, sum(blocks), max(columns for _, columns in shapes)), "float32")
    for end, (number, columns) in zip(np.cumsum(blocks), shapes, strict=True):
        present = min(count, columns)
        drawn = random_directions((present, number, columns), (0,))
        result[:present, end - number : end, :columns] = np.float32(size) * drawn
    return result


def _half_step(maps: Maps, start: Tensor, images: Tensor, scale: Tensor) -> Estimate:
    # With v = W x / |W x|, the norm of z = W^T v is never below v^T W x = |W x|: no third pass to find sigma, and the
    # ratio of the two tells how far the vector still rotates. A zero or not finite block keeps its former vectors.
    xp = of(images)
    lengths = xp.length(images) + TINY
    images = images / lengths
    z = maps.transposed(images) / scale
    sizes = xp.length(z)
    sound = (sizes > _SMALLEST) & (sizes < float("inf"))  # False for NaN too
    vectors = xp.where(sound, z / (sizes + TINY), start)
    sigma = xp.where(sound, sizes * scale, 0.0)
    rotation = (sizes / lengths)[:1] - 1
    return Estimate(vectors, sigma[:1], rotation, start[:1], images[:1], (lengths * scale)[:1], weight(lengths))


def _two_half_steps(maps: Maps, former: Tensor, basis: Tensor, images: Tensor, scale: Tensor) -> Estimate:
    # `basis` is x and y, with images that are orthogonal, x's the longer one. The companion's step is a power
    # iteration, u's the best combination of x, y and the direction in which |W x| grows fastest.
    xp = of(images)
    lengths = xp.length(images) + TINY
    z = maps.transposed(images / lengths) / scale
    sizes = xp.length(z)
    up = _orthogonal(z[:1], basis)
    start, image = _best(maps, basis[:1], images[:1], up, scale)
    c, s = _ritz(image, images[1:])
    start, image = c * start + s * basis[1:], c * image + s * images[1:]
    size = xp.length(image)
    both = xp.concatenate([size, sizes[1:]])
    sound = (both > _SMALLEST) & (both < float("inf"))  # False for NaN too
    vectors = xp.where(sound, xp.concatenate([start, z[1:] / (sizes[1:] + TINY)]), former)
    sigma, rotation = xp.where(sound[:1], size * scale, 0.0), size / (sizes[:1] + TINY) - 1
    return Estimate(vectors, sigma, rotation, start, image / (size + TINY), size * scale, weight(lengths))


def _best(maps: Maps, x: Tensor, image: Tensor, direction: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    # The unit vector in the plane of x and a direction orthogonal to it whose image is longest, and that image.
    xp = of(x)
    other = maps.times(direction) / scale
    c, s = _ritz(image, other)
    best = c * x + s * direction
    size = xp.length(best) + TINY  # 1 but for rounding, which thousands of steps would add up
    return best / size, (c * image + s * other) / size


def weight(lengths: Tensor) -> Tensor:
    """Return the weight of a gain, `(1, blocks, 1)`, from the lengths of a leading image and the next one.

    It is 1 up to a ratio of 0.89, 100 where the two are equal, 1 where there is no second one.
    """
    if lengths.shape[0] == 1:
        return 0 * lengths + 1
    weights = 1 / (_FAR * (1 - (lengths[1:] / lengths[:1]) ** 2) + _NEAR)
    return of(lengths).where(weights > 1, weights, 1.0)


def _accelerated_step(maps: Maps, last: Estimate) -> Estimate:
    # Not on to where |W x| grows fastest, as a power iteration goes, but to the best point of the plane that this
    # direction and x span: the two passes of a power iteration, and about twice as fast.
    xp = of(last.vectors)
    z = maps.transposed(last.image) / last.length
    up = _orthogonal(z, last.start)
    start, image = _best(maps, last.start, last.image, up, last.length)
    size = xp.length(image)
    sound = (size > 0) & (size < float("inf"))
    vectors = xp.where(sound, xp.concatenate([start, last.vectors[1:]]), last.vectors)
    return Estimate(
        vectors=vectors,
        sigma=xp.where(sound, size * last.length, 0.0),
        rotation=size / (xp.length(z) + TINY) - 1,
        start=vectors[:1],
        image=image / (size + TINY),
        length=size * last.length,
        weight=last.weight,
    )


def _ritz(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    # The cosine and sine by which to rotate two orthonormal vectors, so that their images, which are given, become
    # orthogonal, the longer one first.
    xp = of(first)
    angle = 0.5 * xp.arctan2(2 * xp.dot(first, second), xp.dot(first + second, first - second))
    return xp.cos(angle), xp.sin(angle)


def _orthonormal(vectors: Tensor) -> Tensor:
    xp = of(vectors)
    first = unit(vectors[:1])
    if vectors.shape[0] == 1:
        return first
    return xp.concatenate([first, _orthogonal(vectors[1:], first)])


def _orthogonal(x: Tensor, basis: Tensor) -> Tensor:
    # The unit vectors of what x has beside the orthonormal basis; zero where that is but rounding, which is not
    # orthogonal to anything.
    xp = of(x)
    rest = x - xp.total(xp.dot(x, basis) * basis, (0,))
    size = xp.length(rest)
    return xp.where(size > _ROUNDING * xp.length(x), rest, 0.0) / (size + TINY)


def unit(x: Tensor) -> Tensor:
    """Return the vectors scaled to unit length; zero stays zero."""
    return x / (of(x).length(x) + TINY)
