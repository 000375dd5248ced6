"""The proved bound of a part of a network as a whole: multipliers by descent, then a proof of what they are worth."""

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from time import monotonic
from typing import NamedTuple

import numpy as np

from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.threads import one_blas_thread
from opnorm.checks import Array
from opnorm.networks.covariance_proofs import NotProvedError, proved_norm
from opnorm.networks.covariances import (
    Bend,
    Linear,
    Program,
    covariance,
    quick_multipliers,
    rows_behind,
    square_and_gradient,
)
from opnorm.networks.descent import descended
from opnorm.networks.programs import NotStationaryError, Run, compiled
from opnorm.networks.torus import half

_POWERS = (10.0, 100.0, 1000.0)  # of the norm that stands for the largest eigenvalue, one after the other
_STEPS = 60  # of the descent with each of them
_ROOMS = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)  # by which multipliers shrink from bend to bend
_COARSE = 6  # pixels of the small torus on which multipliers are sought first
_SMALLER = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)  # by which they shrink to be small enough
_LESS = 4  # times fewer pixels make it worth while
_PROOF = 3.0  # times the multiplications of the recursion, with the quick multipliers


class Quick(NamedTuple):
    """What a run's first proof gave."""

    bound: float | None  # a proved Lipschitz constant (2-norm); None: not proved
    multipliers: list[Array]
    seconds: float  # that the proof took


def quick_bound(run: Run, deadline: Deadline = NEVER) -> Quick | None:
    """Return a proved Lipschitz constant with one multiplier a step, None for runs that have none, or no time for one.

    Args:
        run: A part of a network.
        deadline: Runs that would take longer have none.
    """
    if not deadline.affords(run.work):
        return None
    try:
        with one_blas_thread(), np.errstate(all="ignore"):
            program = compiled(run, *half(run.size))
            if not deadline.affords(_PROOF * _work(program)):
                return None
            multipliers, begin = quick_multipliers(program), monotonic()
            return Quick(_proved(program, multipliers), multipliers, monotonic() - begin)
    except (np.linalg.LinAlgError, NotStationaryError):
        return None


def better_bound(run: Run, quick: Quick, deadline: Deadline = NEVER) -> float | None:
    """Return the proved Lipschitz constant with the best multipliers that are found, None where there are none.

    Args:
        run: That of `quick`.
        quick: Where to begin.
        deadline: After it the multipliers that were found by then are proved.
    """
    soon = Deadline(deadline.at - 1.5 * quick.seconds)  # another proof takes no longer
    if soon.passed:
        return None
    try:
        with one_blas_thread(), np.errstate(all="ignore"):
            program = compiled(run, *half(run.size))
            better = _improved(run, program, quick.multipliers, soon)
            return None if better is quick.multipliers else _proved(program, better)
    except (np.linalg.LinAlgError, NotStationaryError):
        return None


def _work(program: Program) -> float:
    """Return the multiplications of the recursion: a bend's inverse takes three products, a complex product four."""
    found, count, (stack, rows) = 0.0, 4 if program.start.shape[0] > 1 else 1, program.start.shape[:2]
    for step in program.steps:
        if isinstance(step, Linear):
            found += float(stack) * step.matrix.shape[1] * len(step.read) * (rows + step.matrix.shape[1])
        elif isinstance(step, Bend):
            new, kept = len(step.bent), len(step.keep)
            found += float(stack) * new * (3 * new**2 + kept * (new + kept))
        else:
            found += 10.0 * stack * rows**3
        stack //= 1 if isinstance(step, Bend) else step.fold
        rows = rows_behind(step, rows)
    return float(count * (found + stack * 10.0 * rows**3))


def _improved(run: Run, program: Program, quick: list[Array], deadline: Deadline) -> list[Array]:
    """Return better multipliers: sought on a small torus first, where the whole one takes long, then on the whole."""
    coarse = tuple(min(n, _COARSE) for n in run.size)
    if _LESS * prod(coarse) >= prod(run.size):
        return _lowered(program, quick, _POWERS, deadline)
    found = _lowered(compiled(run, *half(coarse)), quick, _POWERS, deadline)
    return _lowered(program, found, _POWERS[1:], deadline)


def _lowered(program: Program, multipliers: list[Array], powers: Sequence[float], deadline: Deadline) -> list[Array]:
    """Return multipliers with a smaller bound, those handed over where none are found, or too late."""
    ends = np.cumsum(program.counts)[:-1]

    def function(point: Array, power: float) -> tuple[float, Array]:
        t = np.split(np.exp(point), ends)
        value, gradients = square_and_gradient(program, t, power)
        if not np.isfinite(value):
            raise np.linalg.LinAlgError
        return value, np.concatenate([a * b for a, b in zip(gradients, t, strict=True)])

    for power in powers:
        start = _feasible(program, multipliers, power) if deadline.affords(4 * _work(program)) else None
        if start is not None:
            point = np.log(np.concatenate(start))
            with suppress(np.linalg.LinAlgError):  # not even there: as far as float64 reaches
                point = descended(lambda at, p=power: function(at, p), point, _STEPS, deadline)  # type: ignore[misc]
            multipliers = np.split(np.exp(point), ends)
    return multipliers


def _shrunk(multipliers: Sequence[Array], room: float) -> list[Array]:
    return [t * (1 + room) ** -(i + 1) for i, t in enumerate(multipliers)]


def _feasible(program: Program, multipliers: Sequence[Array], power: float) -> list[Array] | None:
    """Return multipliers small enough for this program and power, where those of another one are not; None: not found.

    A p-norm is above the maximum that it stands for, and a few frequencies do not see what others need.
    """
    for room in _SMALLER:
        try:
            covariance(program, _shrunk(multipliers, room), power)
        except np.linalg.LinAlgError:
            continue
        return _shrunk(multipliers, room)
    return None


def _proved(program: Program, multipliers: Sequence[Array]) -> float | None:
    """Return a proved bound, None where there is no proof.

    Multipliers that shrink from bend to bend leave room for rounding, which the best ones of a long run do not.
    """
    for room in _ROOMS:
        try:
            return proved_norm(program, _shrunk(multipliers, room))
        except NotProvedError:
            continue
    return None
