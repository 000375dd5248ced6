"""A convolution brought into the ball of an operator norm by clipping singular values where they are too large.

At a frequency w the kernel K is the matrix M(w) = sum_n exp(-i n.w) K_n (`iterations.frequencies`). Its singular values
could be clipped there, but the result is the symbol of no k x k kernel. So a round clips M(w) at the frequencies where
its norm is largest and takes the changes D(w) as a direction G = sum_w M*(D(w)) in the space of k x k kernels, M* the
adjoint of K -> M(w). The half-space <G, X - K> >= sum |D(w)|^2 contains every kernel X of the ball, and K + t G with
t = sum |D(w)|^2 / |G|^2 is the point of it nearest to K: no round moves away from any kernel of the ball.

Reference:
    Pierra, Decomposition through formalization in a product space, 1984: the length t, many times that of a projection
    followed by truncation.
"""

from functools import partial
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from opnorm.backends.compiled import compiled_once
from opnorm.checks import positive_integers
from opnorm.iterations.clipping import clip
from opnorm.iterations.frequencies import Strides, Survey, survey, taps_of
from opnorm.iterations.power import TINY, Effort, Tensor, settled_power_iteration

_FREQUENCIES = 16  # clipped in a round: more cost more, and few rounds are saved
_ROUNDS = 12  # from 4 times the bound it took 5 to 8, in training 1 or 2
_MARGIN = 0.01  # clipped values lie so far below the bound: the rounds come to an end, and the next updates need none
_PERTURBATION = 1e-3  # of the vectors, as in `SpectralNorm`
_REACH = 4.0  # a norm beyond this times the bound is scaled down to it: float32 would lose what is left of the kernel


class Ball(NamedTuple):
    """The kernels whose convolutions have operator norm at most `max_value`."""

    max_value: float
    strides: Strides
    groups: int


class _Round(NamedTuple):
    kernel: Tensor
    vectors: Tensor
    sigma: Tensor  # (groups,), of the kernel
    number: Tensor


@compiled_once(static_argnums=(2, 3))
def clip_convolution(kernel: Tensor, vectors: Tensor, ball: Ball, effort: Effort) -> tuple[Tensor, Tensor]:
    """Return a kernel of the `ball` near `kernel`, and the next vectors; bit for bit `kernel` if that is inside.

    Inside means that `frequencies.survey`, an estimate from below, is at most `ball.max_value`. What the rounds
    leave above it is scaled down. A kernel with an entry that is not finite is left alone.

    Args:
        kernel: `(*spatial, cin / groups, cout)`, floating point.
        vectors: `(1, *start_shape(...))`, float32.
        ball: Where to.
        effort: How far to look for the norm, each time it is measured.
    """
    dtype = keras.backend.standardize_dtype(kernel.dtype)
    wide = kernel if dtype == "float64" else ops.cast(kernel, "float32")
    start = _Round(wide, vectors, ops.full((ball.groups,), np.inf, dtype="float32"), ops.zeros((), "int32"))
    end = _Round(
        *ops.while_loop(
            lambda *state: _goes_on(_Round(*state), ball),
            lambda *state: tuple(_next(_Round(*state), ball, effort)),
            tuple(start),
        )
    )
    return ops.cast(_scaled(end.kernel, end.sigma, ball.max_value), dtype), end.vectors


def _goes_on(state: _Round, ball: Ball) -> Tensor:
    return ops.logical_and(ops.any(state.sigma > ball.max_value), state.number <= _ROUNDS)


def _next(state: _Round, ball: Ball, effort: Effort) -> _Round:
    # Measures, and clips unless all is well or this was the last round: one loop, lest XLA compile the survey twice.
    search = partial(
        settled_power_iteration,
        steps=1,
        extra_steps=effort.extra_steps,
        tolerance=effort.tolerance,
        perturbation=_PERTURBATION,
    )
    found = survey(ops.cast(state.kernel, "float32"), ball.strides, ball.groups, search, state.vectors, effort.climbs)
    found = found._replace(sigma=ops.where(ops.all(ops.isfinite(state.kernel)), found.sigma, 0.0))
    clips = ops.logical_and(ops.any(found.sigma > ball.max_value), state.number < _ROUNDS)
    kernel = ops.cond(clips, lambda: _clipped(state.kernel, found, ball), lambda: state.kernel)
    return _Round(kernel, found.vectors, found.sigma, state.number + 1)


def _scaled(kernel: Tensor, sigma: Tensor, bound: float) -> Tensor:
    factor = ops.where(sigma > bound, bound / (sigma + TINY), 1.0)
    return kernel * ops.cast(ops.repeat(factor, kernel.shape[-1] // sigma.shape[0]), kernel.dtype)


def _clipped(kernel: Tensor, found: Survey, ball: Ball) -> Tensor:
    kernel = _scaled(kernel, found.sigma, _REACH * ball.max_value)
    spatial, (inputs, outputs) = tuple(kernel.shape[:-2]), kernel.shape[-2:]
    split = (-1, inputs, ball.groups, outputs // ball.groups)
    blocks = ops.transpose(ops.reshape(ops.cast(kernel, "float32"), split), (2, 0, 1, 3))
    change = _half_space_step(blocks, *_waves(spatial, found, ball), (1 - _MARGIN) * ball.max_value)
    change = ops.where(ops.reshape(found.sigma > ball.max_value, (-1, 1, 1, 1)), change, 0.0)
    return kernel + ops.cast(ops.reshape(ops.transpose(change, (1, 2, 0, 3)), kernel.shape), kernel.dtype)


def _waves(spatial: tuple[int, ...], found: Survey, ball: Ball) -> tuple[Tensor, Tensor]:
    # Cosines and sines, (groups, frequencies, phases, taps), of the frequencies where each group's norm is largest.
    taps = taps_of(spatial, positive_integers(ball.strides, len(spatial), "strides"))
    best = ops.top_k(found.heights, min(_FREQUENCIES, found.heights.shape[-1]))[1]
    frequencies = ops.take_along_axis(found.frequencies, best[:, :, None], axis=1)
    angles = ops.matmul(frequencies, ops.convert_to_tensor(taps.places.T))[:, :, None]
    phases = ops.convert_to_tensor(taps.phases)
    return ops.cos(angles) * phases, ops.sin(angles) * phases


def _half_space_step(blocks: Tensor, cosine: Tensor, sine: Tensor, goal: float) -> Tensor:
    # Returns t G, (groups, taps, inputs, outputs). A complex matrix A - iB is a real one, [[A, B], [-B, A]].
    groups, count, phases, taps = cosine.shape
    rows, columns = phases * blocks.shape[-2], blocks.shape[-1]
    waves = [ops.reshape(wave, (groups, count * phases, taps)) for wave in (cosine, sine)]
    flat = ops.reshape(blocks, (groups, taps, -1))
    a, b = (ops.reshape(ops.matmul(wave, flat), (groups, count, rows, columns)) for wave in waves)
    symbols = ops.concatenate([ops.concatenate([a, b], axis=-1), ops.concatenate([-b, a], axis=-1)], axis=-2)
    changes = (clip(symbols, goal) - symbols)[..., :rows, :]
    size = ops.max(ops.abs(changes), axis=(1, 2, 3), keepdims=True) + TINY
    changes, size = changes / size, size[:, 0]  # so that squares stay in range
    parts = [ops.reshape(part, (groups, count * phases, -1)) for part in ops.split(changes, 2, axis=-1)]
    pairs = zip(waves, parts, strict=True)
    direction = sum(ops.matmul(ops.swapaxes(wave, 1, 2), part) for wave, part in pairs)
    length = ops.sum(ops.square(changes), axis=(1, 2, 3))[:, None, None]
    length = length / (ops.sum(ops.square(direction), axis=(1, 2), keepdims=True) + TINY)
    return ops.reshape(size * length * direction, blocks.shape)
