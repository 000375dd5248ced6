"""The operations on NumPy arrays: the reference."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import arctan2 as arctan2
from numpy import cos as cos
from numpy import einsum as einsum
from numpy import isfinite as isfinite
from numpy import reshape as reshape
from numpy import sin as sin
from numpy import sqrt as sqrt
from numpy import transpose as transpose
from numpy.linalg import eigh as eigh

Tensor = Any


def constant(array: np.ndarray, like: Tensor) -> Tensor:
    """Return `array` where `like` is: floating-point numbers in its dtype, others in their own."""
    return array.astype(like.dtype, copy=False) if array.dtype.kind == "f" else array


def table(like: Tensor, make: Callable[..., np.ndarray], *args: Any) -> Tensor:
    """Return `make(*args)` where `like` is: floating-point numbers in its dtype, others in their own."""
    return constant(make(*args), like)


def detach(x: Tensor) -> Tensor:
    """Return `x` cut off from gradients."""
    return x


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape as integers."""
    return tuple(x.shape)


def dtype(x: Tensor) -> str:
    """Return the name of the dtype."""
    return str(x.dtype)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Return `x` in another dtype; itself if it has it."""
    return x.astype(dtype, copy=False)


def has_lapack(x: Tensor) -> bool:
    """Return whether LAPACK computes eigenvectors of tensors where `x` is: on CPUs, but for TensorFlow's own code."""
    return True


def where(condition: Tensor, x: Any, y: Any) -> Tensor:
    """Return `x` where the condition holds, `y` elsewhere; numbers take the dtype of the tensor beside them."""
    kind = x.dtype if hasattr(x, "dtype") else y.dtype
    return np.where(condition, np.asarray(x, kind), np.asarray(y, kind))


def concatenate(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return the tensors joined along `axis`."""
    return np.concatenate(parts, axis)


def widened(x: Tensor, size: int) -> Tensor:
    """Return `x` with zeros behind it along the last axis, which then has `size` entries."""
    spare = size - x.shape[-1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)]) if spare else x


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products along the last axis, which is kept."""
    return np.sum(x * y, axis=-1, keepdims=True)


def length(x: Tensor) -> Tensor:
    """Return the Euclidean lengths along the last axis, which is kept."""
    return np.sqrt(dot(x, x))


def largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the largest entries along `axes`, which are kept."""
    return np.max(x, axis=axes, keepdims=True)


def total(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sums along `axes`, which are kept."""
    return np.sum(x, axis=axes, keepdims=True)


def any_of(x: Tensor) -> Tensor:
    """Return whether any entry is true."""
    return np.any(x)


def all_of(x: Tensor) -> Tensor:
    """Return whether all entries are true."""
    return np.all(x)


def argmax(x: Tensor) -> Tensor:
    """Return the places of the largest entries along the last axis, which goes."""
    return np.argmax(x, axis=-1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of `x` along its first axis at `indices`, of any shape."""
    return x[indices]


def rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return of `x`, `(groups, count, n)`, the rows of each group at its `indices`, `(groups, k)`."""
    return np.take_along_axis(x, indices[..., None], 1)


def top_k(x: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest entries along the last axis."""
    return np.argsort(-x, axis=-1)[..., :count]


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and V of a matrix `(m, n)` = U diag(s) V^T, thin."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return u, s, vt.T


def images(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrix @ u` for each of the `vectors`, `(count, columns)`: `(count, rows)`."""
    return (matrix @ vectors.T).T


def preimages(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `v @ matrix` for each of the `vectors`, `(count, rows)`: `(count, columns)`."""
    return vectors @ matrix


def repeat_while(moves: Callable[[Any], Tensor], step: Callable[[Any], Any], state: Any, most: int) -> Any:
    """Return the named tuple after at most `most` of the steps `state -> state`, made while `moves(state)`."""
    for _ in range(most):
        if not moves(state):
            break
        state = step(state)
    return state


def repeat(factors: Sequence[float], step: Callable[[Any, Any], Any], state: Any) -> Any:
    """Return the tensor, or tuple of tensors, after a step `(factor, state) -> state` for each factor."""
    for factor in factors:
        state = step(factor, state)
    return state


def known(flags: Sequence[Tensor]) -> Sequence[Any]:
    """Return the flags as the host knows them, where that is cheap; otherwise themselves, or all true."""
    return [bool(flag) for flag in flags]


def cond(condition: Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return `yes()` or `no()`, which agree in structure, shapes and dtypes."""
    return yes() if condition else no()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function(static, tensors)`, compiled once for each hashable `static` and set of shapes where it pays."""
    return function
