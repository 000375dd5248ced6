"""The few routines of BLAS and LAPACK that proofs need, called without Python's lock, so that threads share the work.

`scipy.linalg.blas` and `scipy.linalg.lapack` keep the lock while they compute. SciPy exports the same routines to
compiled code; through `ctypes` they run without it.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import LowLevelCallable
from scipy.linalg import cython_blas, cython_lapack

from opnorm.bounds.forks import blas_section

Matrices = NDArray[np.float64] | NDArray[np.complex128]
Real = NDArray[np.float64] | NDArray[np.float32]


def gram(columns: Matrices) -> Matrices:
    """Return the lower triangle of `columns* columns`, or of its conjugate, in Fortran order; the rest is zero.

    Args:
        columns: (rows, n), float64 or complex128, in C or Fortran order: no other copy is made.
    """
    rows, n = columns.shape
    by_columns = columns.flags.f_contiguous
    entries: Matrices = columns if by_columns else np.ascontiguousarray(columns)  # type: ignore[assignment]
    result: Matrices = np.zeros((n, n), columns.dtype, order="F")  # type: ignore[assignment]
    complex_ = np.iscomplexobj(columns)
    how = (b"C" if complex_ else b"T") if by_columns else b"N"
    update = _routine(cython_blas, "zherk" if complex_ else "dsyrk", 10)
    stride = rows if by_columns else n
    with blas_section():
        update(b"L", how, _int(n), _int(rows), _real(1), _data(entries), _int(stride), _real(0), _data(result), _int(n))
    return result


def is_positive_definite(matrix: Matrices) -> bool:
    """Return whether the Cholesky factorization of `matrix`, of which it reads the lower triangle, completes.

    Args:
        matrix: (n, n), in Fortran order; it is overwritten.
    """
    info = ctypes.c_int()
    factorize = _routine(cython_lapack, "zpotrf" if np.iscomplexobj(matrix) else "dpotrf", 5)
    n = _int(_order(matrix))
    with blas_section():
        factorize(b"L", n, _data(matrix), n, ctypes.byref(info))
    return info.value == 0


def is_band_positive_definite(band: NDArray[np.float64]) -> bool:
    """Return whether the Cholesky factorization of a symmetric band matrix completes.

    Args:
        band: (n, width), in C order: row j holds the entries of column j from the diagonal on. It is overwritten.
    """
    if not band.flags.c_contiguous or band.dtype != np.float64:
        raise ValueError(f"a band in C order is needed. Received: shape={band.shape}, dtype={band.dtype}")
    info = ctypes.c_int()
    n, width = band.shape
    factorize = _routine(cython_lapack, "dpbtrf", 6)
    with blas_section():
        factorize(b"L", _int(n), _int(width - 1), _data(band), _int(width), ctypes.byref(info))
    return info.value == 0


def times(matrix: Real, vector: Real) -> Real:
    """Return `matrix @ vector` of a real symmetric matrix in Fortran order, of which the lower triangle is read.

    Args:
        matrix: (n, n), float64 or float32.
        vector: (n,), taken to the matrix's dtype.
    """
    n, single = _int(_order(matrix)), matrix.dtype == np.float32
    dtype: Any = np.float32 if single else np.float64
    entries, result = np.ascontiguousarray(vector, dtype), np.zeros(len(matrix), dtype)
    multiply = _routine(cython_blas, "ssymv" if single else "dsymv", 10)
    one, zero = (_single(1), _single(0)) if single else (_real(1), _real(0))
    with blas_section():
        multiply(b"L", n, one, _data(matrix), n, _data(entries), _int(1), zero, _data(result), _int(1))
    return result


def add_squares(matrix: NDArray[np.float64], factor: float, columns: NDArray[np.float64]) -> None:
    """Add `factor * columns @ columns.T` to the lower triangle of `matrix`, (n, n) in Fortran order, where it lies."""
    n, count = _int(_order(matrix)), _int(columns.shape[1])
    entries = np.asfortranarray(columns)
    update = _routine(cython_blas, "dsyrk", 10)
    with blas_section():
        update(b"L", b"N", n, count, _real(factor), _data(entries), n, _real(1), _data(matrix), n)


@cache
def _routine(module: Any, name: str, arguments: int) -> Any:
    """Return a Fortran routine: every argument is a pointer."""
    capsule = LowLevelCallable.from_cython(module, name).function
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = address_of(capsule, name_of(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def _order(matrix: Matrices | Real) -> int:
    """Return the side of a square matrix; a pointer to any other would be read past its end."""
    n = len(matrix)
    if matrix.shape != (n, n) or not matrix.flags.f_contiguous:
        raise ValueError(f"a square matrix in Fortran order is needed. Received: shape={matrix.shape}")
    return n


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _real(value: float) -> Any:
    return ctypes.byref(ctypes.c_double(value))


def _single(value: float) -> Any:
    return ctypes.byref(ctypes.c_float(value))


def _data(array: Matrices | Real) -> int:
    if array.dtype not in (np.float64, np.complex128, np.float32):
        raise TypeError(f"float64, complex128 or float32 is needed. Received: dtype={array.dtype}")
    return array.ctypes.data
