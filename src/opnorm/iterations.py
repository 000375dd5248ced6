"""Power iteration on tensors: the spectral norm from below, warm-started from the last update's vector.

A kernel is seen as a matrix of shape `(rows, columns)`, or as the blocks of a block-diagonal one, `(rows, groups,
columns)`. A v = sigma u: `u` lives on the output side (the columns), `v` on the input side. Everything is float32.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from keras import ops

Tensor = Any  # a tensor of whichever backend Keras runs on
TINY = float(np.finfo("float32").tiny)  # the least divisor that is not flushed to zero


class Estimate(NamedTuple):
    """A lower estimate of the spectral norm of each block, and where it comes from; lengths keep their axis."""

    u: Tensor  # unit vectors, (columns,) or (groups, columns): the next start
    sigma: Tensor  # (1,) or (groups, 1)
    rotation: Tensor  # what half a step still added to sigma, relative: 0 when u is a singular vector
    start: Tensor  # the unit vectors x that the half step set out from ...
    image: Tensor  # ... their images W x, scaled to unit length ...
    length: Tensor  # ... and the lengths |W x|


def settled_power_iteration(
    matrix: Tensor, u: Tensor, steps: int, extra_steps: int, tolerance: float, perturbation: float
) -> Estimate:
    """Return the estimate after `steps` power iterations, and up to `extra_steps` more while it still moves.

    It moves while the sigma of some block gains more than `tolerance` in half a step: after a cold start, newly loaded
    weights, a spike. A vector of relative size `perturbation` is mixed into `u` first, so that a `u` orthogonal to the
    leading singular vector escapes; it costs about `perturbation**2` in sigma.
    """
    estimate = power_iteration(matrix, _perturbed(u, perturbation) if perturbation else u)
    for _ in range(steps - 1):
        estimate = power_iteration(matrix, estimate.u)
    if not extra_steps:
        return estimate
    return Estimate(
        *ops.while_loop(
            lambda *state: ops.any(Estimate(*state).rotation > tolerance),
            lambda *state: tuple(_accelerated_step(matrix, Estimate(*state))),
            tuple(estimate),
            maximum_iterations=extra_steps,
        )
    )


def power_iteration(matrix: Tensor, u: Tensor) -> Estimate:
    """Return the estimate one power iteration after `u`: two passes over `matrix`, which is read where it lies."""
    start, _ = _unit(u)  # u is a direction: averaging or summing replicas may have rescaled it
    return _half_step(matrix, start, *_unit(_times(matrix, start)))


def random_direction(shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Return isotropic unit vectors along the last axis, float32, the same on every backend."""
    direction = np.random.default_rng(seed).standard_normal(shape)
    return (direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype("float32")


def _half_step(matrix: Tensor, start: Tensor, image: Tensor, length: Tensor) -> Estimate:
    # With v = W x / |W x|, the norm of z = W^T v is never below v^T W x = |W x|: no third pass to find sigma, and the
    # ratio of the two tells how far the vector still rotates. A zero or not finite block keeps its vector.
    z, sigma = _unit(_times_transposed(matrix, image))
    sound = ops.logical_and(sigma > 0, sigma < float("inf"))  # False for NaN too
    rotation = ops.where(sound, sigma / ops.maximum(length, TINY) - 1, 0.0)
    return Estimate(ops.where(sound, z, start), ops.where(sound, sigma, 0.0), rotation, start, image, length)


def _accelerated_step(matrix: Tensor, last: Estimate) -> Estimate:
    # Starts from the best combination of the last start x and of u (Rayleigh-Ritz on their span) instead of from u:
    # W x is known, so that it costs the two passes of a power iteration and converges about twice as fast.
    across = last.u - _dot(last.start, last.u) * last.start
    across, size = _unit(across)
    image = _times(matrix, last.u) / ops.maximum(last.length, TINY)  # scaled as last.image is
    image = (image - _dot(last.start, last.u) * last.image) / ops.maximum(size, TINY)
    angle = 0.5 * ops.arctan2(2 * _dot(last.image, image), 1 - _dot(image, image))
    start, _ = _unit(ops.cos(angle) * last.start + ops.sin(angle) * across)
    image, length = _unit(ops.cos(angle) * last.image + ops.sin(angle) * image)
    return _half_step(matrix, start, image, length * last.length)


def _times(matrix: Tensor, u: Tensor) -> Tensor:
    return ops.matmul(matrix, u) if len(matrix.shape) == 2 else ops.einsum("rgc,gc->gr", matrix, u)


def _times_transposed(matrix: Tensor, v: Tensor) -> Tensor:
    return ops.matmul(v, matrix) if len(matrix.shape) == 2 else ops.einsum("rgc,gr->gc", matrix, v)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return ops.sum(x * y, axis=-1, keepdims=True)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    # Divided by the largest entry before squaring: neither 1e-30 nor 1e+30 leaves the range of float32.
    largest = ops.max(ops.abs(x), axis=-1, keepdims=True)
    scaled = x / ops.maximum(largest, TINY)
    length = ops.sqrt(_dot(scaled, scaled))
    return scaled / ops.maximum(length, TINY), largest * length


_fixed_direction = lru_cache(maxsize=256)(random_direction)


def _perturbed(u: Tensor, size: float) -> Tensor:
    unit, _ = _unit(u)
    return unit + size * ops.convert_to_tensor(_fixed_direction(tuple(u.shape), (0,)))
