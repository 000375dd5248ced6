"""The norm of `A + P S G` with the best multiplier for each open neuron, proved by one Cholesky factorization.

With xi = (move, v) and the rows of C, Y the tangents of the result and of the neurons, a number s with

    s |move|^2 - |C xi|^2 - sum_u t_u ((Y_u xi)^2 - v_u^2)  >=  0    for all xi, and some t >= 0

is at least the square of that norm, for each neuron has `v_u^2 <= (Y_u xi)^2`. What tangents leave out of a neuron's
row, e_u, counts by `(a + b)^2 <= (1 + theta) a^2 + (1 + 1 / theta) b^2`. The smallest s is found as that of a chain.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from opnorm.bounds.certificates import UNIT, gamma, up
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array
from opnorm.networks.balls.open_neurons import OpenNeurons, flat_of
from opnorm.networks.multipliers import Factors, Window, solved
from opnorm.networks.sector_bounds import is_semidefinite

_LARGEST = 700  # order of the matrix: 20 ms a step of Newton's method
_PROVED = 3000  # of the one that is proved
_SLACKS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
_LEAST = 1e-8  # theta: what is lost where nothing is left out


class _Problem(NamedTuple):
    inputs: int
    C: Array  # (results, tangents)
    Y: Array  # (neurons, tangents)
    groups: list[int]
    bounds: Array
    thetas: Array
    aside: Array  # (1 + 1 / theta) e^2


def best_norm(neurons: OpenNeurons, tangents: Array, deadline: Deadline) -> float | None:
    """Return a proved bound of the norm of `A + P S G`, None where there is no proof, or nothing to gain.

    Args:
        neurons: The open neurons.
        tangents: Of the result, (input + open neurons, entries).
        deadline: After it the multipliers found by then are proved.
    """
    alive = neurons.bounds > 0  # the others do not move
    if not alive.any() or neurons.inputs + alive.sum() > _PROVED or deadline.passed:
        return None
    bounds, rest = neurons.bounds[alive], neurons.rest[alive]
    theta = np.maximum(rest / np.maximum(bounds, 1e-290), _LEAST)
    aside = 1.001 * (1 + 1 / theta) * rest**2
    moving = np.concatenate([np.full(neurons.inputs, True), alive])
    C = neurons.padded(flat_of(tangents)).T[:, moving]
    known = neurons.padded(neurons.tangents).T[alive][:, moving]
    groups = [int(part.sum()) for part in np.split(alive, np.cumsum(neurons.groups)[:-1])]
    problem = _Problem(neurons.inputs, C, known, [count for count in groups if count], bounds, theta, aside)
    try:
        with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):  # what is not finite proves nothing
            return _bounded(problem, deadline)
    except (np.linalg.LinAlgError, ValueError):  # SciPy's for numbers beyond float64
        return None


def _bounded(problem: _Problem, deadline: Deadline) -> float | None:
    quick, s = _quick(problem)
    found = [_proved(problem, quick)]
    if problem.C.shape[1] <= _LARGEST and s > 0:
        found.append(_proved(problem, _improved(problem, s, quick, deadline)))
    return min((bound for bound in found if bound is not None), default=None)


def _quick(problem: _Problem) -> tuple[Array, float]:
    """Return multipliers, for each group the same but for its neurons' sizes, and the s that they suffice for."""
    lost = problem.C.T @ problem.C
    Y = problem.Y * np.sqrt(1 + problem.thetas)[:, None]
    t = np.zeros(len(Y))
    floor = max(1e-12 * float(problem.bounds.max()), 1e-140)  # its square is a number still: neurons may be dead
    end = problem.inputs + len(Y)
    for count in problem.groups[::-1]:
        begin = end - count
        own = slice(begin - problem.inputs, end - problem.inputs)
        sizes = np.maximum(problem.bounds[own], floor)
        corner = lost[begin:end, begin:end]
        largest = float(np.linalg.eigvalsh(corner * sizes * sizes[:, None])[-1])
        t[own] = max(2 * largest, 1e-12 * float(np.trace(lost)) + 1e-290) / sizes**2
        across = lost[begin:end, :begin]
        lost = lost[:begin, :begin] + across.T @ cho_solve(cho_factor(np.diag(t[own]) - corner), across)
        lost += Y[own, :begin].T @ (t[own, None] * Y[own, :begin])
        end = begin
    return t, 1.2 * float(np.linalg.eigvalsh(lost)[-1])


def _improved(problem: _Problem, s: float, t: Array, deadline: Deadline) -> Array:
    """Return better multipliers."""
    d, Y = problem.inputs, problem.Y * np.sqrt(1 + problem.thetas)[:, None]
    both = np.vstack([problem.C[:, :d], Y[:, :d]])
    if len(both) < d:  # the input matters only along these
        both = np.linalg.qr(both.T)[1].T
    size = both.shape[1]
    C = np.hstack([both[: len(problem.C)], problem.C[:, d:]])
    rows = np.hstack([both[len(problem.C) :], Y[:, d:]])
    own = np.vstack([np.zeros((size, len(Y))), np.eye(len(Y))])
    window = Window(s * np.eye(size), (), (), C.T @ C)
    return solved(window, Factors(rows.T - own, rows.T + own), t / 2, deadline)[1] * 2


def _proved(problem: _Problem, t: Array) -> float | None:
    """Return the proved bound that multipliers give."""
    d, C, Y = problem.inputs, problem.C, problem.Y
    weights = t * (1 + problem.thetas)
    lost = C.T @ C + Y.T @ (weights[:, None] * Y)
    sizes = np.abs(C).T @ np.abs(C).sum(axis=1) + np.abs(Y).T @ (weights * np.abs(Y).sum(axis=1))
    shift = 2 * gamma(len(C) + len(Y) + 8) * sizes + 8 * UNIT * (np.abs(lost).sum(axis=1))
    corner = np.diag(t) - lost[d:, d:]
    corner[np.diag_indices_from(corner)] -= shift[d:]
    factor = cho_factor(corner, lower=True)
    first = lost[:d, :d] + lost[:d, d:] @ cho_solve(factor, lost[d:, :d])
    estimate = float(np.linalg.eigvalsh((first + first.T) / 2)[-1]) + float(shift[:d].max())
    for slack in _SLACKS:
        s = estimate * (1 + slack)
        X = s * np.eye(d) - lost[:d, :d]
        X[np.diag_indices_from(X)] -= shift[:d]
        if is_semidefinite(X, -lost[d:, :d], corner):
            return up(float(np.sqrt(s + up(float(np.sum(t * problem.aside))))))
    return None
