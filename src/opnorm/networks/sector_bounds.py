"""A chain of matrices and activations bounded as a whole, not factor by factor, with a proof by Cholesky.

Let z_i = phi_i(W_i z_(i-1)) be differences, all slopes in [a, b] with 0 <= a b, and m = (a + b) / 2. If for each layer

    [ X_(i-1)      m l W_i^T ]
    [ m l W_i      l I - X_i ]      is positive semidefinite, X_0 = I, l > 0,

then z_i^T X_i z_i <= z_(i-1)^T X_(i-1) z_(i-1); and ||W z||^2 <= L^2 z^T X z if [X, W^T; W, L^2 I] is semidefinite. No
rounding is left out: whatever numbers X_i are computed, a Cholesky factorization with Rump's shift proves each matrix.

Reference:
    Y. Xu and S. Sivaranjani, "ECLipsE: Efficient Compositional Lipschitz Constant Estimation", NeurIPS 2024 (Fast).
    S. M. Rump, "Verification of positive definiteness", BIT 46 (2006).
"""

from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack

from opnorm.bounds.certificates import UNIT, gamma, up
from opnorm.bounds.eigenvectors import top_eigenpair
from opnorm.checks import Array

Slopes = tuple[float, float]
_LARGEST = 6144  # order of a matrix that is factorized: two seconds and 300 MB
_SLACKS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # what is given away to rounding: the first that is proved


class _NotProvedError(Exception):
    """No factorization ran to completion."""


def bound_chain(matrices: list[Array], slopes: list[Slopes]) -> float | None:
    """Return a proved Lipschitz constant of `W_n phi(... phi(W_1 x))` (2-norm), None where this method has no proof.

    Args:
        matrices: (outputs, inputs) each, finite float64.
        slopes: Of the activation after each matrix but the last: one interval for all entries.
    """
    mixed = any(low * high < 0 or low == high == 0 for low, high in slopes)
    if mixed or max(sum(W.shape) for W in matrices) > _LARGEST or not all(W.any() for W in matrices):
        return None
    try:
        return _proved_bound(matrices, slopes)
    except _NotProvedError:
        return None


def _proved_bound(matrices: list[Array], slopes: list[Slopes]) -> float:
    X, exponent = np.eye(matrices[0].shape[1]), 0
    for W, (low, high) in zip(matrices[:-1], slopes, strict=True):
        X, shift = _step(X, W, (low + high) / 2)
        exponent += shift
    square, shift = _last(X, matrices[-1])
    return float(np.ldexp(up(float(np.sqrt(square))), exponent + shift))


def _step(X: Array, W: Array, m: float) -> tuple[Array, int]:
    """Return a proved X of the next layer, `l I - l^2 m^2 W X^-1 W^T` less what rounding takes, and an exponent e.

    W is divided by 2^e, which is exact, so that l is near one: else X would grow with every layer.
    """
    W, M, shift = _scaled(X, W, 2 * m**2)
    l = 1 / (2 * m**2 * top_eigenpair(M)[0])  # noqa: E741 - its name in the paper is lambda
    for slack in _SLACKS:
        after = -(l**2) * m**2 * M
        after[np.diag_indices_from(after)] += l * (1 - slack)
        corner = -after
        corner[np.diag_indices_from(corner)] += l
        if _is_semidefinite(X, (m * l) * W, corner):
            return after, shift
    raise _NotProvedError


def _last(X: Array, W: Array) -> tuple[float, int]:
    """Return a proved upper bound of the largest eigenvalue of `W X^-1 W^T`, and an exponent as `_step` does."""
    W, M, shift = _scaled(X, W, 1.0)
    estimate = top_eigenpair(M)[0]
    for slack in _SLACKS:
        square = estimate * (1 + slack)
        if _is_semidefinite(X, W, square * np.eye(len(W))):
            return square, shift
    raise _NotProvedError


def _scaled(X: Array, W: Array, factor: float) -> tuple[Array, Array, int]:
    """Return `W / 2^e`, `M = W X^-1 W^T / 4^e` and e, such that `factor` times the norm of M is near one."""
    exponent = int(np.frexp(np.linalg.norm(W))[1])
    W = np.ldexp(W, -exponent)
    M = _through(X, W)
    half = int(np.frexp(factor * top_eigenpair(M)[0])[1]) // 2
    return np.ldexp(W, -half), np.ldexp(M, -2 * half), exponent + half


def _through(X: Array, W: Array) -> Array:
    return np.asarray(W @ cho_solve(cho_factor(X, lower=True), W.T))


def _is_semidefinite(X: Array, B: Array, C: Array) -> bool:
    """Return whether `[X, B^T; B, C]` is proved positive semidefinite; of X and C the lower triangles are read.

    The shift pays for the factorization (as in `certificates.shift`) and for three roundings of each entry.
    """
    n = len(X) + len(C)
    block = np.zeros((n, n), order="F")
    block[: len(X), : len(X)], block[len(X) :, : len(X)], block[len(X) :, len(X) :] = X, B, C
    diagonal = np.diag_indices(n)
    trace = float(np.sum(np.abs(block[diagonal])))
    entries = float(np.linalg.norm(np.tril(block))) * 2
    block[diagonal] -= up(2 * gamma(n + 3) * trace + 8 * UNIT * trace + 4 * UNIT * entries)
    factorize: Any = lapack.dpotrf
    return bool(factorize(block, lower=1, clean=0, overwrite_a=1)[1] == 0)
