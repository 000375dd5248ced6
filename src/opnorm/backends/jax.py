"""The operations on JAX arrays and tracers."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.numpy import arctan2 as arctan2
from jax.numpy import concatenate as concatenate
from jax.numpy import cos as cos
from jax.numpy import einsum as einsum
from jax.numpy import isfinite as isfinite
from jax.numpy import reshape as reshape
from jax.numpy import sin as sin
from jax.numpy import sqrt as sqrt
from jax.numpy import transpose as transpose
from jax.numpy import where as where
from jax.numpy.linalg import eigh as eigh

Tensor = Any


def constant(array: np.ndarray, like: Tensor) -> Tensor:
    """Return `array` where `like` is: floating-point numbers in its dtype, others in their own."""
    return jnp.asarray(array, like.dtype if array.dtype.kind == "f" else None)


def table(like: Tensor, make: Callable[..., np.ndarray], *args: Any) -> Tensor:
    """Return `make(*args)` where `like` is: floating-point numbers in its dtype, others in their own."""
    return constant(make(*args), like)


def detach(x: Tensor) -> Tensor:
    """Return `x` cut off from gradients."""
    return lax.stop_gradient(x)


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape as integers."""
    return tuple(x.shape)


def dtype(x: Tensor) -> str:
    """Return the name of the dtype."""
    return str(x.dtype)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Return `x` in another dtype; itself if it has it."""
    return x.astype(dtype)


def has_lapack(x: Tensor) -> bool:
    """Return whether LAPACK computes eigenvectors of tensors where `x` is: on CPUs, but for TensorFlow's own code."""
    return bool(jax.default_backend() == "cpu")


def widened(x: Tensor, size: int) -> Tensor:
    """Return `x` with zeros behind it along the last axis, which then has `size` entries."""
    spare = size - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)]) if spare else x


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products along the last axis, which is kept."""
    return jnp.sum(x * y, axis=-1, keepdims=True)


def length(x: Tensor) -> Tensor:
    """Return the Euclidean lengths along the last axis, which is kept."""
    return jnp.sqrt(dot(x, x))


def largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the largest entries along `axes`, which are kept."""
    return jnp.max(x, axis=axes, keepdims=True)


def total(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sums along `axes`, which are kept."""
    return jnp.sum(x, axis=axes, keepdims=True)


def any_of(x: Tensor) -> Tensor:
    """Return whether any entry is true."""
    return jnp.any(x)


def all_of(x: Tensor) -> Tensor:
    """Return whether all entries are true."""
    return jnp.all(x)


def argmax(x: Tensor) -> Tensor:
    """Return the places of the largest entries along the last axis, which goes."""
    return jnp.argmax(x, axis=-1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of `x` along its first axis at `indices`, of any shape."""
    return x[indices]


def rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return of `x`, `(groups, count, n)`, the rows of each group at its `indices`, `(groups, k)`."""
    return jnp.take_along_axis(x, indices[..., None], 1)


def top_k(x: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest entries along the last axis."""
    return lax.top_k(x, count)[1]


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and V of a matrix `(m, n)` = U diag(s) V^T, thin."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vt.T


def images(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrix @ u` for each of the `vectors`, `(count, columns)`: `(count, rows)`."""
    # A product a vector: XLA on CPUs is faster at two of these than at one with a thin matrix.
    few = range(vectors.shape[0]) if vectors.shape[0] <= 2 else ()
    if few:
        return jnp.concatenate([(matrix @ vectors[i : i + 1].T).T for i in few], axis=0)
    return (matrix @ vectors.T).T


def preimages(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `v @ matrix` for each of the `vectors`, `(count, rows)`: `(count, columns)`."""
    few = range(vectors.shape[0]) if vectors.shape[0] <= 2 else ()
    if few:
        return jnp.concatenate([vectors[i : i + 1] @ matrix for i in few], axis=0)
    return vectors @ matrix


def repeat_while(moves: Callable[[Any], Tensor], step: Callable[[Any], Any], state: Any, most: int) -> Any:
    """Return the named tuple after at most `most` of the steps `state -> state`, made while `moves(state)`."""
    return lax.while_loop(
        lambda carry: (carry[0] < most) & moves(carry[1]), lambda carry: (carry[0] + 1, step(carry[1])), (0, state)
    )[1]


def repeat(factors: Sequence[float], step: Callable[[Any, Any], Any], state: Any) -> Any:
    """Return the tensor, or tuple of tensors, after a step `(factor, state) -> state` for each factor."""
    kind = jax.tree.leaves(state)[0].dtype
    return lax.scan(lambda state, factor: (step(factor, state), None), state, jnp.asarray(factors, kind))[0]


def known(flags: Sequence[Tensor]) -> Sequence[Any]:
    """Return the flags as the host knows them, where that is cheap; otherwise themselves, or all true."""
    return [True] * len(flags)  # a branch for each takes longer to compile than the products, now and then, to make


def cond(condition: Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return `yes()` or `no()`, which agree in structure, shapes and dtypes."""
    return lax.cond(condition, yes, no)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function(static, tensors)`, compiled once for each hashable `static` and set of shapes where it pays.

    Without it JAX would compile the loops inside anew at every eager call, which takes far longer than the loops.
    """

    def run(static: Any, tensors: Any) -> Any:
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tensors))
        return function(static, tensors) if traced else _jitted(function)(static, tensors)

    return run


@lru_cache(maxsize=64)
def _jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    jitted: Callable[..., Any] = jax.jit(function, static_argnums=0)
    return jitted
