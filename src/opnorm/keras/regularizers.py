"""The Keras penalty on a kernel's spectral norm."""

from functools import partial
from inspect import signature
from typing import Any

import keras
from keras import ops

from opnorm.backends.compiled import compiled_once
from opnorm.checks import require, to_axis, to_count, to_counts, to_not_negative
from opnorm.iterations.frequencies import Strides, start_shape
from opnorm.iterations.matrices import Axis, output_shape
from opnorm.iterations.power import Tensor, random_directions, settled_power_iteration
from opnorm.iterations.sigma import convolution_norm, matrix_norm
from opnorm.iterations.subspace import settled_subspace_iteration

_OPERATORS = "matrix", "convolution"
_CLIMBS = 3  # between the grid's frequencies; each is a loop of its own
_VECTORS = 8  # followed together: from a start that knows nothing of the kernel, far faster than one
_TOLERANCE = 1e-6  # ten float32 roundings: a settled vector's gain is noise of up to four


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
        require(operator in _OPERATORS, "operator", f"must be one of {_OPERATORS}", operator)
        self.strength = to_not_negative("strength", strength)
        self.operator = operator
        self.axis = to_axis("axis", axis)
        last = operator == "matrix" or self.axis in (-1, (-1,))
        require(last, "axis", "must be -1 with operator='convolution'", axis)
        self.strides = to_counts("strides", strides, 1)
        self.groups = to_count("groups", groups, 1)
        self.power_iterations = to_count("power_iterations", power_iterations, 1)
        self.seed = to_count("seed", seed, 0)

    def __call__(self, x: Any) -> Tensor:
        """Return the penalty, a float32 number; differentiable on every backend."""
        return 0.5 * self.strength * ops.square(_norm(self, ops.cast(ops.convert_to_tensor(x), "float32")))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; JSON-serializable."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}


@compiled_once(static_argnums=(0,))
def _norm(penalty: SpectralRegularizer, kernel: Tensor) -> Tensor:
    search = partial(
        settled_power_iteration if penalty.operator == "convolution" else settled_subspace_iteration,
        steps=1,
        extra_steps=penalty.power_iterations - 1,
        tolerance=_TOLERANCE,
        perturbation=0.0,  # the start is random anyway
    )
    shape = tuple(kernel.shape)
    if penalty.operator == "convolution":
        columns = start_shape(shape, penalty.strides, penalty.groups)
        start = ops.convert_to_tensor(random_directions((1, *columns), (penalty.seed,)))
        return convolution_norm(kernel, penalty.strides, penalty.groups, search, start, _CLIMBS)[0]
    outputs = output_shape(shape, penalty.axis, penalty.groups)
    start = ops.convert_to_tensor(random_directions((min(_VECTORS, outputs[-1]), *outputs), (penalty.seed,)))
    return matrix_norm(kernel, penalty.axis, penalty.groups, search, start)[0]
