"""Power iteration on tensors: the spectral norm from below, warm-started from the last update's vectors.

An operator is a pair of functions on stacks of vectors, `Maps`; it may have several diagonal blocks, each with vectors
of its own. A v = sigma u: `u` lives on the output side, `v` on the input side. Vectors are stacked along a first axis:
`u`, and its companion, which follows the second singular vector so that a singular value that overtakes the first one
in training is seen at once. Everything is float32.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from keras import ops

Tensor = Any  # a tensor of whichever backend Keras runs on
TINY = float(np.finfo("float32").tiny)  # added to divisors: none is zero, and no other number notices


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
    estimate = power_iteration(maps, perturbed(vectors, perturbation))
    for _ in range(steps - 1):
        estimate = power_iteration(maps, estimate.vectors)
    if not extra_steps:
        return estimate
    return Estimate(
        *ops.while_loop(
            lambda *state: still_moves(Estimate(*state), tolerance),
            lambda *state: tuple(_accelerated_step(maps, Estimate(*state))),
            tuple(estimate),
            maximum_iterations=extra_steps,
        )
    )


def perturbed(vectors: Tensor, size: float) -> Tensor:
    """Return the vectors with fixed ones of relative size `size` mixed in."""
    if not size:
        return vectors
    noise = ops.convert_to_tensor(_fixed_directions(tuple(vectors.shape), (0,)))
    return vectors / (_length(vectors) + TINY) + size * noise


def still_moves(estimate: Estimate, tolerance: float) -> Tensor:
    """Return whether a block that may be the largest gained more than `tolerance` in the last half step."""
    # A unit vector whose sigma gains a rotation of r is within about sqrt(r) of a singular vector, so that sigma can
    # still grow by about that: blocks that stay below the largest even then may go on moving.
    reach = estimate.sigma * (1 + ops.sqrt(ops.maximum(estimate.rotation, 0.0)))
    return ops.any(ops.logical_and(estimate.rotation > tolerance, reach >= ops.max(estimate.sigma)))


def power_iteration(maps: Maps, vectors: Tensor) -> Estimate:
    """Return the estimate one power iteration after `vectors`: one `times` and one `transposed`."""
    vectors = _orthonormal(vectors)
    images = maps.times(vectors)
    scale = (
        ops.max(ops.abs(images), axis=(0, -1), keepdims=True) + TINY
    )  # squares of 1e-30, 1e+30 would leave the range
    return _half_step(maps, vectors, *_ritz(vectors, images / scale), scale)


def random_directions(shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Return isotropic unit vectors along the last axis, float32, the same on every backend."""
    directions = np.random.default_rng(seed).standard_normal(shape)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions.astype("float32")


_fixed_directions = lru_cache(maxsize=256)(random_directions)


def _half_step(maps: Maps, former: Tensor, start: Tensor, images: Tensor, scale: Tensor) -> Estimate:
    # With v = W x / |W x|, the norm of z = W^T v is never below v^T W x = |W x|: no third pass to find sigma, and the
    # ratio of the two tells how far the vector still rotates. A zero or not finite block keeps its former vectors.
    lengths = _length(images) + TINY
    images = images / lengths
    z = maps.transposed(images) / scale
    sizes = _length(z)
    sound = (sizes > 0) & (sizes < float("inf"))  # False for NaN too
    vectors = ops.where(sound, z / (sizes + TINY), former)
    sigma = ops.where(sound, sizes * scale, 0.0)
    return Estimate(vectors, sigma[:1], (sizes / lengths)[:1] - 1, start[:1], images[:1], (lengths * scale)[:1])


def _accelerated_step(maps: Maps, last: Estimate) -> Estimate:
    # Starts from the best combination of the last start x and of u instead of from u alone: W x is known, so that it
    # costs the two passes of a power iteration and converges about twice as fast.
    u = last.vectors[:1]
    pair = _orthonormal(ops.concatenate([last.start, u]))
    images = ops.concatenate([last.image, maps.times(pair[1:]) / last.length])
    start, images = _ritz(pair, images)
    size = _length(start[:1]) + TINY  # not 1 where x and u agree to the last digits: a settled block
    step = _half_step(maps, u, start[:1] / size, images[:1] / size, last.length)
    return step._replace(vectors=ops.concatenate([step.vectors, last.vectors[1:]]))


def _ritz(vectors: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    # Rotates two orthonormal vectors, and their images, so that the images become orthogonal, the longer one first.
    if vectors.shape[0] == 1:
        return vectors, images
    first, second = images[:1], images[1:]
    angle = 0.5 * ops.arctan2(2 * _dot(first, second), _dot(first, first) - _dot(second, second))
    cos, sin = ops.cos(angle), ops.sin(angle)
    return _rotated(vectors, cos, sin), _rotated(images, cos, sin)


def _rotated(pair: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = pair[:1], pair[1:]
    return ops.concatenate([cos * first + sin * second, cos * second - sin * first])


def _orthonormal(vectors: Tensor) -> Tensor:
    first = vectors[:1] / (_length(vectors[:1]) + TINY)
    if vectors.shape[0] == 1:
        return first
    second = vectors[1:] - _dot(first, vectors[1:]) * first
    return ops.concatenate([first, second / (_length(second) + TINY)])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return ops.sum(x * y, axis=-1, keepdims=True)


def _length(x: Tensor) -> Tensor:
    return ops.sqrt(_dot(x, x))
