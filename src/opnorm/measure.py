"""One tensor measured: its row, with a bracket or the reason why there is none."""

from functools import singledispatch
from math import ceil, inf, prod, sqrt
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import blas
from scipy.sparse.linalg import LinearOperator

from opnorm.arguments import Array
from opnorm.bounds import CONVOLUTION_TOLERANCE, MATRIX, MATRIX_TOLERANCE, bracket, is_written_out
from opnorm.certificates import up
from opnorm.checkpoints.records import CheckpointError, Weight
from opnorm.convolution import Convolution
from opnorm.deadlines import Deadline
from opnorm.declared import declared
from opnorm.matrix_bounds import bracket_matrix
from opnorm.operators import BlockDiagonal, Diagonal
from opnorm.report import Row
from opnorm.sizes import Adjoint

_EXACT_INTEGERS = 2**53  # beyond it float64 skips integers
_EXTENDED = ("bfloat", "float", "int", "uint")  # how the names of ml_dtypes' real types start


class Settings(NamedTuple):
    """How tensors are measured."""

    tolerance: float | None = None
    time_limit: float | None = None  # seconds for each tensor
    spectra: bool = False


class Norms(NamedTuple):
    """What is known of an operator's norm."""

    lower: float
    upper: float
    method: str
    matrix_norm: float | None = None  # from above; None: as `upper`
    ratio: float = 1.0  # inputs / outputs


def measure(weight: Weight, settings: Settings) -> tuple[Row, Array]:
    """Return the row of `weight`, and its singular values where they were asked for and cost little (else empty).

    What a hostile or broken tensor raises is the row's reason.
    """
    begin = perf_counter()
    row = Row(
        weight.name,
        weight.geometry.kind,
        weight.shape,
        weight.dtype,
        weight.geometry.text,
        weight.geometry.assumed,
        status="failed" if weight.geometry.operator else "skipped",
        reason=weight.geometry.reason,
    )
    spectrum = np.zeros(0)
    try:
        values = _values(weight)
        row = row._replace(**_summary(values))
        if weight.geometry.operator is not None and row.status == "failed" and not row.reason:
            operator = weight.geometry.operator(values)
            row = _bounded(row, norms(operator, settings), weight)
            spectrum = singular_values(operator) if settings.spectra else spectrum
    except (CheckpointError, OSError, ValueError, MemoryError) as error:
        row = row._replace(reason=row.reason or _one_line(error))
    return row._replace(seconds=round(perf_counter() - begin, 4)), spectrum
