"""Certified radii by balls: a margin is used up shell by shell, in each by what the network's Jacobian can be there.

On the straight way from x to x', within the ball of radius r_k, `f_i - f_j` loses at most `L_ij(r_k)` for each unit.
So a prediction holds as far as the margin is not used up by `sum L_ij(r_k) (r_k - r_(k-1))`: inner shells cost less.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from opnorm.bounds.certificates import UNIT
from opnorm.bounds.deadlines import Deadline
from opnorm.checks import Array
from opnorm.networks.balls.bound import outputs
from opnorm.networks.balls.values import SPARE, rounding
from opnorm.networks.balls.walk import Met, Network
from opnorm.networks.balls.whole import best_norm

_SHELLS = 12
_STEP = 0.2  # of what would be left if slopes stayed as they are
_SMALLER = 8  # tries of a shell, each a quarter of the one before
_ENOUGH = 0.5  # of a shell
_TIGHTENED = 1  # pairs of a shell whose multipliers are sought
_WORTH = 1.02  # of what is known or least: below that nothing is sought
_SECONDS = 0.1  # for the multipliers of a pair


def radii_on_balls(
    network: Network,
    points: Array,
    margins: Array,
    predictions: NDArray[np.int64],
    constants: Array,
    radii: Array,
    deadline: Deadline,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Return radii that are proved, at least those handed over.

    Args:
        network: Whose one output are the logits.
        points: The examples.
        margins: (examples, classes), what the logit of the prediction is at least above each other one.
        predictions: (examples,).
        constants: (classes, classes): proved for all inputs, inf where there is none.
        radii: (examples,), proved; 0 where there is nothing to prove.
        deadline: After it the radii of the examples left stay as they are.
        progress: Called with the number of examples done and of all, after each.
    """
    found = radii.copy()
    for n, point in enumerate(points):
        if deadline.passed:
            break
        chosen = int(predictions[n])
        others = np.arange(margins.shape[1]) != chosen
        if np.isfinite(radii[n]) and np.all(margins[n, others] > 0):
            share = Deadline.after(min(deadline.left / (len(points) - n), 1e6))
            known = float(radii[n])
            found[n] = max(known, _radius(network, point[None], margins[n], chosen, constants[chosen], known, share))
        if progress is not None:
            progress(n + 1, len(points))
    return found


def _radius(
    network: Network, point: Array, margins: Array, chosen: int, everywhere: Array, known: float, deadline: Deadline
) -> float:
    """Return how far the margins of one example last; `known` where there is little to gain."""
    others = np.arange(len(margins)) != chosen
    left, everywhere = margins[others], everywhere[others]
    met = network.meet([point], 0.0)
    slopes = np.minimum(_slopes(network, met, chosen), everywhere)
    reached, flat = 0.0, slopes
    if _least(left, slopes) <= _WORTH * known:  # as far as the slopes at the example would let it
        return known
    for shell in range(_SHELLS):
        ahead = _least(left, slopes)
        if not 0 < ahead < np.inf or deadline.passed:
            break
        target = reached + ahead * (_STEP if shell < _SHELLS - 1 else 1.0)
        inner, best = met, 0.0
        for _ in range(_SMALLER):  # a shell on which the slopes explode may be good for less
            met = network.meet([point], target, inner)
            slopes = np.minimum(_slopes(network, met, chosen), everywhere)
            if shell >= _SHELLS // 2:
                worth = np.where(slopes > _WORTH * flat, left, np.inf)
                slopes = _tightened(network, met, chosen, slopes, worth, min(deadline, Deadline.after(_SECONDS)))
            lasts = min(_least(left, slopes), target - reached)
            best = max(best, lasts)
            if lasts >= _ENOUGH * (target - reached) or deadline.passed:
                break
            target = reached + (target - reached) / 4
        if lasts < target - reached:
            return (reached + best) * (1 - 16 * UNIT)
        left = np.maximum((left - slopes * (target - reached) * SPARE) / SPARE, 0.0)
        reached = target
    return reached * (1 - 16 * UNIT)


def _least(left: Array, slopes: Array) -> float:
    """Return how far the margins last at these slopes, rounded down."""
    with np.errstate(divide="ignore", invalid="ignore"):
        far = np.where(left > 0, left / slopes, 0.0)
    return float(far.min()) / SPARE


def _slopes(network: Network, met: Met, chosen: int) -> Array:
    """Return for each other class a proved constant of the chosen logit less its own, inf where none is known."""
    found = outputs(network, met)
    if found is None:
        return np.full(1, np.inf)
    tangents, rest, whole = found
    others = np.arange(len(rest)) != chosen
    apart, neurons = tangents[:, chosen, None] - tangents[:, others], met.space.open
    sizes = neurons.sizes(tangents)
    lost = np.minimum(rest[chosen] + rest[others], np.sqrt(2) * whole) + rounding(1, sizes[chosen] + sizes[others])
    return np.asarray((np.minimum(neurons.norms(apart), neurons.sizes(apart)) + lost) * SPARE)


def _tightened(network: Network, met: Met, chosen: int, slopes: Array, left: Array, deadline: Deadline) -> Array:
    """Return smaller slopes for the pairs that end the radius."""
    found = outputs(network, met)
    if found is None or not len(met.space.open):
        return slopes
    tangents, rest, whole = found
    others = np.flatnonzero(np.arange(len(rest)) != chosen)
    lasts = left / np.maximum(slopes, 1e-290)
    slopes = slopes.copy()
    for place in np.argsort(lasts)[:_TIGHTENED]:
        if not lasts[place] < np.inf:
            break
        column = tangents[:, [chosen]] - tangents[:, [others[place]]]
        better = best_norm(met.space.open, column, deadline)
        if better is not None:
            sizes = met.space.open.sizes(tangents[:, [chosen, others[place]]])
            lost = min(rest[chosen] + rest[others[place]], np.sqrt(2) * whole) + float(rounding(1, sizes.sum()))
            slopes[place] = min(slopes[place], (better + lost) * SPARE)
    return slopes
