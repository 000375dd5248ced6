"""The largest eigenvalue of a symmetric matrix and its vector: estimates, whatever LAPACK and ARPACK leave undone."""

from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from opnorm.bounds import lapack
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checks import Array

_LANCZOS_SIZE = 192  # below it LAPACK's eigensolver is as fast as Lanczos, and exact


def top_eigenpair(M: Array) -> tuple[float, Array]:
    """Return the largest eigenvalue of a symmetric matrix and its unit vector, of which LAPACK leaves none out.

    Args:
        M: (n, n), finite; the lower triangle is read.
    """
    last = len(M) - 1
    values, vectors = eigh(M, lower=True, subset_by_index=[last, last])
    if values.size != 1 or vectors.shape[1] != 1:  # LAPACK's choice by index finds none where many are nearly equal
        values, vectors = eigh(M, lower=True, driver="evd")
    return float(values[-1]), np.asarray(vectors[:, -1])


def top_eigenvector(M: Array, accuracy: float, deadline: Deadline = NEVER) -> Array:
    """Return an estimate of the unit eigenvector of the largest eigenvalue, by Lanczos steps where `M` is large.

    Args:
        M: (n, n), finite, in Fortran order; the lower triangle is read.
        accuracy: Of the Lanczos steps.
        deadline: OutOfTimeError is raised when it passes between two steps.
    """
    n = len(M)
    if n <= _LANCZOS_SIZE:
        return top_eigenpair(M)[1]

    def product(v: Array) -> Array:
        deadline.check()
        return np.asarray(lapack.times(M, v.ravel()), np.float64)

    operator: Any = LinearOperator((n, n), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    try:
        return np.asarray(eigsh(operator, k=1, which="LA", tol=accuracy, v0=start, ncv=min(n, 24))[1][:, 0])
    except ArpackError:
        return top_eigenpair(M)[1]
