"""The Keras penalty on a kernel's spectral norm."""

from inspect import signature
from typing import Any

import keras
from keras import ops

from opnorm.backends import Tensor
from opnorm.checks import require, to_axis, to_count, to_counts, to_not_negative, to_operator
from opnorm.iterations.frequencies import Strides
from opnorm.iterations.matrices import Axis
from opnorm.keras.base import is_empty, real_tensor
from opnorm.rules import Normalizer
from opnorm.showing import written


@keras.saving.register_keras_serializable("opnorm")
class SpectralRegularizer(keras.regularizers.Regularizer):
    """Adds `strength / 2 * sigma**2` to the loss, sigma an estimate from below of the kernel's spectral norm.

    The gradient is `strength * sigma * v u^T`, with u and v held fixed: that of the penalty, where the largest singular
    value is simple and the iteration has converged. It is never far off: if sigma is within e of the norm, v u^T is an
    e-subgradient of it. A zero kernel has zero penalty and zero gradient. It is computed in float32 whatever the
    kernel's dtype: above a norm of 1e19 the penalty is infinite, its gradient is still right.

    Keras gives a penalty no place to keep `u`, and on JAX not even the variable, only its value. So each call starts
    from the same vector and iterates until sigma settles, where a constraint needs one iteration: cheap for kernels up
    to a few hundred columns, not free. To hold a norm, prefer `SpectralNorm` or `MaxSpectralNorm`.

    Args:
        strength: Of the penalty, at least 0.
        operator: `"matrix"`: the kernel reshaped to `(-1, columns)`; or `"convolution"`: the norm of the sliding
            operator with zero padding, see `opnorm.SpectralNorm`, as are `axis`, `strides` and `groups`.
        axis: The output axis or axes of the kernel.
        strides: The layer's, for `"convolution"` only.
        groups: The number of diagonal blocks; the norm is the largest of theirs.
        power_iterations: At most so many in each call, fewer once sigma has settled; for a convolution, on the grid and
            in each of three searches between its points.
        seed: Seeds the start vector.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_regularizer=opnorm.SpectralRegularizer(0.01))

    Reference:
        Yoshida and Miyato, Spectral Norm Regularization for Improving the Generalizability of Deep Learning, 2017.
    """

    def __init__(
        self,
        strength: float = 0.01,
        *,
        operator: str = "matrix",
        axis: Axis = -1,
        strides: Strides = 1,
        groups: int = 1,
        power_iterations: int = 30,
        seed: int = 0,
    ) -> None:
        self.strength = to_not_negative("strength", strength)
        self.axis = to_axis("axis", axis)
        self.operator = to_operator(operator, self.axis)
        last = operator == "matrix" or self.axis in (-1, (-1,))
        require(last, "axis", "must be -1 with operator='convolution'", axis)
        self.strides = to_counts("strides", strides, 1)
        self.groups = to_count("groups", groups, 1)
        self.power_iterations = to_count("power_iterations", power_iterations, 1)
        self.seed = to_count("seed", seed, 0)

    def __call__(self, x: Any) -> Tensor:
        """Return the penalty, a number of the kernel's dtype; differentiable on every backend."""
        must = "must be a constraint such as `opnorm.SpectralNorm()`; a penalty is given as `kernel_regularizer=`"
        require(getattr(x, "constraint", None) is not self, "kernel_constraint", must, self)
        kernel = real_tensor(x)
        if is_empty(kernel):
            return ops.zeros((), kernel.dtype)
        normalizer = self._normalizer
        start = ops.convert_to_tensor(normalizer.start(tuple(kernel.shape), (self.seed,)))
        sigma, _ = normalizer.norm(kernel, start)
        return ops.cast(0.5 * self.strength * ops.square(sigma), kernel.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; JSON-serializable."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def __repr__(self) -> str:
        return written(self)

    @property
    def _normalizer(self) -> Normalizer:
        return Normalizer(
            value=1.0,
            cap=False,
            vectors=8,  # followed together: from a start that knows nothing of the kernel, far faster than one
            power_iterations=1,
            warmup_iterations=self.power_iterations - 1,
            tolerance=1e-6,  # ten float32 roundings: a settled vector's gain is noise of up to four
            perturbation=0.0,  # the start is random anyway
            operator=self.operator,
            axis=self.axis,
            strides=self.strides,
            groups=self.groups,
        )
