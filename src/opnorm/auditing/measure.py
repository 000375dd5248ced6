"""One tensor measured: its row, with a bracket or the reason why there is none."""

from collections.abc import Sequence
from math import inf, isfinite, prod, sqrt
from time import perf_counter
from typing import Any

import numpy as np
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator

from opnorm.auditing.declared import Known, declared
from opnorm.auditing.norms import Norms, frobenius_norm, norms
from opnorm.auditing.parts import Part
from opnorm.auditing.report import Reading, Row
from opnorm.auditing.settings import Settings
from opnorm.auditing.spectra import singular_values
from opnorm.bounds.brackets import bracket_each
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.memory import Memory
from opnorm.checkpoints.records import Geometry, Weight
from opnorm.checks import Array

_BLOCK = 2**20  # numbers that are converted at once
_EXACT_INTEGERS = 2**53  # beyond it float64 skips integers
_EXTENDED = ("bfloat", "float", "int", "uint")  # how the names of ml_dtypes' real types start


def measure(weight: Weight, settings: Settings) -> tuple[Row, Array]:
    """Return the row of `weight`, and its singular values where they were asked for and cost little (else empty).

    What a hostile or broken tensor raises is the row's reason.
    """
    begin = perf_counter()
    row = unmeasured(weight, weight.geometry.reason)
    spectrum = np.zeros(0)
    try:
        afford(weight.shape, settings.memory_limit)
        values = values_of(weight)
        row = row._replace(**_summary(values))
        if weight.geometry.operator is not None and not row.reason:
            operator = weight.geometry.operator(values)
            found = _norms(operator, values, settings)
            row = _bounded(row, weight, operator, found)
            left = None if settings.time_limit is None else max(0.0, settings.time_limit + begin - perf_counter())
            row = row._replace(parts=_parts(weight.geometry, values, found, settings._replace(time_limit=left)))
            row = row._replace(readings=tuple(_reading(one, values, settings) for one in weight.geometry.readings))
            spectrum = _spectrum(operator) if settings.spectra else spectrum
    except Exception as error:  # tensors come from files, and libraries raise anything
        row = row._replace(reason=row.reason or reason_of(error))
    return row._replace(seconds=round(perf_counter() - begin, 4)), spectrum


def unmeasured(weight: Weight, reason: str) -> Row:
    """Return the row of a tensor whose numbers have not been read, with the reason why there is no bracket."""
    return Row(
        weight.name,
        weight.geometry.kind,
        weight.shape,
        weight.dtype,
        weight.geometry.text,
        weight.geometry.assumed,
        status="failed" if weight.geometry.operator or weight.geometry.unknown else "skipped",
        reason=reason,
    )


def afford(shape: tuple[int, ...], memory_limit: float) -> None:
    """Raise MemoryError when an array in float64 alone takes more memory than there is for a tensor."""
    needed = 8 * prod(shape)
    if needed > memory_limit:
        raise MemoryError(
            f"its values take {needed} bytes in float64, more than the limit of {memory_limit:.0f} for a tensor"
        )


def _norms(operator: LinearOperator, values: Array, settings: Settings) -> Norms:
    room = settings.memory_limit - values.nbytes  # what the values leave
    return norms(operator, settings.tolerance, settings.time_limit, room)


def _spectrum(operator: LinearOperator) -> Array:
    """Return the singular values for the plot, none where they are not to be had: the bracket stands without them."""
    try:
        return singular_values(operator)
    except Exception:  # LAPACK's, or no memory
        return np.zeros(0)


def _parts(geometry: Geometry, values: Array, whole: Norms, settings: Settings) -> tuple[Part, ...]:
    """Return the parts of a tensor with their brackets: those that the norm of the whole was found by, or their own."""
    if geometry.parts is None:
        return ()
    try:
        names, operators = zip(*geometry.parts(values), strict=True)
        brackets = whole.blocks or _norms_of_each(operators, values, settings)
        return tuple(_part(*found) for found in zip(names, brackets, strict=True))
    except Exception:  # as above: the whole's bracket stands without them
        return ()


def _norms_of_each(operators: Sequence[LinearOperator], values: Array, settings: Settings) -> list[tuple[float, float]]:
    """Return the bracket of each of several operators within one limit of time and memory."""
    memory = Memory(settings.memory_limit - values.nbytes)
    return bracket_each(operators, settings.tolerance, Deadline.after(settings.time_limit), memory)


def _part(name: str, bracket: tuple[float, float]) -> Part:
    lower, upper = bracket
    return {"name": name, "lower": lower, "upper": upper if isfinite(upper) else None}


def _reading(geometry: Geometry, values: Array, settings: Settings) -> Reading:
    """Return what another reading of the tensor is, and the bracket of its norm; None for an end that is not known."""
    if geometry.operator is None:
        return geometry.text, None, None
    try:
        found = _norms(geometry.operator(values), values, settings)
    except Exception:  # as above: what is not known under one reading is not proved
        return geometry.text, None, None
    return geometry.text, found.lower, found.upper if isfinite(found.upper) else None


def values_of(weight: Weight) -> Array:
    """Return the values in float64, exactly; what the file's own array takes is free again.

    Raises:
        ValueError: When they are no real numbers, or none at all, or do not fit float64.
        CheckpointError: When the file cannot be read.
    """
    raw = np.asarray(weight.read())
    real = raw.dtype.kind in "fiu" or raw.dtype.name.startswith(_EXTENDED)
    if not real or raw.dtype.itemsize > 8:
        raise ValueError(f"{raw.dtype} holds no real numbers that fit float64")
    if raw.size == 0:
        raise ValueError("an empty tensor")
    if raw.dtype.kind in "iu" and raw.dtype.itemsize == 8 and max(int(raw.max()), -int(raw.min())) > _EXACT_INTEGERS:
        raise ValueError("holds integers beyond 2**53, which float64 skips")
    with np.errstate(invalid="ignore"):  # a signalling NaN: it gets its flag
        if raw.dtype.kind not in "fiu" and raw.ndim > 1:
            return _widened(raw)
        return np.asarray(raw, dtype=np.float64)


def _widened(raw: np.ndarray) -> Array:
    """Return the numbers of one of ml_dtypes' types, by way of float32: as exact, and ten times as fast."""
    result = np.empty(raw.shape)
    size = max(1, _BLOCK * len(raw) // raw.size)
    for first in range(0, len(raw), size):
        result[first : first + size] = raw[first : first + size].astype(np.float32)
    return result


def _summary(values: Array) -> dict[str, Any]:
    """Return the fields of a row that need no operator; a reason when an entry is not finite."""
    finite = np.isfinite(values)
    if not finite.all():
        count, strange = finite.size - int(np.count_nonzero(finite)), values[~finite]
        flags = [name for name, found in (("nan", np.isnan(strange).any()), ("inf", np.isinf(strange).any())) if found]
        words = " and ".join({"nan": "NaN", "inf": "infinite"}[flag] for flag in flags)
        return {"flags": tuple(flags), "reason": f"{count} of {values.size} entries are {words}"}
    frobenius = float(blas.dnrm2(values.ravel(order="K")))  # unlike a sum of squares it does not overflow
    return {"flags": () if frobenius else ("zero",), "frobenius": frobenius}


def _bounded(row: Row, weight: Weight, operator: LinearOperator, found: Norms) -> Row:
    row = row._replace(
        lower=found.lower,
        upper=found.upper if isfinite(found.upper) else None,
        reason="" if isfinite(found.upper) else "no upper end is known for an operator of this kind and size",
        status="bounded" if isfinite(found.upper) else "failed",
        method=found.method,
        flags=(*row.flags, *found.limits),
    )
    if weight.constraint is not None:
        known = Known(operator, weight.shape, (found.lower, found.upper), found.matrix)
        row = row._replace(constraint=declared(weight.constraint, known))
    if row.upper is not None and weight.geometry.oriented:
        row = row._replace(rms_norm=row.upper * sqrt(found.ratio))
    if found.matrix is not None:
        lower, upper = found.matrix
        frobenius = frobenius_norm(operator)  # a scale may have been divided out of the stored tensor
        rank = None if frobenius is None else _stable_rank(frobenius, lower)
        row = row._replace(matrix_norm=upper, frobenius=frobenius, stable_rank=rank)
    return row


def _stable_rank(frobenius: float, norm: float) -> float | None:
    return (frobenius / norm) ** 2 if 0 < norm < inf else None


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one line; of an unexpected one its type too."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return text or "it does not fit into memory"
    if isinstance(error, ValueError | OSError):
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
