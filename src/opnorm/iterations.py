"""Power iteration on tensors: the spectral norm from below, warm-started from the last update's vector.

A kernel is seen as a stack of matrices of shape `(rows, groups, columns)`, the blocks of a block-diagonal operator,
or of shape `(rows, columns)` where there is one block. A v = sigma u: `u` lives on the output side (the columns).
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from keras import ops

Tensor = Any  # a tensor of whichever backend Keras runs on


class Estimate(NamedTuple):
    """A lower estimate of the spectral norm of each block, and the vector that attains it."""

    u: Tensor  # unit vectors, (columns,) or (groups, columns)
    sigma: Tensor  # (1,) or (groups, 1)
    rotation: Tensor  # how much sigma still gained in half a step, relative: 0 when u is a singular vector


def power_iteration(matrix: Tensor, u: Tensor) -> Estimate:
    """Return an estimate at least as large as the one of `u`: one step, two passes over `matrix`.

    No third pass is needed: with a = W u and v = a / |a|, the norm of z = W^T v is never below u^T W^T v = |a|, and
    the ratio of the two tells how far `u` still rotates. A zero or not finite block leaves its `u` as it is.
    """
    a, length = _unit(_times(matrix, u))
    z, sigma = _unit(_times_transposed(matrix, a))
    sound = ops.logical_and(sigma > 0, sigma < float("inf"))  # False for NaN too
    rotation = ops.where(sound, sigma / ops.maximum(length, TINY) - 1, 0.0)
    return Estimate(ops.where(sound, z, u), ops.where(sound, sigma, 0.0), rotation)


def settled_power_iteration(
    matrix: Tensor, u: Tensor, steps: int, extra_steps: int, tolerance: float, perturbation: float
) -> Estimate:
    """Return the estimate after `steps` power iterations, and up to `extra_steps` more while it still moves.

    It moves while some block's sigma gains more than `tolerance` in half a step: after a cold start, newly loaded
    weights, a spike. A vector of relative size `perturbation` is mixed into `u` first, so that a `u` orthogonal to the
    leading singular vector escapes; it costs `perturbation**2` in sigma at most.
    """
    estimate = Estimate(_perturbed(u, perturbation), *_zeros(u))
    for _ in range(steps):
        estimate = power_iteration(matrix, estimate.u)
    if not extra_steps:
        return estimate
    return Estimate(
        *ops.while_loop(
            lambda u, sigma, rotation: ops.any(rotation > tolerance),
            lambda u, sigma, rotation: tuple(power_iteration(matrix, u)),
            tuple(estimate),
            maximum_iterations=extra_steps,
        )
    )


def random_direction(shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Return isotropic unit vectors along the last axis, float32, the same on every backend."""
    direction = np.random.default_rng(seed).standard_normal(shape)
    return (direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype("float32")


TINY = float(np.finfo("float32").tiny)  # the least divisor that is not flushed to zero
_fixed_direction = lru_cache(maxsize=256)(random_direction)


def _times(matrix: Tensor, u: Tensor) -> Tensor:
    if len(matrix.shape) == 2:
        return ops.matmul(matrix, u)
    return ops.einsum("rgc,gc->gr", matrix, u)


def _times_transposed(matrix: Tensor, v: Tensor) -> Tensor:
    if len(matrix.shape) == 2:
        return ops.matmul(v, matrix)  # reads the kernel where it lies: no transposed copy
    return ops.einsum("rgc,gr->gc", matrix, v)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    # Divided by the largest entry before squaring: neither 1e-30 nor 1e+30 leaves the range of float32.
    largest = ops.max(ops.abs(x), axis=-1, keepdims=True)
    scaled = x / ops.maximum(largest, TINY)
    length = ops.sqrt(ops.sum(ops.square(scaled), axis=-1, keepdims=True))
    return scaled / ops.maximum(length, TINY), largest * length


def _perturbed(u: Tensor, size: float) -> Tensor:
    if not size:
        return u
    unit, _ = _unit(u)  # u is a direction: averaging or summing replicas may have rescaled it
    return unit + size * ops.convert_to_tensor(_fixed_direction(tuple(u.shape), (0,)))


def _zeros(u: Tensor) -> tuple[Tensor, Tensor]:
    zero = ops.zeros_like(u[..., :1])
    return zero, zero
