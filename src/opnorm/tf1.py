"""Spectral normalization as a `kernel_constraint` for TF1-style graph code and for tf_keras.

A constraint is called with the kernel only, by the optimizer, after each of its updates: in graph mode once for each
`minimize`, long after the loop that made the layers has ended. So the vector `u` belongs to the kernel that the call
receives, never to a name. Nothing here imports Keras 3.

Convention: A v = sigma u with A the transpose of the kernel's matrix (inputs, outputs): u lives on the output side.
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

try:
    if not sys.modules.get("tf_keras"):
        _ = tf.compat.v1.layers.dense  # loads tf_keras when TensorFlow was told to use it, Keras 3 otherwise
    import tf_keras
except (AttributeError, ImportError) as error:
    raise ImportError(
        "`opnorm.tf1` found no legacy layers: `tf.compat.v1.layers` is missing in this process. "
        "Install tf_keras (`pip install tf_keras`) and set the environment variable TF_USE_LEGACY_KERAS=1 before "
        "tensorflow is imported (or `import tf_keras` before opnorm.tf1, if you use it by that name). "
        "With Keras 3, use `opnorm.SpectralNorm`."
    ) from error

_ATTRIBUTE = "_opnorm_u"  # of a kernel: its vector, which so lives exactly as long as the kernel does


@tf_keras.utils.register_keras_serializable(package="opnorm")
class SpectralNorm(tf_keras.constraints.Constraint, tf.train.Checkpoint):
    """Return the kernel scaled so that its spectral norm is `value`: W <- value * W / sigma.

    One object may serve any number of kernels. Each has a vector `u` of its own, a non-trainable variable drawn
    isotropically when the optimizer first applies the constraint, moved by power iteration in every training step. In
    graph mode it is a global variable named after the kernel (`dense/kernel/u`), so that `global_variables_initializer`
    and `Saver` include it; in eager mode it is part of every TensorFlow checkpoint of the layer.

    The norm is that of the kernel reshaped to `(-1, kernel.shape[-1])`, computed in float32 (float64 for a float64
    kernel). A zero kernel stays zero. A kernel that is not finite stays so, and leaves `u` alone.

        >>> kernel = opnorm.tf1.SpectralNorm(2.0)(tf.linalg.diag([3.0, 1.0]))
        >>> print(kernel.numpy().max().round(3))
        2.0

    Args:
        value: The spectral norm of the constrained kernel: positive and finite.
        axis: The kernel's output axes, an int or a sequence of ints. -1 fits `dense` and `conv2d`; use -2 for
            `conv2d_transpose`, whose kernel is (height, width, output, input).
        power_iterations: Iterations in every call, at least 1.
        warmup_iterations: At most this many iterations more, as long as the estimate still grows: on the first call,
            after weights were loaded, after a large update. 0 switches this off.
        tolerance: The estimate still grows while half an iteration adds more than this to it, relatively. A growth g is
            a residual |A^T A v - sigma^2 v| of sqrt(2 g) sigma^2.
        perturbation: Relative size of the fixed random vector mixed into `u` at each call, by which a start orthogonal
            to the leading singular vector is escaped. It costs about its square in sigma. 0 switches this off.
        seed: An int to draw `u` reproducibly; None follows `tf.random.set_seed`, where that was called.

    Raises:
        ValueError: If an argument is out of its range, or the constraint is called on a scalar.

    Reference: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
    """

    # tf.train.Checkpoint is here as TensorFlow's public class of tracked objects: a layer tracks its constraint, which
    # tracks the vectors. Saved within others, it counts no saves; a counter of its own would break SavedModel.
    save_counter = None

    def __init__(
        self,
        value: float = 1.0,
        *,
        axis: int | Sequence[int] = -1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 5e-6,  # Adam at 1e-2, 32 x 32: sigma at most 0.4 % over its target; with 2e-4, 13 %
        perturbation: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        _require(_finite(value) and value > 0, "value", "a positive finite number", value)
        _require(_count(power_iterations, 1), "power_iterations", "an integer >= 1", power_iterations)
        _require(_count(warmup_iterations, 0), "warmup_iterations", "an integer >= 0", warmup_iterations)
        _require(_finite(tolerance) and tolerance > 0, "tolerance", "a positive finite number", tolerance)
        _require(_finite(perturbation) and 0 <= perturbation < 1, "perturbation", "in [0, 1)", perturbation)
        _require(seed is None or _count(seed, 0), "seed", "None or an integer >= 0", seed)
        self.value = float(value)
        self.axis = axis if isinstance(axis, int) else tuple(axis)
        self.power_iterations = power_iterations
        self.warmup_iterations = warmup_iterations
        self.tolerance = float(tolerance)
        self.perturbation = float(perturbation)
        self.seed = seed
        self._drawn = 0

    def __call__(self, w: Any) -> Any:
        """Return `value * w / sigma(w)` as a tensor of `w`'s shape and dtype, and move `u` if `w` is a variable."""
        # read_value: what the update before this call wrote. With a caching device, a plain read is older than that.
        kernel = w.read_value() if isinstance(w, tf.Variable) else tf.convert_to_tensor(w)
        dtype = kernel.dtype if kernel.dtype == tf.float64 else tf.float32
        matrix = _matrix(tf.cast(kernel, dtype), self.axis)
        size = matrix.shape.as_list()[1]
        if isinstance(w, tf.Variable):
            vector = self._vector(w, size, dtype)
            u, sigma = self._estimate(matrix, _read(vector))
            moved = vector.assign(u)
        else:
            moved = sigma = self._estimate(matrix, self._draw(size, dtype))[1]
        with tf.control_dependencies([moved]):
            factor = tf.where(sigma > 0, self.value / sigma, tf.ones_like(sigma))
            return tf.cast(tf.cast(kernel, dtype) * factor, kernel.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return `__init__`'s arguments, as JSON values."""
        return {
            "value": self.value,
            "axis": self.axis if isinstance(self.axis, int) else list(self.axis),
            "power_iterations": self.power_iterations,
            "warmup_iterations": self.warmup_iterations,
            "tolerance": self.tolerance,
            "perturbation": self.perturbation,
            "seed": self.seed,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # The vectors belong to kernels, which a copy does not have.
        return functools.partial(type(self), **self.get_config()), ()

    def _estimate(self, matrix: Any, start: Any) -> tuple[Any, Any]:
        """Return the moved unit vector and sigma; the vector is `start` where the result is zero or not finite."""
        size = matrix.shape.as_list()[1]
        noise = np.random.default_rng(size).standard_normal(size)
        noise *= self.perturbation / np.linalg.norm(noise)
        begun, _ = _unit(_unit(start)[0] + tf.constant(noise, start.dtype))
        u, sigma = _power_iteration(matrix, begun, self.power_iterations, self.warmup_iterations, self.tolerance)
        usable = (sigma > 0) & tf.reduce_all(tf.math.is_finite(u))
        return tf.where(usable, u, start), sigma

    def _vector(self, kernel: Any, size: int, dtype: Any) -> Any:
        """Return the variable `u` of `kernel`, making it on the first call."""
        vector = getattr(kernel, _ATTRIBUTE, None)
        if vector is None:
            # init_scope: out of the traced function or the branch of control flow in which the optimizer may run.
            # tf.compat.v1.Variable, not get_variable: no variable scope and no `reuse` has a say in it.
            with tf.init_scope(), tf.name_scope(kernel.name.partition(":")[0] + "/"):
                start = self._draw(size, dtype)
                vector = tf.compat.v1.Variable(start, trainable=False, name="u", use_resource=True)
                if tf.executing_eagerly():  # tracked by order and size: a file of another model can never clash
                    setattr(self, f"u{self._drawn - 1}_{size}", vector)
            setattr(kernel, _ATTRIBUTE, vector)
        return vector

    def _draw(self, size: int, dtype: Any) -> Any:
        """Return an isotropic random unit vector, another one at each call."""
        graph_seed, op_seed = tf.compat.v1.random.get_seed(self.seed)
        generator = np.random.default_rng(None if graph_seed is None else (graph_seed, op_seed, self._drawn))
        self._drawn += 1
        return _unit(tf.constant(generator.standard_normal(size), dtype))[0]


def _power_iteration(matrix: Any, u: Any, steps: int, more: int, tolerance: float) -> tuple[Any, Any]:
    """Return u after `steps` iterations, up to `more` further ones while sigma grows, and the last sigma."""

    def iterate(done: Any, u: Any, sigma: Any, growth: Any) -> tuple[Any, ...]:
        v, before = _unit(tf.linalg.matvec(matrix, u))
        u, sigma = _unit(tf.linalg.matvec(matrix, v, transpose_a=True))
        # `sigma` is never below `before`, and equal at a singular vector: the gain is known without a third pass.
        return done + 1, u, sigma, tf.math.divide_no_nan(sigma, before) - 1

    def unsettled(done: Any, u: Any, sigma: Any, growth: Any) -> Any:
        return (done < steps) | ((done < steps + more) & (growth > tolerance))

    zero = tf.zeros([], matrix.dtype)
    _, u, sigma, _ = tf.while_loop(unsettled, iterate, (tf.constant(0), u, zero, zero))
    return u, sigma


def _read(vector: Any) -> Any:
    """Return the value of `vector`; its initial value where a v1 session has not initialized it."""
    if tf.compat.v1.executing_eagerly_outside_functions():
        return vector.read_value()
    known = tf.compat.v1.is_variable_initialized(vector)
    return tf.cond(known, vector.read_value, lambda: tf.identity(vector.initial_value))


def _matrix(kernel: Any, axis: int | Sequence[int]) -> Any:
    """Return `kernel` as a matrix (inputs, outputs), the outputs being `axis`."""
    _require(kernel.shape.is_fully_defined(), "w", "a tensor whose shape is known", kernel)
    shape = kernel.shape.as_list()
    rank = len(shape)
    outputs = [a % rank for a in np.atleast_1d(axis).tolist() if -rank <= a < rank]
    valid = len(set(outputs)) == np.size(axis) > 0
    _require(valid, "axis", f"one or more axes of the kernel, whose shape is {shape}", axis)
    order = [a for a in range(rank) if a not in outputs] + outputs
    if order != list(range(rank)):
        kernel = tf.transpose(kernel, order)
    return tf.reshape(kernel, (-1, math.prod(shape[a] for a in outputs)))


def _unit(x: Any) -> tuple[Any, Any]:
    """Return `x` with Euclidean norm 1, or zero if it is zero, and the norm it had."""
    # Divided by the largest entry before squaring: neither 1e-30 nor 1e+30 leaves the range of float32.
    largest = tf.reduce_max(tf.abs(x))
    scaled = tf.math.divide_no_nan(x, largest)
    length = tf.norm(scaled)
    return tf.math.divide_no_nan(scaled, length), largest * length


def _finite(x: Any) -> bool:
    return isinstance(x, (int, float, np.number)) and not isinstance(x, bool) and math.isfinite(x)


def _count(x: Any, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= least


def _require(condition: bool, name: str, what: str, received: Any) -> None:
    if not condition:
        raise ValueError(f"Argument `{name}` must be {what}. Received: {name}={received}")
