"""Rows of a comparison: the brackets of a weight in the base, in the tuned file, and of the difference."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from opnorm.auditing.adapter_names import is_bias, reason_against
from opnorm.auditing.comparison import BRACKETS, Bracket, DiffRow
from opnorm.auditing.effective import is_plain, rounding, subtracted
from opnorm.auditing.lora import widened
from opnorm.auditing.measure import afford, measure, reason_of, values_of
from opnorm.auditing.norms import frobenius_norm
from opnorm.auditing.settings import Settings
from opnorm.auditing.subspaces import Subspaces, subspaces
from opnorm.bounds.brackets import matrix_of
from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Geometry, Weight
from opnorm.checks import Array

Weights = Mapping[str, Weight]
_COPIES = 8  # of a matrix, that three decompositions take together
_SVDS = 40  # multiplications for each entry and each of the shorter side that they take


def compared(a: Weight, b: Weight, settings: Settings) -> DiffRow:
    """Return the row of a weight that both files have under one name."""
    if a.shape != b.shape:
        return DiffRow(a.name, a.shape, "shapes differ", reason=f"{list(a.shape)} in base, {list(b.shape)} in tuned")
    plain, a, b = _as_known(a, b, settings)
    delta, error, reason = _change_of(a, b, plain, settings)
    several = [a, b] if delta is None else [a, b, delta]
    row = row_of(a, several, "compared", settings, None if delta is None else [0.0, 0.0, error])
    first, second = _described(a.geometry), _described(b.geometry)
    row = row if first == second else row._replace(geometry=f"{first} in base, {second} in tuned")
    return row._replace(status="failed", reason=reason) if reason and row.status in ("compared", "skipped") else row


def _as_known(a: Weight, b: Weight, settings: Settings) -> tuple[bool, Weight, Weight]:
    """Return whether both layers apply just their weights' numbers, and the weights, each with its own geometry.

    Of two that do, one whose geometry is a guess is taken for what the other file knows.
    """
    try:
        afford(a.shape, settings.memory_limit)
    except MemoryError:  # which the row says
        return False, a, b
    plain = is_plain(a.geometry, a.shape) and is_plain(b.geometry, b.shape)
    if plain and a.geometry.assumed and _known(a.geometry) <= _known(b.geometry):
        a = a._replace(geometry=b.geometry)
    elif plain and b.geometry.assumed:
        b = b._replace(geometry=a.geometry)
    return plain, a, b


def _known(geometry: Geometry) -> tuple[bool, bool]:
    """Return what sorts geometries by how much of them is known: a guess by name and shape comes first."""
    return not geometry.assumed, geometry.oriented


def _change_of(a: Weight, b: Weight, plain: bool, settings: Settings) -> tuple[Weight | None, float, str]:
    """Return a weight whose geometry is the change, and how far it may be from it; or None, and why there is none."""
    first, second = a.geometry.operator, b.geometry.operator
    if first is None or second is None:
        return None, 0.0, "" if first is second else "in one file it is a linear map, in the other none is known"
    try:
        afford(a.shape, settings.memory_limit)
        x, y = values_of(a), values_of(b)
        base, tuned = first(x), second(y)
        operator = subtracted(tuned, base)
        error = 0.0 if plain or (np.array_equal(x, y) and not frobenius_norm(operator)) else rounding(tuned, base)
    except Exception as found:  # as in `measure`
        return None, 0.0, reason_of(found)
    geometry = a.geometry._replace(operator=lambda _: operator)
    return a._replace(read=lambda: _subtract(y, x), dtype="float64", geometry=geometry), error, ""


def alone(weight: Weight, where: str, settings: Settings, foreign: str = "") -> DiffRow:
    """Return the row of a weight that only one of the files has, "base" or "tuned".

    Args:
        weight: The weight.
        where: Which file has it.
        settings: How it is measured.
        foreign: The kind of adapter that the tuned file is of, where it is none that is multiplied out.
    """
    if where == "tuned" and is_bias(weight.name):
        return DiffRow(weight.name, weight.shape, "skipped", reason=g.BIAS)
    reason = reason_against(weight.name, foreign) if where == "tuned" else ""
    if reason:
        return DiffRow(weight.name, weight.shape, "failed", reason=reason)
    row = row_of(weight, [weight], f"only in {where}", settings)
    return row if where == "base" else row._replace(base=None, tuned=row.base)


def row_of(
    weight: Weight,
    several: list[Weight],
    status: str,
    settings: Settings,
    errors: list[float] | None = None,
    difference: Bracket | None = None,
) -> DiffRow:
    """Return a row with the brackets of `several`: of the base, of the tuned weight, and of their difference.

    Args:
        weight: The weight that the row is of.
        several: At most three weights to measure, each its own or the main reading of it.
        status: What the row says where all of them are bounded.
        settings: How they are measured.
        errors: How far each, in the Frobenius norm, may be from what it stands for.
        difference: The bracket of the difference where it is known already.
    """
    measured = [measure(one._replace(constraint=None, geometry=_main(one.geometry)), settings)[0] for one in several]
    found = [None if row.lower is None or row.upper is None else (row.lower, row.upper) for row in measured]
    if errors:
        taps = prod(weight.shape[2:])
        found = [
            widened(ends, error, taps) if ends and error else ends for ends, error in zip(found, errors, strict=True)
        ]
    failed = [row for row in measured if row.status != "bounded"]
    brackets: dict[str, Any] = dict(zip(BRACKETS, found, strict=False))
    brackets |= {"difference": difference} if difference else {}
    text = _described(several[0].geometry)
    row = DiffRow(weight.name, weight.shape, failed[0].status if failed else status, geometry=text, **brackets)
    reason = failed[0].reason if failed else ""
    if row.base and row.difference and row.base[0] > 0:
        row = row._replace(relative=row.difference[1] / row.base[0])
    return row._replace(reason=reason, subspaces=_subspaces(several, settings))


def _subspaces(several: list[Weight], settings: Settings) -> Subspaces | None:
    """Return how the tuned matrix lies to the base's, None where that was not asked for or is not to be had."""
    if not settings.subspaces or len(several) < 2:
        return None
    try:
        base, tuned = (_matrix(one, settings) for one in several[:2])
        sides = base.shape
        if not Deadline.after(settings.time_limit).affords(_SVDS * base.size * min(sides)):
            return None
        return subspaces(base, tuned)
    except Exception:  # LAPACK's, or no memory, or no matrix: the brackets stand without them
        return None


def _matrix(weight: Weight, settings: Settings) -> Array:
    operator = weight.geometry.operator
    if operator is None:
        raise ValueError("no linear map")
    afford((_COPIES, *weight.shape), settings.memory_limit)
    matrix = matrix_of(operator(values_of(weight)))
    if matrix is None or not np.isfinite(matrix).all():
        raise ValueError("no matrix of numbers")
    return matrix


def _described(geometry: Geometry) -> str:
    others = "; ".join(reading.text for reading in geometry.readings)
    assumed = f" (assumed{f', it may be: {others}' if others else ''})" if geometry.assumed else ""
    return f"{geometry.text}{assumed}"


def _main(geometry: Geometry) -> Geometry:
    return geometry._replace(readings=(), parts=None)


def _subtract(tuned: Array, base: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of two infinities; the row then names the NaN
        return tuned - base
