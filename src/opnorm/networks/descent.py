"""A smooth function made smaller with L-BFGS, where the function may not exist at all points that are tried."""

from collections.abc import Callable

import numpy as np

from opnorm.bounds.deadlines import Deadline
from opnorm.checks import Array

_PAIRS = 20  # of steps and gradients' changes that are remembered
_ARMIJO = 1e-4  # of the fall that a step promises
_HALVES = 20  # of a step that leads too far
_FIRST = 0.3  # the largest entry of the first step
_SETTLED = 1e-6  # a promised fall below which nothing more is to be had

Smooth = Callable[[Array], tuple[float, Array]]  # value and gradient; LinAlgError: there is none


def descended(function: Smooth, start: Array, steps: int, deadline: Deadline) -> Array:
    """Return a point where `function` is smaller than at the start, which is returned where nothing better is found.

    Raises:
        numpy.linalg.LinAlgError: When the function does not exist at the start.

    Reference:
        J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, 2006, algorithm 7.4.
    """
    at = start
    value, gradient = function(at)
    pairs: list[tuple[Array, Array]] = []
    for _ in range(steps):
        direction = -_scaled(gradient, pairs)
        promised = float(-gradient @ direction)
        if deadline.passed or promised < _SETTLED:
            break
        moved = _along(function, at, value, direction, promised, deadline)
        if moved is None:
            if not pairs:
                break
            pairs = []  # steepest descent may still find something
            continue
        new, lower, slope = moved
        if (slope - gradient) @ (new - at) > 0:
            pairs = [*pairs[1 - _PAIRS :], (new - at, slope - gradient)]
        at, value, gradient = new, lower, slope
    return at


def _scaled(gradient: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """Return the approximate inverse of the Hessian times the gradient."""
    if not pairs:
        return gradient * min(1.0, _FIRST / max(float(np.abs(gradient).max(initial=0.0)), 1e-300))
    q, weights = gradient.copy(), []
    for s, y in reversed(pairs):
        weights.append(float(s @ q) / float(s @ y))
        q -= weights[-1] * y
    s, y = pairs[-1]
    q *= float(s @ y) / float(y @ y)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q += (weight - float(y @ q) / float(s @ y)) * s
    return np.asarray(q)


def _along(
    function: Smooth, at: Array, value: float, direction: Array, promised: float, deadline: Deadline
) -> tuple[Array, float, Array] | None:
    """Return a point along a direction, with value and gradient, where the value fell as it should; None: nowhere."""
    length = 1.0
    for _ in range(_HALVES):
        if deadline.passed:
            return None
        new = at + length * direction
        try:
            lower, slope = function(new)
        except np.linalg.LinAlgError:
            lower, slope = np.inf, at
        if lower <= value - _ARMIJO * length * promised:
            return new, lower, slope
        length /= 2
    return None
