"""Singular values clipped, or all set to one, by matrix products: the same on every backend and device.

With W = U S V^T in units of the target, the clipped matrix is W f(W^T W), f(x) = max(1, x)^(-1/2). Two iterations
make f: the sign of W^T W - I, and the inverse square root of a matrix >= I. From below, with the polar factor
Q = U V^T and W = Q H, singular values under a bound a rise to it by Q (a I - H)+, whose positive part takes a sign too.
Each step is the best cubic for the interval that the eigenvalues are left in. Eigenvectors are used only where LAPACK
finds them, on the CPU: XLA's own are slow.

Reference:
    Higham, Functions of Matrices, 2008, chapters 5, 6 and 8.
    Chen and Chow, A stable scaling of Newton-Schulz for improving the sign function computation of a Hermitian matrix,
    2014: the cubics.
"""

from collections.abc import Callable, Iterator
from math import sqrt
from typing import NamedTuple

import numpy as np

from opnorm.backends import TINY, Tensor, of

_SQUARINGS = 4  # of the Gram matrix: the bound exceeds the norm by the factor r^(1/64) at most, 1.1 for r = 512
_REACH = 4.0  # a pass lowers the norm by this at most: rounding in the Gram matrix is relative to its square
_MARGIN = 1.01  # of intervals, for rounding: an eigenvalue outside would be thrown far off by the cubics
_NEAR = 1e-5  # relative gap of two singular values below which their difference is rounding
_PASSES = 128  # of `_REACH` each: float32 and float64 end long before


class _Precision(NamedTuple):
    resolution: float  # signs of eigenvalues nearer to 0 than this, relative, are wrong: an error of 4 times it in f
    rank: float  # singular values below this, relative to the largest, are not quite brought up to 1: mostly rounding
    rest: float  # the iterations end this close to their limit
    excess: float  # of squared singular values over the target, in Frobenius norm: left alone, most likely rounding


class Parts(NamedTuple):
    """How processes that hold a matrix's rows, of its longer side, make one number or matrix of what each finds."""

    summed: Callable[[Tensor], Tensor]  # the sum over the parts, the same everywhere
    largest: Callable[[Tensor], Tensor]  # the largest, likewise


class _Pass(NamedTuple):
    matrix: Tensor
    level: Tensor  # an upper bound of its norm


_PRECISION = {"float32": _Precision(1e-5, 5e-4, 1e-7, 2e-4), "float64": _Precision(1e-11, 1e-8, 1e-13, 1e-9)}


def clip(matrix: Tensor, target: float | Tensor, parts: Parts | None = None) -> Tensor:
    """Return the matrices nearest to `matrix`, `(..., m, n)`, in Frobenius norm with spectral norms at most `target`.

    The relative error is 1e-4 at most in float32. A matrix whose norm is below `target`, by more than rounding, is
    returned bit for bit; so is everything if one entry is not finite. With `parts`, `matrix` is what one process holds.
    """
    xp = of(matrix)
    lapack = xp.has_lapack(matrix)  # eigenvectors are 3 to 5 times faster there than products, and tell the norm too
    bound = _peak(matrix, parts) + float("inf") if lapack else norm_bound(matrix, parts)
    level = xp.where(_is_finite(matrix, parts), bound, 0.0)
    goal = _goal(target, matrix)  # rounded as `level` is, so that they become equal
    return xp.repeat_while(
        lambda state: xp.any_of(state.level > goal),
        lambda state: _lowered_by_eigenvectors(state, goal, parts) if lapack else _lowered(state, goal, parts),
        _Pass(matrix, level),
        _PASSES,
    ).matrix


def clip_between(matrix: Tensor, target: float | Tensor, least: float) -> Tensor:
    """Return `clip(matrix, target)` with singular values below `least`, which is at most `target`, raised to it.

    So are those above a thousandth of the largest (float64: 1e-7), within 1e-3. Zero has no direction to rise in and
    stays zero, and those in between end between 0 and `least`. A matrix without singular values outside
    `[least, target]`, but for rounding, is returned bit for bit; so is everything if one entry is not finite.
    """
    xp = of(matrix)
    clipped, finite = clip(matrix, target), xp.all_of(xp.isfinite(matrix))
    sound = xp.where(finite, clipped, 0.0)
    polar = orthogonalize(sound)
    few = clip(sound, 2 * least)  # the same directions; what is far above `least` would cost the sign its resolution
    hermitian = (_transposed(polar) @ few if _is_tall(matrix) else few @ _transposed(polar)) / least
    hermitian = 0.5 * (hermitian + _transposed(hermitian))
    missing = _positive_part(_eye_like(hermitian) - hermitian, 1.0)
    raised = sound + least * (polar @ missing if _is_tall(matrix) else missing @ polar)
    return xp.where(finite & (_frobenius(missing) > _precision(matrix).excess), raised, clipped)


def clip_gradient(matrix: Tensor, target: float, cotangent: Tensor, least: float = 0.0) -> Tensor:
    """Return the gradient by `matrix`, `(m, n)`, of the inner product of `clip_between` with `cotangent`.

    With `least` 0 it is that of `clip`. In a null direction, which has no derivative, it is the cotangent's own part.

    Reference:
        Daleckii and Krein; Lewis and Sendov, Nonsmooth analysis of singular values, 2005.
    """
    if not _is_tall(matrix):
        return _transposed(clip_gradient(_transposed(matrix), target, _transposed(cotangent), least))
    xp = of(matrix)
    u, s, v = xp.svd(matrix)
    g, r = _at_least(least, xp.where(s > target, target, s)), s[None, :]
    kept = xp.cast((s <= target) & (s >= least), xp.dtype(s)) + 0 * r
    pairs = _transposed(u) @ cotangent @ v
    even, odd = 0.5 * (pairs + _transposed(pairs)), 0.5 * (pairs - _transposed(pairs))
    gaps, sums = s[:, None] - r, s[:, None] + r
    slopes = xp.where(abs(gaps) > _NEAR * sums, (g[:, None] - g[None, :]) / xp.where(abs(gaps) > 0, gaps, 1.0), kept)
    ratios = xp.where(sums > 0, (g[:, None] + g[None, :]) / (sums + TINY), 1.0)
    single = xp.where(r > 0, g[None, :] / (r + TINY), 1.0)
    rest = (cotangent - u @ (_transposed(u) @ cotangent)) @ v * single
    return (u @ (slopes * even + ratios * odd) + rest) @ _transposed(v)


def orthogonalize(matrix: Tensor, parts: Parts | None = None) -> Tensor:
    """Return U V^T, the (semi-)orthogonal matrices nearest to `matrix`, `(..., m, n)`, by Newton-Schulz iteration.

    Singular values above a thousandth of the largest (float64: 1e-7) become 1 within 1e-4; zero stays zero, and those
    in between end between 0 and 1. Everything is returned as it is if one entry is not finite. With `parts`, `matrix`
    is what one process holds.
    """
    x = matrix if _is_tall(matrix, parts) else _transposed(matrix)
    x = x / _at_least(TINY, _MARGIN * norm_bound(x, parts))
    x = _iterated(_precision(x).rank, lambda alpha, x: _cubic(alpha, x, x @ _gram(x, parts)), x)
    return of(x).where(_is_finite(matrix, parts), x if _is_tall(matrix, parts) else _transposed(x), matrix)


def norm_bound(matrix: Tensor, parts: Parts | None = None) -> Tensor:
    """Return upper bounds, up to rounding, of the spectral norms of `(..., m, n)`: `(..., 1, 1)`, zero for zero.

    They are Schatten norms of order 64, above the truth by the factor r^(1/64) at most, r the shorter side.
    """
    xp = of(matrix)
    largest = _peak(matrix, parts)
    bound = _at_least(TINY, largest)  # every factor is taken out before a square: 1e-30 and 1e+30 stay in range
    power, root = _gram(matrix / bound, parts), 0.5
    for last in [False] * _SQUARINGS + [True]:
        size = _at_least(TINY, _frobenius(power))
        bound, root = bound * size**root, root / 2
        if not last:
            power = (power / size) @ (power / size)
    return xp.where(largest > 0, bound, 0.0)


def _goal(target: float | Tensor, matrix: Tensor) -> Tensor:
    xp = of(matrix)
    return xp.cast(target, xp.dtype(matrix)) if hasattr(target, "dtype") else xp.constant(np.asarray(target), matrix)


def _lowered(state: _Pass, target: Tensor, parts: Parts | None) -> _Pass:
    # One pass, and the bound after it. Of several matrices, one that is inside the ball is left as it is.
    matrix, level = state
    goal = _at_least(target, level / _REACH)
    gram = _gram(matrix / goal, parts)
    excess = _positive_part(gram - _eye_like(gram))
    return _Pass(_multiplied(matrix, _inverse_root(excess), excess, parts), goal)


def _lowered_by_eigenvectors(state: _Pass, target: Tensor, parts: Parts | None) -> _Pass:
    xp, matrix = of(state.matrix), state.matrix
    size = _at_least(TINY, _peak(matrix, parts))
    values, vectors = xp.eigh(_gram(matrix / size, parts))
    goal = _at_least(target, size * xp.sqrt(_at_least(0.0, values[..., -1:, None])) / _REACH)
    excess = _at_least(0.0, values[..., None, :] * (size / goal) ** 2 - 1)
    changed = (vectors * (1 / xp.sqrt(1 + excess) - 1)) @ _transposed(vectors)  # nothing where nothing is
    return _Pass(_multiplied(matrix, _eye_like(changed) + changed, excess, parts), goal)


def _multiplied(matrix: Tensor, factor: Tensor, excess: Tensor, parts: Parts | None) -> Tensor:
    # Of several matrices, one that is inside the ball is left as it is.
    clipped = matrix @ factor if _is_tall(matrix, parts) else factor @ matrix
    return of(matrix).where(_frobenius(excess) > _precision(matrix).excess, clipped, matrix)


def _positive_part(matrix: Tensor, largest: float = _REACH**2) -> Tensor:
    # (D + |D|) / 2, |D| = D sign(D), of a symmetric matrix D with eigenvalues from -1 to `largest`.
    sign = matrix / (_MARGIN * largest)
    sign = _iterated(_precision(matrix).resolution, lambda alpha, x: _cubic(alpha, x, x @ (x @ x)), sign)
    return 0.5 * (matrix + matrix @ sign)


def _inverse_root(excess: Tensor) -> Tensor:
    # (I + excess)^(-1/2), by the coupled iteration y -> (I + excess)^(1/2), z -> its inverse.
    eye, least = _eye_like(excess) + 0 * excess, 1 / (_MARGIN * _REACH**2)

    def step(alpha: Tensor, pair: Tensor) -> Tensor:
        y, z = pair
        factor = _cubic(alpha, eye, z @ y)
        return y @ factor, factor @ z

    return sqrt(least) * _iterated(sqrt(least), step, (least * (eye + excess), eye))[1]


def _iterated(least: float, step: Callable[[Tensor, Tensor], Tensor], start: Tensor) -> Tensor:
    # A loop of the backend's: written out, every kernel of a model would take XLA seconds to compile.
    first = start[0] if isinstance(start, tuple) else start
    return of(first).repeat(list(_cubics(least, _precision(first).rest)), step, start)


def _cubics(least: float, rest: float) -> Iterator[float]:
    # Yields the alphas whose cubics take [least, 1] to ever narrower intervals [least', 1], until only `rest` is left.
    while least < 1 - rest:
        alpha = sqrt(3 / (1 + least + least**2))
        yield alpha
        least = _cubic(alpha, least, least**3)


def _cubic(alpha: Tensor | float, x: Tensor, cube: Tensor) -> Tensor:
    return (1.5 * alpha) * x - (0.5 * alpha**3) * cube


def _gram(matrix: Tensor, parts: Parts | None) -> Tensor:
    other = _transposed(matrix)
    gram = other @ matrix if _is_tall(matrix, parts) else matrix @ other
    return parts.summed(gram) if parts else gram


def _peak(matrix: Tensor, parts: Parts | None) -> Tensor:
    largest = of(matrix).largest(abs(matrix), (-2, -1))
    return parts.largest(largest) if parts else largest


def _is_finite(matrix: Tensor, parts: Parts | None) -> Tensor:
    xp = of(matrix)
    finite = xp.all_of(xp.isfinite(matrix))
    return parts.largest(xp.where(finite, 0.0, 1.0)) == 0 if parts else finite


def _is_tall(matrix: Tensor, parts: Parts | None = None) -> bool:
    return parts is not None or bool(matrix.shape[-2] >= matrix.shape[-1])


def _transposed(matrix: Tensor) -> Tensor:
    axes = list(range(len(matrix.shape)))
    return of(matrix).transpose(matrix, [*axes[:-2], axes[-1], axes[-2]])


def _frobenius(matrix: Tensor) -> Tensor:
    xp = of(matrix)
    return xp.sqrt(xp.total(matrix * matrix, (-2, -1)))


def _at_least(least: Tensor | float, x: Tensor) -> Tensor:
    return of(x).where(x > least, x, least)


def _eye_like(matrix: Tensor) -> Tensor:
    return of(matrix).table(matrix, np.eye, int(matrix.shape[-1]))


def _precision(matrix: Tensor) -> _Precision:
    return _PRECISION[of(matrix).dtype(matrix)]
