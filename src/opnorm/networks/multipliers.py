"""The multipliers with which a chain of matrices and activations has the smallest bound, by an interior-point method.

A chain z_i = phi_i(W_i z_(i-1)), slopes in [a, b], has (z_i - a W_i z_(i-1))^T T_i (b W_i z_(i-1) - z_i) >= 0 for every
diagonal T_i >= 0; a and b may differ from neuron to neuron. So ||W_n z_(n-1)||^2 <= s ||z_0||^2 where

    P(s, T) = s X_0 - W_n^T W_n - sum_k t_k (l_k r_k^T + r_k l_k^T)

is positive semidefinite over all z together, X_0 = I; l_k and r_k are the rows of the two factors. The smallest such s
is LipSDP's optimum. Newton's method on the barrier s / mu - log det P - sum log t takes two products with sparse
matrices, an inverse and a factorization a step, where a general solver forgets that each t_k stands before a matrix of
rank two.

A long chain is improved window by window: T outside a window stays, and counts through the Schur complements left and
right of it. Nothing is proved here: whatever T comes out, `sector_bounds` proves what follows from it.

Reference:
    M. Fazlyab et al., "Efficient and Accurate Estimation of Lipschitz Constants for Deep Neural Networks", NeurIPS
    2019.
    S. Boyd and L. Vandenberghe, "Convex Optimization", 2004, chapter 11.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.sparse import csr_array, issparse

from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checks import Array

Sectors = tuple[Array, Array]  # the ends of each neuron's slopes
_GAP = 2e-3  # how far s may be above the optimum
_SHRINK = 8.0  # by which mu goes down once Newton's method has settled
_STEPS = 200  # of Newton's method in all
_USUAL = 60  # of them; each takes some three times the cube of P's order in multiplications
_SETTLED = 0.5  # Newton's decrement near the minimum
_ARMIJO = 0.1  # of the fall that a step promises
_HALVES = 40  # of a step that leads too far
_ROOM = 1.2  # times the s of the multipliers to start with: inside the region
_LARGEST = 400  # order of P that one window may have: a step of 10 ms


class Window(NamedTuple):
    """Some layers of a chain, and what stands before and after them."""

    first: Array  # X before them: the identity, or the Schur complement of all that comes before
    matrices: Sequence[Array]
    slopes: Sequence[Sectors]
    last: Array  # what P loses at the end: W_n^T W_n, or the Schur complement of all that comes after


class Factors(NamedTuple):
    """The rows l_k and r_k, as columns."""

    left: Any  # (order of P, multipliers), sparse or not
    right: Any


class _Point(NamedTuple):
    """Numbers s and t at which P is positive definite."""

    s: float
    t: Array
    inverse: Array  # of P
    barrier: float  # -log det P - sum log t


def improved(
    matrices: Sequence[Array], slopes: Sequence[Sectors], multipliers: Sequence[Array], deadline: Deadline = NEVER
) -> list[Array]:
    """Return multipliers, for X_0 = I, with a bound at most that of those handed over, up to rounding.

    Args:
        matrices: (outputs, inputs) each, of a norm near one.
        slopes: [a, b] of each neuron after each matrix but the last, a < b.
        multipliers: The diagonal of each T to start with, as `sector_bounds` scales them.
        deadline: After it what is found so far is returned.
    """
    matrices = [_without_idle_inputs(matrices[0]), *matrices[1:]]
    square = _square(matrices, slopes, multipliers)
    kept = [square * _ROOM * t for t in multipliers]
    after = list(_from_the_right(matrices, slopes, kept))[::-1]
    X, scale = square * _ROOM * np.eye(matrices[0].shape[1]), square * _ROOM
    for begin, end, step in _windows([len(W) for W in matrices[:-1]], matrices[0].shape[1]):
        order = len(X) + sum(map(len, matrices[begin:end]))
        if not deadline.affords(_USUAL * 3.0 * order**3):
            break
        window = Window(X, matrices[begin:end], slopes[begin:end], after[end - 1])
        factor, together = solved(window, _factors(window), np.concatenate(kept[begin:end]), deadline)
        found = np.split(together, np.cumsum([len(W) for W in window.matrices])[:-1])
        kept = [factor * t for t in kept[:begin]] + found + kept[end:]
        X, scale = factor * X, factor * scale
        for W, ends, t in zip(matrices[begin : begin + step], slopes[begin:], kept[begin:], strict=False):
            X = through(X, W, ends, t)
    return [t / scale for t in kept]


def _without_idle_inputs(W: Array) -> Array:
    """Return a matrix with the same `W W^T` and no more inputs than outputs: only that matters at first."""
    return W if W.shape[1] <= len(W) else np.linalg.qr(W.T)[1].T


def through(X: Array, W: Array, slopes: Sectors, t: Array) -> Array:
    """Return the Schur complement after a layer, `2 T - S W (X + 2 a b W^T T W)^-1 W^T S`, with S = (a + b) T."""
    low, high = slopes
    bent = 2 * low * high * t
    before = X + ((W.T * bent) @ W if bent.any() else 0.0)
    M = W @ cho_solve(cho_factor(before, lower=True), W.T)
    sums = (low + high) * t
    return np.asarray(np.diag(2 * t) - sums[:, None] * ((M + M.T) / 2) * sums)


def _square(matrices: Sequence[Array], slopes: Sequence[Sectors], multipliers: Sequence[Array]) -> float:
    """Return the smallest s for given multipliers."""
    X = np.eye(matrices[0].shape[1])
    for W, ends, t in zip(matrices, slopes, multipliers, strict=False):
        X = through(X, W, ends, t)
    M = matrices[-1] @ cho_solve(cho_factor(X, lower=True), matrices[-1].T)
    return float(np.linalg.eigvalsh((M + M.T) / 2)[-1])


def _from_the_right(
    matrices: Sequence[Array], slopes: Sequence[Sectors], multipliers: Sequence[Array]
) -> Iterator[Array]:
    """Yield what P loses after each layer, the last one first: the Schur complement of what comes after it."""
    lost = matrices[-1].T @ matrices[-1]
    yield lost
    for W, (low, high), t in zip(matrices[-2:0:-1], slopes[:0:-1], multipliers[:0:-1], strict=True):
        edge = ((low + high) * t)[:, None] * W
        rest = cho_factor(np.diag(2 * t) - lost, lower=True)
        lost = edge.T @ cho_solve(rest, edge) - (W.T * (2 * low * high * t)) @ W
        yield lost


def _windows(widths: Sequence[int], inputs: int) -> Iterator[tuple[int, int, int]]:
    """Yield first layer, end, and by how much to move on: windows overlap by half."""
    begin = 0
    while True:
        end, order = begin + 1, (widths[begin - 1] if begin else inputs) + widths[begin]
        while end < len(widths) and order + widths[end] <= _LARGEST:
            order, end = order + widths[end], end + 1
        step = max(1, (end - begin) // 2)
        yield begin, end, step
        if end == len(widths):
            return
        begin += step


def _factors(window: Window) -> Factors:
    """Return l_k and r_k of all layers, over the inputs and every layer's outputs."""
    order = len(window.first) + sum(map(len, window.matrices))
    left, right = (np.zeros((order, order - len(window.first))) for _ in range(2))
    row = column = 0
    for W, (low, high) in zip(window.matrices, window.slopes, strict=True):
        outputs, inputs = W.shape
        here, there = slice(row, row + inputs), slice(column, column + outputs)
        left[here, there], right[here, there] = -low * W.T, high * W.T
        row, column = row + inputs, column + outputs
        diagonal = range(row, row + outputs), range(there.start, there.stop)
        left[diagonal], right[diagonal] = 1.0, -1.0
    return Factors(csr_array(left), csr_array(right))


def solved(window: Window, factors: Factors, multipliers: Array, deadline: Deadline) -> tuple[float, Array]:
    """Return the factor of `window.first` that suffices, and the multipliers with which it does.

    Args:
        window: Of it only what stands at its ends; what stands between is told by the factors.
        factors: Of all multipliers.
        multipliers: To start with, at a factor of 1.
        deadline: After it what is found so far is returned.
    """
    at = _at(window, factors, 1.0, multipliers)
    room = sum(factors.left.shape)
    best, mu = at, 1.0 / room
    for _ in range(_STEPS):
        if deadline.passed or at is None:
            break
        try:
            step, decrement = _newton(window.first, factors, at, mu)
        except np.linalg.LinAlgError:  # as far as float64 reaches
            break
        at = _moved(window, factors, at, step, decrement, mu)
        best = at if best is None or (at is not None and at.s < best.s) else best
        if decrement < _SETTLED and at is not None:
            if mu * room < _GAP * at.s:
                break
            mu /= _SHRINK
    return (1.0, multipliers) if best is None else (best.s, best.t)


def _matrix(window: Window, factors: Factors, s: float, t: Array) -> Array:
    """Return P."""
    half = (factors.left * t) @ factors.right.T
    plain: Any = half.toarray() if issparse(half) else half  # type: ignore[attr-defined]
    P = -np.asarray(plain + plain.T)
    size, end = len(window.first), len(window.last)
    P[:size, :size] += s * window.first
    P[-end:, -end:] -= window.last
    return P


def _at(window: Window, factors: Factors, s: float, t: Array) -> _Point | None:
    """Return the point with these numbers, None where P is not positive definite."""
    if not (s > 0 and (t > 0).all()):
        return None
    factorize: Any = lapack.dpotrf
    invert: Any = lapack.dpotri
    factor, failed = factorize(_matrix(window, factors, s, t), lower=1)
    if failed:
        return None
    barrier = -2 * float(np.sum(np.log(np.diag(factor)))) - float(np.sum(np.log(t)))
    lower = np.tril(invert(factor, lower=1)[0])
    return _Point(s, t, np.asarray(lower + np.tril(lower, -1).T), barrier)


def _newton(first: Array, factors: Factors, at: _Point, mu: float) -> tuple[Array, float]:
    """Return Newton's step of (s, t), and its decrement, which tells how far away the minimum is."""
    n = len(first)
    left, right = at.inverse @ factors.left, at.inverse @ factors.right
    both, lefts, rights = factors.left.T @ right, factors.left.T @ left, factors.right.T @ right
    corner = at.inverse[:n, :n] @ first
    units = np.concatenate([[at.s], at.t])  # the numbers span many orders of magnitude
    gradient = np.concatenate([[1 / mu - np.trace(corner)], 2 * np.diag(both) - 1 / at.t]) * units
    hessian = np.empty((len(gradient), len(gradient)))
    hessian[0, 0] = np.sum(corner * corner.T)
    hessian[0, 1:] = hessian[1:, 0] = -2 * np.sum(left[:n] * (first @ right[:n]), axis=0)
    hessian[1:, 1:] = 2 * (both * both.T + lefts * rights)
    hessian *= units * units[:, None]
    hessian[np.diag_indices_from(hessian)] += np.concatenate([[0.0], np.ones(len(at.t))])
    step = -cho_solve(cho_factor(hessian), gradient)
    return units * step, float(-gradient @ step)


def _moved(window: Window, factors: Factors, at: _Point, step: Array, decrement: float, mu: float) -> _Point | None:
    """Return a point along the step where the barrier's value is lower as it should be; None: nowhere."""
    length = 1.0
    for _ in range(_HALVES):
        new = _at(window, factors, at.s + length * step[0], at.t + length * step[1:])
        fall = (at.s - new.s) / mu + at.barrier - new.barrier if new is not None else -np.inf
        if fall >= _ARMIJO * length * decrement:
            return new
        length /= 2
    return None
