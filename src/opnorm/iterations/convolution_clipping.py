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

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.iterations.clipping import clip
from opnorm.iterations.frequencies import Strides, Survey, phases, places, sliding, survey
from opnorm.iterations.power import Search, settled_power_iteration

_FREQUENCIES = 16  # clipped in a round: more cost more, and few rounds are saved
_ROUNDS = 12  # from 4 times the bound it took 5 to 8, in training 1 or 2
_MARGIN = 0.01  # clipped values lie so far below the bound at least: rounds end, and the next updates need none
_REACH = 4.0  # a norm beyond this times the bound is scaled down to it: float32 would lose what is left of the kernel


class Ball(NamedTuple):
    """The kernels whose convolutions have operator norm at most `max_value`."""

    max_value: float
    strides: Strides
    groups: int
    margin: float  # clipped values lie so far below it, relative


class _Round(NamedTuple):
    kernel: Tensor
    vectors: Tensor
    sigma: Tensor  # (groups,), of the kernel
    number: Tensor


def clip_convolution(kernel: Tensor, vectors: Tensor, ball: Ball, search: Search, climbs: int) -> tuple[Tensor, Tensor]:
    """Return a kernel of the `ball` near `kernel`, and the next vectors; bit for bit `kernel` if that is inside.

    Inside means that `frequencies.survey`, an estimate from below, is at most `ball.max_value`. What the rounds
    leave above it is scaled down. A kernel with an entry that is not finite is left alone.

    Args:
        kernel: `(*spatial, cin / groups, cout)`, float32 or float64.
        vectors: `(1, *start_shape(...))`.
        ball: Where to.
        search: How far to look for the norm, each time it is measured ...
        climbs: ... and how often between the grid's points.
    """
    xp = of(kernel)
    sigma = xp.constant(np.full(ball.groups, np.inf), vectors)
    start = _Round(kernel, vectors, sigma, xp.constant(np.zeros(()), vectors))
    end = xp.repeat_while(
        lambda state: xp.any_of(state.sigma > ball.max_value),
        partial(_next, ball=ball, search=search, climbs=climbs),
        start,
        _ROUNDS + 1,
    )
    return _scaled(end.kernel, end.sigma, ball.max_value), end.vectors


def _next(state: _Round, ball: Ball, search: Search, climbs: int) -> _Round:
    # Measures, and clips unless all is well or this was the last round: one loop, lest XLA compile the survey twice.
    xp = of(state.kernel)
    shape = sliding(xp.cast(state.kernel, xp.dtype(state.vectors)), ball.strides, ball.groups)
    (found,) = survey([shape], partial(settled_power_iteration, search=search), [state.vectors], climbs)
    found = found._replace(sigma=xp.where(xp.all_of(xp.isfinite(state.kernel)), found.sigma, 0.0))
    clips = xp.any_of(found.sigma > ball.max_value) & (state.number < _ROUNDS)
    kernel = xp.cond(clips, lambda: _clipped(state.kernel, found, ball), lambda: state.kernel)
    return _Round(kernel, found.vectors, found.sigma, state.number + 1)


def _scaled(kernel: Tensor, sigma: Tensor, bound: float) -> Tensor:
    xp = of(kernel)
    factor = xp.cast(xp.where(sigma > bound, bound / (sigma + TINY), 1.0), xp.dtype(kernel))
    each = xp.table(factor, np.ones, (1, kernel.shape[-1] // sigma.shape[0]))
    return kernel * xp.reshape(factor[:, None] * each, (-1,))


def _clipped(kernel: Tensor, found: Survey, ball: Ball) -> Tensor:
    xp = of(kernel)
    kernel = _scaled(kernel, found.sigma, _REACH * ball.max_value)
    *spatial, inputs, outputs = xp.shape(kernel)
    split = (-1, inputs, ball.groups, outputs // ball.groups)
    blocks = xp.transpose(xp.reshape(xp.cast(kernel, xp.dtype(found.sigma)), split), (2, 0, 1, 3))
    change = _half_space_step(
        blocks, *_waves(tuple(spatial), found, ball), (1 - max(ball.margin, _MARGIN)) * ball.max_value
    )
    change = xp.where(xp.reshape(found.sigma > ball.max_value, (-1, 1, 1, 1)), change, 0.0)
    change = xp.reshape(xp.transpose(change, (1, 2, 0, 3)), xp.shape(kernel))
    return kernel + xp.cast(change, xp.dtype(kernel))


def _waves(spatial: tuple[int, ...], found: Survey, ball: Ball) -> tuple[Tensor, Tensor]:
    # Cosines and sines, (groups, frequencies, phases, taps), of the frequencies where each group's norm is largest.
    xp = of(found.heights)
    best = xp.top_k(found.heights, min(_FREQUENCIES, int(found.heights.shape[-1])))
    angles = (xp.rows(found.frequencies, best) @ places(spatial, ball.strides, found.heights))[:, :, None]
    shifts = phases(spatial, ball.strides, found.heights)
    return xp.cos(angles) * shifts, xp.sin(angles) * shifts


def _half_space_step(blocks: Tensor, cosine: Tensor, sine: Tensor, goal: float) -> Tensor:
    # Returns t G, (groups, taps, inputs, outputs). A complex matrix A - iB is a real one, [[A, B], [-B, A]].
    xp = of(blocks)
    groups, count, shifts, taps = xp.shape(cosine)
    rows, columns = shifts * blocks.shape[-2], blocks.shape[-1]
    waves = [xp.reshape(wave, (groups, count * shifts, taps)) for wave in (cosine, sine)]
    flat = xp.reshape(blocks, (groups, taps, -1))
    a, b = (xp.reshape(wave @ flat, (groups, count, rows, columns)) for wave in waves)
    symbols = xp.concatenate([xp.concatenate([a, b], axis=-1), xp.concatenate([-b, a], axis=-1)], axis=-2)
    changes = (clip(symbols, goal) - symbols)[..., :rows, :]
    size = xp.largest(abs(changes), (1, 2, 3)) + TINY
    changes, size = changes / size, size[:, 0]  # so that squares stay in range
    halves = changes[..., :columns], changes[..., columns:]
    parts = [xp.reshape(part, (groups, count * shifts, -1)) for part in halves]
    direction = sum(xp.transpose(w, (0, 2, 1)) @ part for w, part in zip(waves, parts, strict=True))
    length = xp.total(changes * changes, (1, 2, 3))[:, 0]
    length = length / (xp.total(direction * direction, (1, 2)) + TINY)
    return xp.reshape(size * length * direction, xp.shape(blocks))
