"""Power iteration on tensors: the spectral norm from below, warm-started from the last update's vectors.

An operator is a pair of functions on stacks of vectors, `Maps`; it may have many diagonal blocks, each with vectors of
its own. A v = sigma u: `u` lives on the output side, `v` on the input side. Vectors are stacked along a first axis:
`u`, and its companion, which follows the second singular vector so that a singular value that overtakes the first one
in training is seen at once. Everything is in the vectors' dtype, float32 in training.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.iterations.maps import Maps, Part, unstacked

# A settled vector's gain is noise of up to four float32 roundings: the norm is above by < sqrt(1e-6 / 2) = 7e-4.
_LEAST_GAIN = 1e-6
_MOST_STEPS = 2000  # more would not help: only singular values equal to the first digits need as many


class Estimate(NamedTuple):
    """A lower estimate of the spectral norm of each block, and how it was found; lengths keep their axis."""

    vectors: Tensor  # unit vectors, `u` first: the next start
    sigma: Tensor  # (1, blocks, 1)
    rotation: Tensor  # what the last half step still added to sigma, relative: 0 when `u` is a singular vector
    start: Tensor  # the unit vector x that the last step set out from ...
    image: Tensor  # ... its image W x, scaled to unit length ...
    length: Tensor  # ... and |W x|


class Search(NamedTuple):
    """How far to look for a norm."""

    steps: int  # power iterations in any case
    extra_steps: int  # and beyond those, at most, while sigma moves: a cold start, newly loaded weights, a spike
    tolerance: float  # it moves while half a step gains more than this, relative
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
    estimate = power_iteration(maps, perturbed(maps, vectors, search.perturbation))
    for _ in range(search.steps - 1):
        estimate = power_iteration(maps, estimate.vectors)
    return estimate


def settled(maps: Maps, estimate: Estimate, search: Search) -> Estimate:
    """Return the estimate after further steps, made while it still moves; of each kernel as it would be alone."""
    return estimate if exact(maps) else moved(maps, lambda last: _accelerated_step(maps, last), estimate, search)


def moved(maps: Maps, step: Callable[[Estimate], Estimate], estimate: Estimate, search: Search) -> Estimate:
    """Return the estimate after at most `search.extra_steps` times `step`; kernels that have settled are left out."""
    if not search.extra_steps:
        return estimate
    xp = of(estimate.sigma)

    def moves(last: Estimate) -> Tensor:
        return still_moves(maps, last, search.tolerance)

    def masked(last: Estimate) -> Estimate:
        going, following = moves(last), step(last)
        return Estimate(*(xp.where(going, new, old) for new, old in zip(following, last, strict=True)))

    body = step if maps.blocks == 1 else masked
    found: Estimate = xp.repeat_while(lambda last: xp.any_of(moves(last)), body, estimate, search.extra_steps)
    return found


def exact(maps: Maps) -> bool:
    """Return whether one power iteration finds every norm: those of single rows and columns, which are lengths."""
    return all(min(part.rows, part.columns) == 1 for part in maps.parts)


def still_moves(maps: Maps, estimate: Estimate, tolerance: float) -> Tensor:
    """Return, (1, blocks, 1), which blocks go on: a block of theirs that counts gained more than `tolerance`."""
    # A unit vector whose sigma gains a rotation of r is within about sqrt(r) of a singular vector, so that sigma can
    # still grow by about that: blocks that stay below the largest even then do not count.
    moving = estimate.rotation > tolerance
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
    sizes = Estimate(columns, ones, ones, columns, rows, ones)
    fields = (unstacked(field, several, size) for field, size in zip(estimate, sizes, strict=True))
    return [Estimate(*one) for one in zip(*fields, strict=True)]


def perturbed(maps: Maps, vectors: Tensor, size: float) -> Tensor:
    """Return the vectors with fixed ones of relative size `size` mixed in."""
    if not size:
        return vectors
    return unit(vectors) + fixed_directions(vectors.shape[0], maps.parts, vectors, size)


def power_iteration(maps: Maps, vectors: Tensor) -> Estimate:
    """Return the estimate one power iteration after `vectors`: one `times` and one `transposed`."""
    xp = of(vectors)
    vectors = _orthonormal(vectors)
    images = maps.times(vectors)
    scale = xp.largest(abs(images), (0, 2)) + TINY  # squares of 1e-30, 1e+30 would leave the range
    start, images = vectors, images / scale
    if vectors.shape[0] == 2:
        c, s = _ritz(images[:1], images[1:])
        start = c * vectors[:1] + s * vectors[1:]
        images = c * images + s * xp.concatenate([images[1:], -images[:1]])
    return _half_step(maps, vectors, start, images, scale)


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


def _half_step(maps: Maps, former: Tensor, start: Tensor, images: Tensor, scale: Tensor) -> Estimate:
    # With v = W x / |W x|, the norm of z = W^T v is never below v^T W x = |W x|: no third pass to find sigma, and the
    # ratio of the two tells how far the vector still rotates. A zero or not finite block keeps its former vectors.
    xp = of(images)
    lengths = xp.length(images) + TINY
    images = images / lengths
    z = maps.transposed(images) / scale
    sizes = xp.length(z)
    sound = (sizes > 0) & (sizes < float("inf"))  # False for NaN too
    vectors = xp.where(sound, z / (sizes + TINY), former)
    sigma = xp.where(sound, sizes * scale, 0.0)
    return Estimate(vectors, sigma[:1], (sizes / lengths)[:1] - 1, start, images[:1], (lengths * scale)[:1])


def _accelerated_step(maps: Maps, last: Estimate) -> Estimate:
    # Starts from the best combination of the last start x and of u instead of from u alone: W x is known, so that it
    # costs the two passes of a power iteration and converges about twice as fast.
    xp = of(last.vectors)
    u = last.vectors[:1]
    other = unit(u - xp.dot(last.start, u) * last.start)
    image = maps.times(other) / last.length
    c, s = _ritz(last.image, image)
    start = c * last.start + s * other
    size = xp.length(start) + TINY  # not 1 where x and u agree to the last digits: a settled block
    step = _half_step(maps, u, start / size, (c * last.image + s * image) / size, last.length)
    return step._replace(vectors=xp.concatenate([step.vectors, last.vectors[1:]]))


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
    return xp.concatenate([first, unit(vectors[1:] - xp.dot(first, vectors[1:]) * first)])


def unit(x: Tensor) -> Tensor:
    """Return the vectors scaled to unit length; zero stays zero."""
    return x / (of(x).length(x) + TINY)
