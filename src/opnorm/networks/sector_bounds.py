"""A chain of matrices and activations bounded as a whole, not factor by factor, with a proof by Cholesky.

Let z_i = phi_i(W_i z_(i-1)) be differences, slopes in [a, b], diagonal matrices as T_i >= 0 is. If for each layer

    [ X_(i-1) + 2 W_i^T a b T_i W_i      -W_i^T (a + b) T_i ]
    [ -(a + b) T_i W_i                   2 T_i - X_i        ]      is positive semidefinite, X_0 = I,

then z_i^T X_i z_i <= z_(i-1)^T X_(i-1) z_(i-1); and ||W z||^2 <= L^2 z^T X z if [X, W^T; W, L^2 I] is semidefinite.
Any T will do: first one number a layer, as ECLipsE-Fast chooses it, then what `multipliers` makes of it, which is
LipSDP's optimum for all but long chains. No rounding is left out: whatever numbers T and X are computed, a Cholesky
factorization with Rump's shift proves each matrix.

Reference:
    Y. Xu and S. Sivaranjani, "ECLipsE: Efficient Compositional Lipschitz Constant Estimation", NeurIPS 2024 (Fast).
    M. Fazlyab et al., "Efficient and Accurate Estimation of Lipschitz Constants for Deep Neural Networks", NeurIPS
    2019.
    S. M. Rump, "Verification of positive definiteness", BIT 46 (2006).
"""

from collections.abc import Sequence
from time import monotonic
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack

from opnorm.bounds.certificates import UNIT, gamma, up
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.eigenvectors import top_eigenpair
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array
from opnorm.networks.effects import Slopes
from opnorm.networks.multipliers import Sectors, improved

_NARROW = 1e-3  # of a slope: intervals that are narrower are taken to be that wide
_LARGEST = 6144  # order of a matrix that is factorized: two seconds and 300 MB
_SLACKS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # what is given away to rounding: the first that is proved

_ROOMS = (
    0.0,
    1e-7,
    1e-6,
    1e-5,
    1e-4,
    1e-3,
)  # by which multipliers shrink from layer to layer: the first that is proved


class _NotProvedError(Exception):
    """No factorization ran to completion."""


def bound_chain(matrices: Sequence[Array], slopes: Sequence[Slopes], deadline: Deadline = NEVER) -> float | None:
    """Return a proved Lipschitz constant of `W_n phi(... phi(W_1 x))` (2-norm), None where this method has no proof.

    Args:
        matrices: (outputs, inputs) each, finite float64.
        slopes: Of the activation after each matrix but the last: one interval for all entries, or ends for each.
        deadline: After it the multipliers that were found by then are taken.
    """
    passing, sectors = _passing(matrices, slopes)
    if not all(W.any() for W in passing) or max(sum(W.shape) for W in passing) > _LARGEST:
        return None  # nothing passes, which needs no chain; or too much
    scaled, exponents = zip(*map(_near_one, passing), strict=True)
    found = _both(scaled, sectors, deadline)
    return float(np.ldexp(min(found), sum(exponents))) if found else None


def _passing(matrices: Sequence[Array], slopes: Sequence[Slopes]) -> tuple[list[Array], list[Sectors]]:
    """Return the chain without the neurons that nothing passes, the slopes that are fixed a little wider.

    The multiplier of a sector that is a line has no end, and Newton's method would look for it.
    """
    kept, sectors = list(matrices), []
    for i, ends in enumerate(slopes):
        low, high = (np.broadcast_to(np.asarray(end, dtype=float), len(kept[i])) for end in ends)
        passes = (low != 0) | (high != 0)
        kept[i], kept[i + 1] = kept[i][passes], kept[i + 1][:, passes]
        low, high = low[passes], high[passes]
        wider = np.where(high - low < _NARROW * np.abs(high), _NARROW * np.abs(high), 0.0)
        sectors.append((low - wider, high + wider))
    return kept, sectors


def _both(matrices: Sequence[Array], slopes: Sequence[Sectors], deadline: Deadline) -> list[float]:
    """Return the bounds that are proved, with the quick multipliers and with the best."""
    try:
        begin = monotonic()
        quick = _quick(matrices, slopes)
        found = [_with_room(matrices, slopes, quick)]
        soon = Deadline(deadline.at - 1.5 * (monotonic() - begin))  # another proof takes as long
        with one_blas_thread():  # windows are small, and BLAS's threads would wait for each other
            best = improved(matrices, slopes, quick, soon)
        found.append(_with_room(matrices, slopes, best))
    except np.linalg.LinAlgError:
        return []
    return [bound for bound in found if bound is not None]


def _with_room(matrices: Sequence[Array], slopes: Sequence[Sectors], multipliers: Sequence[Array]) -> float | None:
    """Return a proved bound, None where there is no proof.

    Multipliers that shrink by r with every layer leave X more than r times what the next layer needs: room for slack,
    which in a long chain of the best multipliers is not there by itself.
    """
    for room in _ROOMS:
        try:
            shrunk = [t * (1 + room) ** -(i + 1) for i, t in enumerate(multipliers)]
            return _proved(matrices, slopes, shrunk)
        except (_NotProvedError, np.linalg.LinAlgError):
            continue
    return None


def _near_one(W: Array) -> tuple[Array, int]:
    """Return `W / 2^e`, exact and of a norm near one, so that no number below grows with the layers; and e."""
    scale = int(np.frexp(np.abs(W).max())[1])
    W = np.ldexp(W, -scale)
    more = int(np.frexp(top_eigenpair(W @ W.T if len(W) < W.shape[1] else W.T @ W)[0])[1]) // 2
    return np.ldexp(W, -more), scale + more


def _quick(matrices: Sequence[Array], slopes: Sequence[Sectors]) -> list[Array]:
    """Return for each layer the same multiplier for all entries, chosen as ECLipsE-Fast does it."""
    X, found = np.eye(matrices[0].shape[1]), []
    for W, (low, high) in zip(matrices, slopes, strict=False):
        M = _after(X, np.maximum(np.abs(low + high), high - low)[:, None] * W)  # the second where a < 0 < b
        t = 1 / top_eigenpair(M)[0]
        found.append(np.full(len(W), t))
        X = -(t**2) * M
        X[np.diag_indices_from(X)] += 2 * t
    return found


def _proved(matrices: Sequence[Array], slopes: Sequence[Sectors], multipliers: Sequence[Array]) -> float:
    X = np.eye(matrices[0].shape[1])
    for W, ends, t in zip(matrices, slopes, multipliers, strict=False):
        X = _step(X, W, ends, t)
    return _last(X, matrices[-1])


def _step(X: Array, W: Array, slopes: Sectors, t: Array) -> Array:
    """Return a proved X of the next layer, the Schur complement less what rounding takes."""
    low, high = slopes
    before = _before(X, W, low * high * t)
    sums = (low + high) * t
    edge = -sums[:, None] * W
    M = sums[:, None] * _after(before, W) * sums
    for slack in _SLACKS:
        after = -M
        after[np.diag_indices_from(after)] += 2 * t * (1 - slack)
        corner = -after
        corner[np.diag_indices_from(corner)] += 2 * t
        if is_semidefinite(before, edge, corner):
            return after
    raise _NotProvedError


def _before(X: Array, W: Array, bent: Array) -> Array:
    """Return a matrix below `X + 2 W^T a b T W` in the order of symmetric matrices; `bent` is the diagonal of a b T.

    Each entry is off by at most gamma 2 (|W|^T |a b| T |W|) and a rounding of the sum: Gershgorin's discs of both are
    taken off the diagonal.
    """
    if not bent.any():
        return X
    before = X + (W.T * (2 * bent)) @ W
    size = np.abs(W)
    products = 2 * (size.T @ (np.abs(bent) * size.sum(axis=1)))
    rounding = 2 * gamma(sum(W.shape) + 8) * products + 4 * UNIT * np.abs(before).sum(axis=1)
    before[np.diag_indices_from(before)] -= rounding
    return np.asarray(before)


def _last(X: Array, W: Array) -> float:
    """Return the square root of a proved upper bound of the largest eigenvalue of `W X^-1 W^T`."""
    estimate = top_eigenpair(_after(X, W))[0]
    for slack in _SLACKS:
        square = estimate * (1 + slack)
        if is_semidefinite(X, W, square * np.eye(len(W))):
            return up(float(np.sqrt(square)))
    raise _NotProvedError


def _after(X: Array, W: Array) -> Array:
    """Return `W X^-1 W^T`."""
    return np.asarray(W @ cho_solve(cho_factor(X, lower=True), W.T))


def is_semidefinite(X: Array, B: Array, C: Array) -> bool:
    """Return whether `[X, B^T; B, C]` is proved positive semidefinite; of X and C the lower triangles are read.

    Rows and columns are divided by powers of two, which is exact, so that the diagonal is near one. The shift pays for
    the factorization (as in `certificates.shift`) and for three roundings of each entry.
    """
    n = len(X) + len(C)
    block = np.zeros((n, n), order="F")
    block[: len(X), : len(X)], block[len(X) :, : len(X)], block[len(X) :, len(X) :] = X, B, C
    diagonal = np.diag_indices(n)
    if not (block[diagonal] > 0).all():
        return False
    halves = np.ldexp(1.0, -(np.frexp(block[diagonal])[1] // 2))
    block *= halves
    block *= halves[:, None]
    trace = float(np.sum(np.abs(block[diagonal])))
    entries = float(np.linalg.norm(np.tril(block))) * 2
    block[diagonal] -= up(2 * gamma(n + 3) * trace + 8 * UNIT * trace + 4 * UNIT * entries)
    factorize: Any = lapack.dpotrf
    return bool(factorize(block, lower=1, clean=0, overwrite_a=1)[1] == 0)
