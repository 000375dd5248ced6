"""Constraints of the spectral norm for TF1-style graph code and for tf_keras.

A constraint is called with the kernel only, by the optimizer, after each of its updates: in graph mode once for each
`minimize`, long after the loop that made the layers has ended. So the vector `u` belongs to the kernel that the call
receives, never to a name. Called on a kernel in the forward pass, as most TF1 code
does, a constraint has the gradient of what it returns. Nothing here imports Keras 3.
"""

import functools
import inspect
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from opnorm.arguments import KnownArguments
from opnorm.checks import require, require_norm, to_axis, to_count, to_fraction, to_norm, to_positive
from opnorm.iterations.clipping import clip_gradient
from opnorm.iterations.matrices import from_matrix, to_matrix
from opnorm.iterations.power import Search
from opnorm.rules import Clip, Operator, Rule, Scale, find, target_of, to_least, updated

__all__ = ["MaxSpectralNorm", "SpectralClip", "SpectralNorm"]

try:
    if not sys.modules.get("tf_keras"):
        _ = tf.compat.v1.layers.dense  # loads tf_keras when TensorFlow was told to use it, Keras 3 otherwise
    import tf_keras
except (AttributeError, ImportError, RecursionError) as error:  # the last: Keras has a backend that is missing
    raise ImportError(
        "`opnorm.tf1` found no legacy layers: `tf.compat.v1.layers` is missing in this process. "
        "Install tf_keras (`pip install tf_keras`) and set the environment variable TF_USE_LEGACY_KERAS=1 before "
        "tensorflow is imported (or `import tf_keras` before opnorm.tf1, if you use it by that name). "
        "With Keras 3, use `opnorm.SpectralNorm`."
    ) from error

_ATTRIBUTE = "_opnorm_u"  # of a kernel: its vectors by axis, which so live exactly as long as the kernel does


class _Constraint(KnownArguments, tf_keras.constraints.Constraint, tf.train.Checkpoint):
    """Abstract: a rule, called with a kernel."""

    # tf.train.Checkpoint is here as TensorFlow's public class of tracked objects: a layer tracks its constraint, which
    # tracks the vectors. Saved within others, it counts no saves; a counter of its own would break SavedModel.
    save_counter = None

    @property
    @abstractmethod
    def _rule(self) -> Rule:
        """What is done to a kernel."""

    @abstractmethod
    def _constrained(self, w: Any, kernel: Any) -> Any:
        """Return what becomes of `kernel`, the value of `w` in float32 or float64."""

    def __call__(self, w: Any) -> Any:
        """Return the constrained kernel, a tensor of `w`'s shape and dtype."""
        value = _value(w)
        if 0 in value.shape.as_list():  # no entries, no norm
            return value
        return tf.cast(self._constrained(w, _wide(value)), value.dtype)

    def _projected(self, w: Any) -> Any:
        """Return the kernel constrained from a fresh start and to convergence; no `u` is read or moved."""
        value, rule = _value(w), self._rule.converged
        if 0 in value.shape.as_list():
            return value
        kernel = _wide(value)
        start = rule.start(tuple(value.shape.as_list()), (0,))
        (result,), _ = updated([rule], [kernel], [None if start is None else tf.cast(start, kernel.dtype)])
        return tf.cast(result, value.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return `__init__`'s arguments, as JSON values."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def __repr__(self) -> str:
        arguments = inspect.signature(type(self)).parameters.values()
        values = {one.name: getattr(self, one.name, one.default) for one in arguments}  # asked before `__init__` ended
        shown = [f"{one.name}={values[one.name]!r}" for one in arguments if values[one.name] != one.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The vectors belong to kernels, which a copy does not have.
        return functools.partial(type(self), **self.get_config()), ()


class _Scaling(_Constraint):
    """Abstract: multiplies a kernel by a factor that depends on its spectral norm."""

    def __init__(
        self,
        *,
        axis: int | Sequence[int],
        power_iterations: int,
        warmup_iterations: int,
        tolerance: float,
        perturbation: float,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.axis = to_axis("axis", axis)
        self.power_iterations = to_count("power_iterations", power_iterations, 1)
        self.warmup_iterations = to_count("warmup_iterations", warmup_iterations, 0)
        self.tolerance = to_positive("tolerance", tolerance)
        self.perturbation = to_fraction("perturbation", perturbation)
        self.seed = seed if seed is None else to_count("seed", seed, 0)
        self._drawn = 0

    @property
    @abstractmethod
    def _target(self) -> tuple[float | str, bool]:
        """The norm, and whether a smaller one is left alone."""

    @property
    def _rule(self) -> Scale:
        search = Search(self.power_iterations, self.warmup_iterations, self.tolerance, self.perturbation)
        norm, cap = self._target
        size, rms, _ = target_of(norm)
        return Scale(size, cap, Operator(axis=self.axis), search, companion=False, rms=rms)

    def _constrained(self, w: Any, kernel: Any) -> Any:
        size = int(np.prod(self._rule.start(tuple(kernel.shape.as_list()), (0,)).shape))
        vector = self._vector(w, size, kernel.dtype) if isinstance(w, tf.Variable) else None
        start = self._draw(size, kernel.dtype) if vector is None else _read(vector)
        (factor,), (following,) = find([self._rule], [kernel], [_direction(start)])
        kept = tf.where(tf.reduce_all(tf.math.is_finite(kernel)), following[0], start)
        with tf.control_dependencies([factor if vector is None else vector.assign(kept)]):
            return kernel * self._with_gradient(tf.identity(factor), kernel, following)

    def _with_gradient(self, factor: Any, kernel: Any, u: Any) -> Any:
        # |W u|, u held fixed, has sigma's derivative v u^T; its value divides out.
        matrix = tf.reshape(to_matrix(kernel, self.axis, 1), (-1, u.shape[-1]))
        image = tf.linalg.matvec(matrix, tf.stop_gradient(u[0]))
        scale = tf.stop_gradient(tf.reduce_max(abs(image)))
        lengths = tf.reduce_sum((image / tf.where(scale > 0, scale, tf.ones_like(scale))) ** 2)
        _, cap = self._target
        moves = (lengths > 0) & ((factor < 1.0) if cap else True)  # inside the ball the factor is 1, whatever sigma
        size = tf.where(moves, lengths, tf.ones_like(lengths)) ** 0.5
        return factor * tf.stop_gradient(size) / size

    def _vector(self, kernel: Any, size: int, dtype: Any) -> Any:
        """Return the variable `u` of `kernel`, making it on the first call."""
        vectors = getattr(kernel, _ATTRIBUTE, {})
        if self.axis not in vectors:
            # init_scope: out of the traced function or the branch of control flow in which the optimizer may run.
            # tf.compat.v1.Variable, not get_variable: no variable scope and no `reuse` has a say in it.
            with tf.init_scope(), tf.name_scope(kernel.name.partition(":")[0] + "/"):
                start = self._draw(size, dtype)
                vector = tf.compat.v1.Variable(start, trainable=False, name="u", use_resource=True)
                if tf.executing_eagerly():  # tracked by order and size: a file of another model can never clash
                    setattr(self, f"u{self._drawn - 1}_{size}", vector)
            vectors = {**vectors, self.axis: vector}
            setattr(kernel, _ATTRIBUTE, vectors)
        return vectors[self.axis]

    def _draw(self, size: int, dtype: Any) -> Any:
        """Return an isotropic random unit vector, another one at each call."""
        graph_seed, op_seed = tf.compat.v1.random.get_seed(self.seed)
        generator = np.random.default_rng(None if graph_seed is None else (graph_seed, op_seed, self._drawn))
        self._drawn += 1
        drawn = generator.standard_normal(size)
        return tf.constant(drawn / np.linalg.norm(drawn), dtype)


@tf_keras.utils.register_keras_serializable(package="opnorm")
class SpectralNorm(_Scaling):
    """Return the kernel scaled so that its spectral norm is `value`: W <- value * W / sigma.

    One object may serve any number of kernels. Each has a vector `u` of its own, a non-trainable variable drawn
    isotropically when the constraint is first applied, moved by power iteration in every training step. In
    graph mode it is a global variable named after the kernel (`dense/kernel/u`), so that `global_variables_initializer`
    and `Saver` include it; in eager mode it is part of every TensorFlow checkpoint of the layer.

    The norm is that of the kernel reshaped to `(-1, kernel.shape[-1])`, computed in float32 (float64 for a float64
    kernel). A zero kernel stays zero. A kernel that is not finite stays so, and leaves `u` alone.

    In the forward pass, `tf.matmul(x, constraint(w))`, the gradient goes through sigma; every evaluation moves `u`.

        >>> kernel = opnorm.tf1.SpectralNorm(2.0)(tf.linalg.diag([3.0, 1.0]))
        >>> print(kernel.numpy().max().round(3))
        2.0

    Args:
        value: The spectral norm of the constrained kernel: positive and finite; or `"rms"` for sqrt(out / in),
            `"0.5 rms"` for half of it.
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

    def __init__(
        self,
        value: float | str = 1.0,
        *,
        axis: int | Sequence[int] = -1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 5e-6,  # Adam at 1e-2, 32 x 32: sigma at most 0.4 % over its target; with 2e-4, 13 %
        perturbation: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            axis=axis,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            seed=seed,
        )
        self.value = _to_norm("value", value)

    @property
    def _target(self) -> tuple[float | str, bool]:
        return self.value, False


@tf_keras.utils.register_keras_serializable(package="opnorm")
class MaxSpectralNorm(_Scaling):
    """Return the kernel with spectral norm at most `max_value`: W <- W / max(1, sigma / max_value).

    A kernel inside the ball is left bit for bit as it is. Everything else is as in `SpectralNorm`.

    Args:
        max_value: The largest spectral norm allowed, given as the `value` of `SpectralNorm`.
        axis: See `SpectralNorm`; so are `power_iterations`, `warmup_iterations`, `tolerance`, `perturbation`, `seed`.

    Reference: Gouk et al., "Regularisation of Neural Networks by Enforcing Lipschitz Continuity", 2018.
    """

    def __init__(
        self,
        max_value: float | str = 1.0,
        *,
        axis: int | Sequence[int] = -1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 5e-6,
        perturbation: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            axis=axis,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            seed=seed,
        )
        self.max_value = _to_norm("max_value", max_value)

    @property
    def _target(self) -> tuple[float | str, bool]:
        return self.max_value, True


@tf_keras.utils.register_keras_serializable(package="opnorm")
class SpectralClip(_Constraint):
    """Return the kernel with its singular values clipped: W = U S V^T <- U min(S, max_value) V^T.

    It is the nearest kernel with spectral norm at most `max_value`, exact within 1e-4 in float32. A kernel inside the
    ball is left bit for bit as it is. There is no vector and nothing to save. In the forward pass the gradient is that
    of the clipped kernel, by a singular value decomposition in the backward pass.

    Args:
        max_value: The largest singular value allowed, given as the `value` of `SpectralNorm`.
        axis: The kernel's output axes; see `SpectralNorm`.
        min_value: Singular values below it are raised to it, as far as the rank allows, those above a thousandth of the
            largest within 1e-3. At most `max_value`, and in its unit.
    """

    def __init__(
        self, max_value: float | str = 1.0, *, axis: int | Sequence[int] = -1, min_value: float | str = 0.0
    ) -> None:
        super().__init__()
        self.max_value = _to_norm("max_value", max_value)
        self.axis = to_axis("axis", axis)
        self.min_value = to_least(min_value, self.max_value, "matrix", 0.0)

    @property
    def _rule(self) -> Clip:
        size, rms, _ = target_of(self.max_value)
        return Clip(size, Operator(axis=self.axis), min_value=target_of(self.min_value).size, rms=rms)

    def _constrained(self, w: Any, kernel: Any) -> Any:
        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def clipped(kernel: Any) -> Any:
            return updated([self._rule], [kernel], [None])[0][0], functools.partial(self._gradient, kernel)

        return clipped(kernel)

    def _gradient(self, kernel: Any, upstream: Any) -> Any:
        matrix, cotangent = (to_matrix(x, self.axis, 1)[:, 0] for x in (kernel, upstream))
        most, least = self._rule.ends(kernel)
        gradient = clip_gradient(matrix, most, cotangent, least)
        return from_matrix(gradient[:, None], tuple(kernel.shape.as_list()), self.axis)


def _to_norm(name: str, value: Any) -> float | str:
    """Return a norm as one writes it down; raise unless it is a positive number, or one times sqrt(out / in)."""
    require_norm(name, value, "must be a positive finite number, or such as 'rms' or '0.5 rms'")
    return str(to_norm(name, value)) if isinstance(value, str) and "rms" in value else to_positive(name, value)


def _value(w: Any) -> Any:
    # read_value: what the update before this call wrote. With a caching device, a plain read is older than that.
    try:
        value = w.read_value() if isinstance(w, tf.Variable) else tf.convert_to_tensor(w)
    except (TypeError, ValueError):
        value = None
    require(value is not None, "w", "must be a variable or tensor; a layer takes `kernel_constraint=`", w)
    require(value.dtype.is_floating, "w", "must be real and floating point", value.dtype.name)
    require(value.shape.is_fully_defined(), "w", "must be a tensor whose shape is known", value)
    return value


def _wide(value: Any) -> Any:
    return tf.cast(value, value.dtype if value.dtype == tf.float64 else tf.float32)


def _direction(vector: Any) -> Any:
    """Return `vector` as a stack of one, of a size whose square is in range."""
    largest = tf.reduce_max(abs(vector))
    return tf.math.divide_no_nan(vector, largest)[None]


def _read(vector: Any) -> Any:
    """Return the value of `vector`; its initial value where a v1 session has not initialized it."""
    if tf.compat.v1.executing_eagerly_outside_functions():
        return vector.read_value()
    known = tf.compat.v1.is_variable_initialized(vector)
    return tf.cond(known, vector.read_value, lambda: tf.identity(vector.initial_value))


def _finalize(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def finalize_variable_values(self: Any, var_list: Sequence[Any]) -> None:
        original(self, var_list)
        if self.use_ema:  # the averages that replaced the kernels were taken before the constraint acted
            for variable in var_list:
                if isinstance(variable.constraint, _Constraint):
                    variable.assign(variable.constraint._projected(variable))

    return finalize_variable_values


# Public, and called by `fit` at its end: the one place where tf_keras changes kernels and applies no constraint.
_Optimizer = tf_keras.optimizers.Optimizer
_Optimizer.finalize_variable_values = _finalize(_Optimizer.finalize_variable_values)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
