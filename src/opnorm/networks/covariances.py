"""What reaches a cut of a network, as a matrix: the recursion of LipSDP in covariance form, with its gradient.

Let d be the change of all tensors that are still needed, as one vector, when the input changes by x. A positive
definite Y with `d* Y^-1 d <= ||x||^2` goes through a network like a Kalman filter's covariance, Y = I at the input:

* a linear map, A d: `A Y A*`. Sums, concatenations, slices and forgotten tensors are such maps;
* u = phi(h), slopes in [0, 1], for any diagonal T > 0: as `2 (h - u)* T u >= 0`, the inverse for (d, u) may lose the
  matrix of that form. With `S = 2 T - T Y_hh T` positive definite and `K = Y_dh T`,

      Y' = [Y, 0; 0, 0] + [K; 1] S^-1 [K; 1]*.

* z with `||z_c||^2 <= v ||h_c||^2` for each channel c, as behind max pooling: any diagonal D above `v Y_hh`.

At the end `||y||^2 <= lambda_max(Y) ||x||^2`, whose minimum over all T is LipSDP's optimum for the whole graph; its
reciprocal is concave in T, so that whatever descends ends there. Every matrix may be a stack of them, one a frequency
(`torus`), that share their T. A larger Y stays larger through every step, which is what `covariance_proofs` builds on.

Reference:
    M. Fazlyab et al., "Efficient and Accurate Estimation of Lipschitz Constants for Deep Neural Networks", NeurIPS
    2019.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opnorm.checks import Array

Stack = NDArray[Any]  # (frequencies, n, n), real or complex
Channels = NDArray[np.intp]  # numbers of rows of Y


class Linear(NamedTuple):
    """Some rows stay, then come those of a matrix times some rows."""

    keep: Channels
    read: Channels
    matrix: Stack  # (frequencies or 1, new, read)
    size: Array  # (new, read): at least the magnitudes of the matrix at every frequency
    error: float  # how far the matrix may be from the true one, entry by entry, in parts of `size`
    fold: int = 1  # so many neighbouring frequencies are added up: then nothing is kept
    real: bool = False  # of the sum the real part is taken


class Bend(NamedTuple):
    """Some rows stay, then comes a function of some rows, entry by entry, with slopes in [0, 1]."""

    keep: Channels
    bent: Channels


class Cap(NamedTuple):
    """All rows go, and as many come that are no longer than the root of `square` times those, row by row.

    The multipliers say only in which proportion: `D = square kappa / t`, kappa such that D is above.
    """

    square: float
    fold: int = 1  # so many frequencies look alike from here on


Step = Linear | Bend | Cap


class Program(NamedTuple):
    """A network from one tensor to another, on some frequencies."""

    start: Stack  # Y at the input
    steps: Sequence[Step]

    @property
    def counts(self) -> list[int]:
        """The multipliers of each step that has some."""
        found, rows = [], self.start.shape[-1]
        for step in self.steps:
            if not isinstance(step, Linear):
                found.append(len(step.bent) if isinstance(step, Bend) else rows)
            rows = rows_behind(step, rows)
        return found


def rows_behind(step: Step, rows: int) -> int:
    """Return the number of rows behind a step."""
    if isinstance(step, Cap):
        return rows
    return len(step.keep) + (step.matrix.shape[1] if isinstance(step, Linear) else len(step.bent))


def adjoint(A: Stack) -> Stack:
    """Return the conjugate transpose of each matrix."""
    return np.conj(np.swapaxes(A, -1, -2))


def taken(Y: Stack, rows: Channels, columns: Channels) -> Stack:
    """Return some rows and columns of each matrix."""
    return Y[..., rows[:, None], columns]


def joined(corner: Stack, edge: Stack, last: Stack) -> Stack:
    """Return `[corner, edge*; edge, last]` of each."""
    kept, count = corner.shape[-1], corner.shape[-1] + last.shape[-1]
    Y = np.empty((len(last), count, count), np.result_type(corner, edge, last))
    Y[:, :kept, :kept], Y[:, kept:, :kept], Y[:, kept:, kept:] = corner, edge, last
    Y[:, :kept, kept:] = adjoint(Y[:, kept:, :kept])
    return Y


def mapped(step: Linear, Y: Stack) -> Stack:
    """Return Y behind a linear step."""
    image = step.matrix @ Y[:, step.read, :]
    last = image[..., step.read] @ adjoint(step.matrix)
    if step.fold > 1:
        last = last.reshape(-1, step.fold, *last.shape[1:]).sum(axis=1)
        last = last.real if step.real else last
        return np.asarray((last + adjoint(last)) / 2)
    return joined(taken(Y, step.keep, step.keep), image[..., step.keep], (last + adjoint(last)) / 2)


def pulled(step: Linear, G: Stack, Y: Stack) -> Stack:
    """Return the gradient with respect to the Y before a linear step from that with respect to the one behind it."""
    G = np.repeat(G, step.fold, axis=0) if step.fold > 1 else G
    kept = len(step.keep)
    edge = adjoint(step.matrix) @ G[:, kept:, :kept]
    last = adjoint(step.matrix) @ G[:, kept:, kept:] @ step.matrix
    found = np.zeros(Y.shape, np.result_type(last, G, Y))
    found[..., step.keep[:, None], step.keep] += G[:, :kept, :kept]
    found[..., step.read[:, None], step.keep] += edge
    found[..., step.keep[:, None], step.read] += adjoint(edge)
    found[..., step.read[:, None], step.read] += last
    return found


class Bent(NamedTuple):
    """What the gradient needs of a bend."""

    Y: Stack  # before it
    K: Stack
    R: Stack  # S^-1


def slack(Y: Stack, t: Array) -> Stack:
    """Return `2 T - T Y T`."""
    S = -(t[:, None] * Y * t)
    S[:, np.arange(len(t)), np.arange(len(t))] += 2 * t
    return S


def bent(step: Bend, Y: Stack, t: Array) -> tuple[Stack, Bent]:
    """Return Y behind a bend.

    Raises:
        numpy.linalg.LinAlgError: Where S is not positive definite.
    """
    V = np.linalg.inv(np.linalg.cholesky(slack(taken(Y, step.bent, step.bent), t)))
    R, K = adjoint(V) @ V, taken(Y, step.keep, step.bent) * t
    KR = K @ R
    return joined(taken(Y, step.keep, step.keep) + KR @ adjoint(K), adjoint(KR), R), Bent(Y, K, R)


def unbent(step: Bend, G: Stack, saved: Bent, t: Array) -> tuple[Stack, Array]:
    """Return the gradients with respect to the Y before a bend, and to its multipliers."""
    kept = len(step.keep)
    Y, K, R = saved
    GJ = G[:, :, :kept] @ K + G[:, :, kept:]
    of_S = -R @ (adjoint(K) @ GJ[:, :kept] + GJ[:, kept:]) @ R
    of_K = 2 * GJ[:, :kept] @ R
    by_t = np.einsum("fij,j,fji->i", taken(Y, step.bent, step.bent), t, of_S).real
    gradient = 2 * np.einsum("fii->i", of_S).real - 2 * by_t
    gradient += np.einsum("fij,fij->j", np.conj(of_K), taken(Y, step.keep, step.bent)).real
    found = np.zeros(Y.shape, np.result_type(of_K, G, Y))
    found[:, step.keep[:, None], step.keep] += G[:, :kept, :kept]
    found[:, step.bent[:, None], step.bent] -= t[:, None] * of_S * t
    found[:, step.keep[:, None], step.bent] += of_K * t / 2
    found[:, step.bent[:, None], step.keep] += adjoint(of_K * t) / 2
    return found, gradient


def capped(step: Cap, Y: Stack, t: Array, power: float) -> tuple[Stack, Bent]:
    """Return Y behind a cap; in what is kept for the gradient, K has the logarithm of kappa and R its gradient."""
    roots = np.sqrt(t)
    logarithm, gradient = smooth_largest(roots[:, None] * Y * roots, power)
    D = np.diag(step.square * np.exp(logarithm) / t)
    return np.broadcast_to(D, (len(Y) // step.fold, *D.shape)), Bent(Y, np.asarray(logarithm), gradient)


def uncapped(step: Cap, G: Stack, saved: Bent, t: Array) -> tuple[Stack, Array]:
    """Return the gradients with respect to the Y before a cap, and to its multipliers."""
    by_D = np.einsum("fii->i", G).real * step.square * np.exp(saved.K) / t
    roots = np.sqrt(t)
    share = np.einsum("fij,fji->i", saved.R, roots[:, None] * saved.Y * roots).real
    return by_D.sum() * roots[:, None] * saved.R * roots, (by_D.sum() * share - by_D) / t


def after(step: Step, Y: Stack, t: Array, power: float = np.inf) -> tuple[Stack, Bent]:
    """Return Y behind a step, and what its gradient needs; a linear step has no multipliers `t`."""
    if isinstance(step, Linear):
        return mapped(step, Y), Bent(Y, Y, Y)
    return bent(step, Y, t) if isinstance(step, Bend) else capped(step, Y, t, power)


def before(step: Step, G: Stack, saved: Bent, t: Array) -> tuple[Stack, Array]:
    """Return the gradients with respect to the Y before a step, and to its multipliers."""
    if isinstance(step, Linear):
        return pulled(step, G, saved.Y), t
    return unbent(step, G, saved, t) if isinstance(step, Bend) else uncapped(step, G, saved, t)


def paired(program: Program, multipliers: Sequence[Array]) -> Iterator[tuple[Step, Array]]:
    """Yield each step with its multipliers; a linear one has none."""
    left = iter(multipliers)
    for step in program.steps:
        yield step, np.empty(0) if isinstance(step, Linear) else next(left)


def covariance(program: Program, multipliers: Sequence[Array], power: float = np.inf) -> Stack:
    """Return Y at the end; `power` as in `square_and_gradient`.

    Raises:
        numpy.linalg.LinAlgError: Where the multipliers are too large.
    """
    Y = program.start
    for step, t in paired(program, multipliers):
        Y = after(step, Y, t, power)[0]
    return Y


def quick_multipliers(program: Program) -> list[Array]:
    """Return for each step one number for all entries, as ECLipsE-Fast chooses it: 1 / lambda_max(Y_hh)."""
    Y, found = program.start, []
    for step in program.steps:
        t = np.empty(0)
        if not isinstance(step, Linear):
            rows = step.bent if isinstance(step, Bend) else np.arange(Y.shape[-1])
            largest = float(np.linalg.eigvalsh(taken(Y, rows, rows)).max())
            t = np.full(len(rows), 1 / max(largest, np.finfo(float).tiny))
            found.append(t)
        Y = after(step, Y, t)[0]
    return found


def square_and_gradient(program: Program, multipliers: Sequence[Array], power: float) -> tuple[float, list[Array]]:
    """Return the logarithm of lambda_max(Y) over all frequencies, smoothed, and its gradient for each multiplier.

    Args:
        program: The network.
        multipliers: The diagonal of T of each step that is not linear.
        power: p; of the p-norm of all eigenvalues together, which is larger than the largest by their number to 1 / p.

    Raises:
        numpy.linalg.LinAlgError: Where the multipliers are too large.
    """
    Y = program.start
    tape: list[tuple[Step, Bent, Array]] = []
    for step, t in paired(program, multipliers):
        Y, saved = after(step, Y, t, power)
        tape.append((step, saved, t))
    value, G = smooth_largest(Y, power)
    gradients: list[Array] = []
    for step, saved, t in reversed(tape):
        G, gradient = before(step, G, saved, t)
        if not isinstance(step, Linear):
            gradients.append(gradient)
    return value, gradients[::-1]


def smooth_largest(Y: Stack, power: float) -> tuple[float, Stack]:
    """Return the logarithm of the p-norm of all eigenvalues of a stack together, and its gradient; p may be inf."""
    values, vectors = np.linalg.eigh(Y)
    values = np.maximum(values, np.finfo(float).tiny)
    peak = float(values.max())
    shares = (values == peak).astype(float) if power == np.inf else np.exp(power * np.log(values / peak))
    total = float(shares.sum())
    weights = shares / (total * values)
    value = float(np.log(peak)) + (0.0 if power == np.inf else float(np.log(total)) / power)
    return value, (vectors * weights[:, None, :]) @ adjoint(vectors)
