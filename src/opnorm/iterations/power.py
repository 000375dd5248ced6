"""Power iteration on tensors: the spectral norm from below, warm-started from the last update's vectors.

An operator is a pair of functions on stacks of vectors, `Maps`; it may have several diagonal blocks, each with vectors
of its own. A v = sigma u: `u` lives on the output side, `v` on the input side. Vectors are stacked along a first axis:
`u`, and its companion, which follows the second singular vector so that a singular value that overtakes the first one
in training is seen at once. Everything is float32.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from keras import ops

from opnorm.backends.primitives import TINY as TINY  # given on, with TINY: few modules need more of it
from opnorm.backends.primitives import Tensor as Tensor
from opnorm.backends.primitives import (
    arctan2,
    concatenate,
    constant,
    cos,
    dot,
    largest,
    length,
    repeat_while,
    sin,
    where,
)


class Maps(NamedTuple):
    """A linear operator W on stacks of vectors: `(1 or 2, n)`, or `(1 or 2, blocks, n)` if it is block-diagonal."""

    times: Callable[[Tensor], Tensor]  # u -> W u, from the output side to the input side
    transposed: Callable[[Tensor], Tensor]  # v -> W^T v, back


class Estimate(NamedTuple):
    """A lower estimate of the spectral norm of each block, and how it was found; lengths keep their axis."""

    vectors: Tensor  # unit vectors, `u` first: the next start
    sigma: Tensor  # (1, 1) or (1, blocks, 1)
    rotation: Tensor  # what the last half step still added to sigma, relative: 0 when `u` is a singular vector
    start: Tensor  # the unit vector x that the last step set out from ...
    image: Tensor  # ... its image W x, scaled to unit length ...
    length: Tensor  # ... and |W x|


class Effort(NamedTuple):
    """How far to look for the norm in one update."""

    extra_steps: int  # power iterations beyond those of every update, at most
    tolerance: float  # the relative gain of half a step below which no more are taken
    climbs: int  # searches between the grid's frequencies, for a convolution


# Ten float32 roundings: a settled vector's gain is noise of up to four. The norm is above by < sqrt(1e-6 / 2) = 7e-4.
# 2000 steps: more would not help, only singular values equal to the first digits need as many.
CONVERGED = Effort(extra_steps=2000, tolerance=1e-6, climbs=3)


def settled_power_iteration(
    maps: Maps, vectors: Tensor, steps: int, extra_steps: int, tolerance: float, perturbation: float
) -> Estimate:
    """Return the estimate after `steps` power iterations, and up to `extra_steps` more while it still moves.

    It moves while the sigma of a block that may be the largest gains more than `tolerance` in half a step: after a
    cold start, newly loaded weights, a spike. Fixed vectors of relative size `perturbation` are mixed in first, so that
    a `u` orthogonal to the leading singular vector escapes; they cost about `perturbation**2` in sigma.
    """
    return settled(maps, first_steps(maps, vectors, steps, perturbation), extra_steps, tolerance)


def first_steps(maps: Maps, vectors: Tensor, steps: int, perturbation: float) -> Estimate:
    """Return the estimate after `steps` power iterations."""
    estimate = power_iteration(maps, perturbed(vectors, perturbation))
    for _ in range(steps - 1):
        estimate = power_iteration(maps, estimate.vectors)
    return estimate


def settled(maps: Maps, estimate: Estimate, extra_steps: int, tolerance: float) -> Estimate:
    """Return the estimate after up to `extra_steps` further steps, made while it still moves."""
    if not extra_steps:
        return estimate
    return repeat_while(
        lambda estimate: still_moves(estimate, tolerance),
        lambda estimate: _accelerated_step(maps, estimate),
        estimate,
        extra_steps,
    )


def perturbed(vectors: Tensor, size: float) -> Tensor:
    """Return the vectors with fixed ones of relative size `size` mixed in."""
    if not size:
        return vectors
    return unit(vectors) + size * fixed_directions(tuple(vectors.shape), vectors)


def still_moves(estimate: Estimate, tolerance: float) -> Tensor:
    """Return whether a block that may be the largest gained more than `tolerance` in the last half step."""
    # A unit vector whose sigma gains a rotation of r is within about sqrt(r) of a singular vector, so that sigma can
    # still grow by about that: blocks that stay below the largest even then may go on moving.
    moving = estimate.rotation > tolerance
    if len(estimate.sigma.shape) == 2:
        return moving[0, 0]  # a single block is the largest
    reach = estimate.sigma * (1 + ops.maximum(estimate.rotation, 0.0) ** 0.5)
    return ops.any(moving & (reach >= ops.max(estimate.sigma)))


def power_iteration(maps: Maps, vectors: Tensor) -> Estimate:
    """Return the estimate one power iteration after `vectors`: one `times` and one `transposed`."""
    vectors = _orthonormal(vectors)
    images = maps.times(vectors)
    scale = largest(abs(images), (0, -1)) + TINY  # squares of 1e-30, 1e+30 would leave the range
    start, images = vectors, images / scale
    if vectors.shape[0] == 2:
        c, s = _ritz(images[:1], images[1:])
        start = c * vectors[:1] + s * vectors[1:]
        images = c * images + s * concatenate([images[1:], -images[:1]])
    return _half_step(maps, vectors, start, images, scale)


def random_directions(shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Return isotropic unit vectors along the last axis, float32, the same on every backend."""
    directions = np.random.default_rng(seed).standard_normal(shape)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions.astype("float32")


def fixed_directions(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return isotropic unit vectors, always the same, where the tensor `like` is."""
    return constant(_fixed_directions(shape, (0,)), like)


_fixed_directions = lru_cache(maxsize=256)(random_directions)


def _half_step(maps: Maps, former: Tensor, start: Tensor, images: Tensor, scale: Tensor) -> Estimate:
    # With v = W x / |W x|, the norm of z = W^T v is never below v^T W x = |W x|: no third pass to find sigma, and the
    # ratio of the two tells how far the vector still rotates. A zero or not finite block keeps its former vectors.
    lengths = length(images) + TINY
    images = images / lengths
    z = maps.transposed(images) / scale
    sizes = length(z)
    sound = (sizes > 0) & (sizes < float("inf"))  # False for NaN too
    vectors = where(sound, z / (sizes + TINY), former)
    sigma = where(sound, sizes * scale, 0.0)
    return Estimate(vectors, sigma[:1], (sizes / lengths)[:1] - 1, start, images[:1], (lengths * scale)[:1])


def _accelerated_step(maps: Maps, last: Estimate) -> Estimate:
    # Starts from the best combination of the last start x and of u instead of from u alone: W x is known, so that it
    # costs the two passes of a power iteration and converges about twice as fast.
    u = last.vectors[:1]
    other = unit(u - dot(last.start, u) * last.start)
    image = maps.times(other) / last.length
    c, s = _ritz(last.image, image)
    start = c * last.start + s * other
    size = length(start) + TINY  # not 1 where x and u agree to the last digits: a settled block
    step = _half_step(maps, u, start / size, (c * last.image + s * image) / size, last.length)
    return step._replace(vectors=concatenate([step.vectors, last.vectors[1:]]))


def _ritz(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    # The cosine and sine by which to rotate two orthonormal vectors, so that their images, which are given, become
    # orthogonal, the longer one first.
    angle = 0.5 * arctan2(2 * dot(first, second), dot(first + second, first - second))
    return cos(angle), sin(angle)


def _orthonormal(vectors: Tensor) -> Tensor:
    first = unit(vectors[:1])
    if vectors.shape[0] == 1:
        return first
    return concatenate([first, unit(vectors[1:] - dot(first, vectors[1:]) * first)])


def unit(x: Tensor) -> Tensor:
    """Return the vectors scaled to unit length; zero stays zero."""
    return x / (length(x) + TINY)
