"""The operations on TensorFlow tensors: eager, in a `tf.function`, and in TF1-style graphs."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import cast as cast
from tensorflow import cos as cos
from tensorflow import einsum as einsum
from tensorflow import reshape as reshape
from tensorflow import sin as sin
from tensorflow import sqrt as sqrt
from tensorflow import transpose as transpose
from tensorflow.linalg import eigh as eigh

Tensor = Any
arctan2, isfinite, detach = tf.math.atan2, tf.math.is_finite, tf.stop_gradient


def constant(array: np.ndarray, like: Tensor) -> Tensor:
    """Return `array` where `like` is: floating-point numbers in its dtype, others in their own."""
    return tf.constant(array, like.dtype if array.dtype.kind == "f" else None)


def table(like: Tensor, make: Callable[..., np.ndarray], *args: Any) -> Tensor:
    """Return `make(*args)` where `like` is: floating-point numbers in its dtype, others in their own."""
    return constant(make(*args), like)


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape as integers."""
    return tuple(x.shape.as_list())


def dtype(x: Tensor) -> str:
    """Return the name of the dtype."""
    return str(x.dtype.name)


def has_lapack(x: Tensor) -> bool:
    """Return whether LAPACK computes eigenvectors of tensors where `x` is: on CPUs, but for TensorFlow's own code."""
    return False


def where(condition: Tensor, x: Any, y: Any) -> Tensor:
    """Return `x` where the condition holds, `y` elsewhere; numbers take the dtype of the tensor beside them."""
    kind = x.dtype if hasattr(x, "dtype") else y.dtype
    return tf.where(condition, tf.convert_to_tensor(x, kind), tf.convert_to_tensor(y, kind))


def concatenate(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return the tensors joined along `axis`."""
    return tf.concat(parts, axis)


def widened(x: Tensor, size: int) -> Tensor:
    """Return `x` with zeros behind it along the last axis, which then has `size` entries."""
    spare = size - shape(x)[-1]
    return tf.pad(x, [(0, 0)] * (len(x.shape) - 1) + [(0, spare)]) if spare else x


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products along the last axis, which is kept."""
    return tf.reduce_sum(x * y, axis=-1, keepdims=True)


def length(x: Tensor) -> Tensor:
    """Return the Euclidean lengths along the last axis, which is kept."""
    return tf.sqrt(dot(x, x))


def largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the largest entries along `axes`, which are kept."""
    return tf.reduce_max(x, axis=axes, keepdims=True)


def total(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sums along `axes`, which are kept."""
    return tf.reduce_sum(x, axis=axes, keepdims=True)


def any_of(x: Tensor) -> Tensor:
    """Return whether any entry is true."""
    return tf.reduce_any(x)


def all_of(x: Tensor) -> Tensor:
    """Return whether all entries are true."""
    return tf.reduce_all(x)


def argmax(x: Tensor) -> Tensor:
    """Return the places of the largest entries along the last axis, which goes."""
    return tf.argmax(x, axis=-1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of `x` along its first axis at `indices`, of any shape."""
    return tf.gather(x, indices)


def rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return of `x`, `(groups, count, n)`, the rows of each group at its `indices`, `(groups, k)`."""
    return tf.gather(x, indices, axis=1, batch_dims=1)


def top_k(x: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest entries along the last axis."""
    return tf.math.top_k(x, count).indices


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and V of a matrix `(m, n)` = U diag(s) V^T, thin."""
    s, u, v = tf.linalg.svd(x)
    return u, s, v


def images(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrix @ u` for each of the `vectors`, `(count, columns)`: `(count, rows)`."""
    # A product a vector: XLA on CPUs is faster at two of these than at one with a thin matrix.
    few = range(vectors.shape[0]) if vectors.shape[0] <= 2 else ()
    if few:
        return tf.concat([tf.transpose(tf.matmul(matrix, vectors[i : i + 1], transpose_b=True)) for i in few], axis=0)
    return tf.transpose(tf.matmul(matrix, vectors, transpose_b=True))


def preimages(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `v @ matrix` for each of the `vectors`, `(count, rows)`: `(count, columns)`."""
    few = range(vectors.shape[0]) if vectors.shape[0] <= 2 else ()
    if few:
        return tf.concat([vectors[i : i + 1] @ matrix for i in few], axis=0)
    return vectors @ matrix


def repeat_while(moves: Callable[[Any], Tensor], step: Callable[[Any], Any], state: Any, most: int) -> Any:
    """Return the named tuple after at most `most` of the steps `state -> state`, made while `moves(state)`."""
    kind = type(state)
    end = tf.while_loop(
        lambda *values: moves(kind(*values)),
        lambda *values: tuple(step(kind(*values))),
        tuple(state),
        maximum_iterations=most,
    )
    return kind(*end)


def repeat(factors: Sequence[float], step: Callable[[Any, Any], Any], state: Any) -> Any:
    """Return the tensor, or tuple of tensors, after a step `(factor, state) -> state` for each factor."""
    values = tf.constant(factors, tf.nest.flatten(state)[0].dtype)
    end = tf.while_loop(
        lambda i, state: i < len(factors), lambda i, state: (i + 1, step(values[i], state)), (tf.constant(0), state)
    )
    return end[1]


def known(flags: Sequence[Tensor]) -> Sequence[Any]:
    """Return the flags as the host knows them, where that is cheap; otherwise themselves, or all true."""
    return [True] * len(flags)  # a branch for each takes longer to compile than the products, now and then, to make


def cond(condition: Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return `yes()` or `no()`, which agree in structure, shapes and dtypes."""
    return tf.cond(condition, yes, no)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function(static, tensors)`, compiled once for each hashable `static` and set of shapes where it pays.

    Here it is made a graph where it is called eagerly: a loop's small operations are several times faster there.
    """

    def run(static: Any, tensors: Any) -> Any:
        if not tf.executing_eagerly():
            return function(static, tensors)
        return _graph(function, static, _signature(tensors))(tensors)

    return run


@lru_cache(maxsize=256)
def _graph(function: Callable[..., Any], static: Any, signature: Any) -> Callable[..., Any]:
    # One for each signature: TensorFlow warns of one function with many.
    graph: Callable[..., Any] = tf.function(partial(function, static), autograph=False)
    return graph


def _signature(tensors: Any) -> tuple[Any, ...]:
    return tuple((tuple(x.shape), x.dtype) for x in tf.nest.flatten(tensors) if x is not None)
