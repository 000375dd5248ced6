"""The recursion of `covariances` in floating point with a proof: every Y is above the true one, all rounding counted.

Of a matrix E with `|E_ij| <= e b_i b_j` it is known that `E <= n e diag(b^2)` (Cauchy), and of a semidefinite Y that
`|Y_ij| <= y_i y_j`, y the roots of its diagonal. What a product `A Y A*` was rounded by is paid on its diagonal, with
b = |A| y. The inverse of S needs no proof of its own: whatever V is, `V S V* >= (1 - delta) I` with delta < 1 gives
`S^-1 <= V* V / (1 - delta)`, and delta is bounded by the row sums of `V S V* - I` and of its rounding.
"""

from collections.abc import Sequence

import numpy as np

from opnorm.bounds.certificates import UNIT, gamma, up
from opnorm.checks import Array
from opnorm.networks.covariances import (
    Bend,
    Cap,
    Linear,
    Program,
    Stack,
    Step,
    adjoint,
    joined,
    mapped,
    paired,
    slack,
    taken,
)

_SPREAD = 1e-12  # the share theta of (A + B)(A + B)* <= (1 + theta) A A* + (1 + 1 / theta) B B*
_SLACKS = (1e-10, 1e-8, 1e-6, 1e-4)  # of the largest eigenvalue, which is only estimated: the first that is proved
_SMALL, _GREAT = 1e-100, 1e100  # between them no product of three underflows or overflows so that it matters
_FEW = 64  # covers the roundings of scalars in each bound of an error


class NotProvedError(Exception):
    """A matrix is not proved positive definite."""


def proved_norm(program: Program, multipliers: Sequence[Array]) -> float:
    """Return a proved upper bound of the network's Lipschitz constant.

    Raises:
        NotProvedError: When the multipliers are too large, or rounding is.
    """
    Y = program.start
    with np.errstate(all="ignore"):  # whatever is not finite is not proved
        for step, t in paired(program, multipliers):
            Y = _after(step, Y, t)
        return up(float(np.sqrt(_largest(Y))))


def _after(step: Step, Y: Stack, t: Array) -> Stack:
    if isinstance(step, Linear):
        return _mapped(step, Y)
    return _bent(step, Y, t) if isinstance(step, Bend) else _capped(step, Y, t)


def _capped(step: Cap, Y: Stack, t: Array) -> Stack:
    """Return a diagonal matrix above `square` Y: that `d - Y` is semidefinite is proved for scaled rows and columns."""
    _require_normal(np.sqrt(t))
    halves = np.ldexp(1.0, np.frexp(t)[1] // 2)  # powers of two: exact
    kappa = _largest(halves[:, None] * Y * halves, t / halves**2)
    D = np.diag(step.square * kappa / t * (1 + 8 * UNIT))
    return np.broadcast_to(D, (len(Y) // step.fold, *D.shape))


def _roots(Y: Stack) -> Array:
    """Return the root of each diagonal entry, rounded upwards: (frequencies, n)."""
    return np.asarray(np.sqrt(np.einsum("fii->fi", Y).real) * (1 + 4 * UNIT))


def _raised(Y: Stack, extra: Array) -> Stack:
    """Return a matrix above `Y + diag(extra)`."""
    n = np.arange(Y.shape[-1])
    more = extra * (1 + _FEW * UNIT) + 2 * len(n) * UNIT * np.abs(Y[:, n, n])
    Y[:, n, n] += more
    return Y


def _require_normal(numbers: Array) -> None:
    """Raise where underflow could hide what is there: rounding is counted in parts of numbers."""
    if not ((numbers > _SMALL) & (numbers < _GREAT)).all():
        raise NotProvedError


def _rounding(terms: int) -> float:
    """Return what a product of two matrices is off by, in parts of the products of magnitudes; complex ones as well."""
    return gamma(4 * terms + _FEW)


def _mapped(step: Linear, Y: Stack) -> Stack:
    found, y = mapped(step, Y), _roots(Y)
    images = y[:, step.read] @ step.size.T * (1 + _rounding(len(step.read)))
    _require_normal(images[:, step.size.any(axis=1)])
    relative = 2 * _rounding(len(step.read) + step.fold) + 3 * step.error
    if step.fold > 1:
        images = np.sqrt((images**2).reshape(-1, step.fold, images.shape[-1]).sum(axis=1)) * (1 + gamma(step.fold + 8))
    rows = np.concatenate([y[: len(images), step.keep], np.broadcast_to(images, (len(found), images.shape[1]))], axis=1)
    return _raised(found, found.shape[-1] * relative * rows**2)


def _bent(step: Bend, Y: Stack, t: Array) -> Stack:
    _require_normal(np.sqrt(t))
    y = _roots(Y)
    count, d = len(t), t * y[:, step.bent]
    S = slack(taken(Y, step.bent, step.bent), t)
    diagonal = np.arange(count)
    S[:, diagonal, diagonal] -= 8 * UNIT * (count * d**2 + 2 * t)
    R = _above_inverse(S)
    r = _roots(R)
    K = taken(Y, step.keep, step.bent) * t
    KR = K @ R
    found = joined(taken(Y, step.keep, step.keep) + KR @ adjoint(K), adjoint(KR), R)
    found = (found + adjoint(found)) / 2 * (1 + 2 * _SPREAD)  # the whole of Y' is above the part that K is in
    rows = np.concatenate([np.einsum("fij,fj->fi", np.abs(K), r) * (1 + gamma(count + 8)), r], axis=1)
    wrong = UNIT * (d * r).sum(axis=1, keepdims=True) * (1 + gamma(count + 8))
    of_K = np.concatenate([y[:, step.keep] * wrong, np.zeros_like(r)], axis=1) ** 2 * (2 / _SPREAD)
    return _raised(found, found.shape[-1] * (2 * _rounding(2 * count) * rows**2 + of_K))


def _above_inverse(S: Stack) -> Stack:
    """Return R >= S^-1, which also proves S positive definite; S is Hermitian to the last bit."""
    try:
        V = np.linalg.inv(np.linalg.cholesky(S))
    except np.linalg.LinAlgError:
        raise NotProvedError from None
    count = S.shape[-1]
    residual = V @ S @ adjoint(V)
    diagonal = np.arange(count)
    residual[:, diagonal, diagonal] -= 1
    size = np.abs(V)
    products = np.einsum("fij,fj->fi", size, np.einsum("fij,fj->fi", np.abs(S), size.sum(axis=1)))
    delta = (np.abs(residual).sum(axis=-1) + 4 * _rounding(2 * count) * (products + 1)).max(axis=-1)
    if not (delta < 0.25).all():
        raise NotProvedError
    R = adjoint(V) @ V
    R = (R + adjoint(R)) / 2 * ((1 + 8 * UNIT) / (1 - delta))[:, None, None]
    return _raised(R, count * 2 * _rounding(count) * np.einsum("fii->fi", R).real)


def _largest(Y: Stack, t: Array | None = None) -> float:
    """Return a proved kappa with `kappa diag(1 / t)` above Y at all frequencies; without t that of the identity."""
    t = np.ones(Y.shape[-1]) if t is None else t
    roots, diagonal = np.sqrt(t), np.arange(Y.shape[-1])
    try:
        estimate = float(np.linalg.eigvalsh(roots[:, None] * Y * roots).max())
    except np.linalg.LinAlgError:
        raise NotProvedError from None
    for share in _SLACKS:
        kappa = estimate * (1 + share)
        S = -Y
        S[:, diagonal, diagonal] += kappa / t * (1 - 8 * UNIT)
        try:
            _above_inverse(S)
        except NotProvedError:
            continue
        return kappa
    raise NotProvedError
