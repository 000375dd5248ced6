"""The largest Jacobian of a Keras model over given points: a network's Lipschitz constant from below.

`||J(x)^T u|| / ||u||` for the best direction of a few Golub-Kahan steps, at every point of a batch at once. It is a
true lower bound of the constant but for the rounding of the backend's reverse mode: some 1e-6 relative in float32, more
in half precision. At a kink of ReLU the derivative is the one that the backend chooses there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from opnorm.checks import Array, numbers, require

_SMALL = 1e-2  # step of a difference quotient that only chooses directions, for v of norm one
_STEPS = 12  # Golub-Kahan steps: within a percent of the largest singular value on the networks of the tests


class Linearization(NamedTuple):
    """The derivative of a model at a batch of points, as maps of arrays of the shapes of its inputs and outputs."""

    forward: Callable[[Array], Array]  # J v
    backward: Callable[[Array], Array]  # J^T u
    output_shape: tuple[int, ...]  # of one example


def largest_jacobian(model: keras.Model, data: Any, steps: int = _STEPS, batch_size: int = 32) -> float:
    """Return a lower bound of the largest spectral norm of the model's Jacobian over the points `data`, at inference.

    Args:
        model: A built model or layer with one input and one output, which treats each example alone.
        data: (points, ...), real numbers.
        steps: Golub-Kahan steps at each point.
        batch_size: Points at a time.
    """
    points = numbers(data, "data")
    if points.ndim < 2 or points.size == 0 or points.dtype.kind != "f" or not fits(points, model):
        raise ValueError(
            "Argument `data` must hold at least one point of floating-point numbers, batch first, of the shape "
            f"{getattr(model, 'input_shape', 'that the model takes')}. "
            f"Received: data of shape={points.shape}, dtype={points.dtype}"
        )
    require(bool(np.all(np.isfinite(points))), "data", "must hold finite numbers", data)
    starts = range(0, len(points), batch_size)
    return max(_largest(model, points[start : start + batch_size], steps) for start in starts)


def fits(points: Array, model: Any) -> bool:
    """Return whether points have the shape of the model's input, as far as the model tells it."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or not all(size is None or isinstance(size, int) for size in shape):
        return True
    pairs = zip(shape[1:], points.shape[1:], strict=False)
    return len(shape) == points.ndim and all(size in (None, given) for size, given in pairs)


def _largest(model: keras.Model, points: Any, steps: int) -> float:
    linear = linearize(model, points)
    v = np.random.default_rng(0).standard_normal(points.shape)
    for _ in range(2):  # the second round starts where the first ended
        v = _best_direction(linear, v, min(steps, points[0].size))
    u = linear.forward(v)
    # Reverse mode has the last word: a forward mode that misses a path costs tightness, never truth.
    return float(np.max(_norms(linear.backward(u)) / np.maximum(_norms(u), np.finfo(np.float64).tiny)))


def _norms(arrays: Array) -> Array:
    """Return the Euclidean norm of each example."""
    return np.asarray(np.linalg.norm(arrays.reshape(len(arrays), -1), axis=1))


def _best_direction(linear: Linearization, v: Array, steps: int) -> Array:
    """Return for each example the best combination of the Krylov vectors that start at `v`, reorthogonalized."""
    shape = v.shape
    right: list[Array] = []
    left: list[Array] = []  # orthonormal for each example: (examples, n) and (examples, m)
    bidiagonal = np.zeros((len(v), steps, steps))
    v = v.reshape(len(v), -1)
    for k in range(steps):
        right.append(_unit(v))
        u = _flat(linear.forward(right[k].reshape(shape)))
        for i, earlier in enumerate(left):
            bidiagonal[:, i, k] = np.sum(earlier * u, axis=1)
            u = u - bidiagonal[:, i, k, None] * earlier
        bidiagonal[:, k, k] = _norms(u)
        left.append(_unit(u))
        v = _flat(linear.backward(left[k].reshape(-1, *linear.output_shape)))
        for earlier in right:
            v = v - np.sum(earlier * v, axis=1, keepdims=True) * earlier
    weights = np.linalg.svd(bidiagonal)[2][:, 0, :]
    return np.asarray(np.einsum("ek,ken->en", weights, np.stack(right)).reshape(shape))


def _flat(arrays: Array) -> Array:
    return arrays.reshape(len(arrays), -1)


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(_norms(vectors)[:, None], np.finfo(np.float64).tiny)


def linearize(model: keras.Model, points: Any) -> Linearization:
    """Return the derivative of `model` at `points`, by the backend's own forward and reverse mode."""
    dtype = keras.backend.floatx()
    x = keras.ops.convert_to_tensor(points, dtype=dtype)
    maker = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    output_shape, forward, backward = maker(lambda inputs: _one_output(model(inputs, training=False)), x)

    def outside(map_: Callable[[Any], Any]) -> Callable[[Array], Array]:
        def apply(v: Array) -> Array:
            result = map_(keras.ops.convert_to_tensor(v, dtype=dtype))
            return np.asarray(keras.ops.convert_to_numpy(result), dtype=np.float64)

        return apply

    return Linearization(outside(forward), outside(backward), output_shape)


def _one_output(result: Any) -> Any:
    if not keras.ops.is_tensor(result):
        raise ValueError(
            "Argument `data` needs a model with one output: without it, several outputs are bounded as one vector. "
            f"Received: a model that returns a {type(result).__name__} of {len(result)}"
        )
    return result


Maps = tuple[tuple[int, ...], Callable[[Any], Any], Callable[[Any], Any]]


def _tensorflow(function: Callable[[Any], Any], x: Any) -> Maps:
    import tensorflow as tf

    def forward(x: Any, v: Any) -> Any:
        with tf.autodiff.ForwardAccumulator(x, v) as accumulator:
            y = function(x)
        tangent = accumulator.jvp(y)  # None where TensorFlow has no forward mode: bilinear resizing
        return (function(x + _SMALL * v) - y) / _SMALL if tangent is None else tangent

    def backward(x: Any, u: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x, output_gradients=tf.cast(u, y.dtype), unconnected_gradients="zero")

    # x is an argument: what a graph captures, the accumulator does not see
    pushed, pulled = tf.function(forward), tf.function(backward)
    return tuple(function(x).shape[1:]), lambda v: pushed(x, v), lambda u: pulled(x, u)


def _jax(function: Callable[[Any], Any], x: Any) -> Maps:
    import jax

    y, pullback = jax.vjp(function, x)
    forward = jax.jit(lambda v: jax.jvp(function, (x,), (v,))[1])
    return y.shape[1:], forward, jax.jit(lambda u: pullback(u.astype(y.dtype))[0])


def _torch(function: Callable[[Any], Any], x: Any) -> Maps:
    import torch

    y, pullback = torch.func.vjp(function, x)
    return tuple(y.shape[1:]), lambda v: torch.func.jvp(function, (x,), (v,))[1], lambda u: pullback(u.to(y.dtype))[0]
