"""The Keras constraints that scale a kernel by its spectral norm, estimated by power iteration."""

import random
from abc import abstractmethod
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from opnorm.backends.compiled import compiled_once
from opnorm.backends.primitives import TINY, Tensor, where
from opnorm.checks import to_axis, to_count, to_counts, to_fraction, to_operator, to_positive
from opnorm.iterations.frequencies import Strides, convolution_shape, start_shape, survey
from opnorm.iterations.matrices import Axis, matrix_maps, output_shape, to_matrix
from opnorm.iterations.power import CONVERGED, Effort, random_directions, settled_power_iteration
from opnorm.iterations.subspace import settled_pair_iteration
from opnorm.keras.base import OperatorConstraint


class SpectralConstraint(OperatorConstraint):
    """Abstract: multiplies a kernel by `scale(sigma)`, sigma an estimate from below of its spectral norm."""

    def __init__(
        self,
        *,
        operator: str,
        axis: Axis,
        strides: Strides,
        groups: int,
        power_iterations: int,
        warmup_iterations: int,
        tolerance: float,
        perturbation: float,
        companion: bool,
        seed: int | None,
    ) -> None:
        self.axis = to_axis("axis", axis)
        self.operator = to_operator(operator, self.axis)
        self.strides = to_counts("strides", strides, 1)
        self.groups = to_count("groups", groups, 1)
        self.power_iterations = to_count("power_iterations", power_iterations, 1)
        self.warmup_iterations = to_count("warmup_iterations", warmup_iterations, 0)
        self.tolerance = to_positive("tolerance", tolerance)
        self.perturbation = to_fraction("perturbation", perturbation)
        self.companion = bool(companion)
        self.seed = seed if seed is None else to_count("seed", seed, 0)
        self._start = random.randrange(2**31) if self.seed is None else self.seed  # follows keras.utils.set_random_seed

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """Return the factor for a kernel whose norm is `sigma`; 1 where `sigma` is zero."""

    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray:
        """Return the first vectors for `kernel`: drawn isotropically, unit length, float32.

        They are `u` and, unless the constraint does without, its companion: shape `(2, columns)`, `(1, columns)`
        without a companion or for a single column, with an axis of `groups` before the last where there are several.
        For a convolution: one complex `u` for each group and frequency, `(1, groups * frequencies, 2 * columns)`.

        Args:
            kernel: An array, tensor or variable; only its shape is read.
            index: Kernels with different indices get different vectors.
        """
        if self.operator == "convolution":
            shape = start_shape(convolution_shape(tuple(kernel.shape), self.axis), self.strides, self.groups)
            return random_directions((1, *shape), (self._start, index))
        shape = output_shape(tuple(kernel.shape), self.axis, self.groups)
        vectors = 2 if self.companion and shape[-1] > 1 else 1
        return random_directions((vectors, *shape), (self._start, index))

    def update(self, kernel: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the constrained kernel and the next state; pure, so it serves any training loop."""
        return self._apply(kernel, state, Effort(self.warmup_iterations, self.tolerance, climbs=1))

    def project(self, kernel: Tensor) -> Tensor:
        """Return the constrained kernel, its norm found to convergence from a fresh start."""
        return self._apply(kernel, self.initial_state(kernel), CONVERGED)[0]

    def _apply(self, kernel: Tensor, state: Tensor, effort: Effort) -> tuple[Tensor, Tensor]:
        kernel = ops.stop_gradient(ops.convert_to_tensor(kernel))  # a projection is no part of the loss: record nothing
        state = ops.convert_to_tensor(state, dtype="float32")
        constrained, state = _constrained(self, kernel, state, effort)
        return constrained, state


@compiled_once(static_argnums=(0, 3))
def _constrained(
    constraint: SpectralConstraint, kernel: Tensor, state: Tensor, effort: Effort
) -> tuple[Tensor, Tensor]:
    wide = kernel if _dtype(kernel) == "float64" else ops.cast(kernel, "float32")
    sigma, state = _norm(constraint, ops.cast(wide, "float32"), state, effort)
    factor = ops.cast(constraint.scale(sigma), _dtype(wide))
    return ops.cast(wide * factor, _dtype(kernel)), state


def _norm(constraint: SpectralConstraint, kernel: Tensor, state: Tensor, effort: Effort) -> tuple[Tensor, Tensor]:
    search = partial(
        settled_pair_iteration if constraint.operator == "matrix" else settled_power_iteration,
        steps=constraint.power_iterations,
        extra_steps=effort.extra_steps,
        tolerance=effort.tolerance,
        perturbation=constraint.perturbation,
    )
    if constraint.operator == "convolution":
        kernel = ops.reshape(kernel, convolution_shape(tuple(kernel.shape), constraint.axis))
        found = survey(kernel, constraint.strides, constraint.groups, search, state, effort.climbs)
        return ops.max(found.sigma), found.vectors
    estimate = search(matrix_maps(to_matrix(kernel, constraint.axis, constraint.groups)), state)
    return ops.max(estimate.sigma), estimate.vectors


@keras.saving.register_keras_serializable("opnorm")
class SpectralNorm(SpectralConstraint):
    """Constrains a kernel to spectral norm `value`: W <- value * W / sigma, after every optimizer update.

    The norm is that of the kernel reshaped to `(-1, kernel.shape[-1])`, the matrix that `Dense` and `Embedding` apply.
    For transposed, depthwise, grouped and einsum kernels the layer's matrix is another one: say so by `axis` and
    `groups`. A smaller norm is scaled up to `value` too; see `MaxSpectralNorm` for a cap. A zero kernel stays zero.
    A one-dimensional weight is a row vector, whose spectral norm is its Euclidean norm, found exactly.

    Each kernel has its own vector `u`, an optimizer variable: it is saved, restored, sharded and mirrored with the
    optimizer, and one instance may serve many kernels. Sigma is an estimate from below. It is computed in float32
    whatever the kernel's dtype.

    Args:
        value: The target norm, positive.
        operator: `"matrix"`; or `"convolution"`: the norm of the sliding operator with zero padding ("same", "valid",
            "causal"), for every image size and dilation, by one power iteration at each frequency of a grid. It serves
            transposed convolutions too. Sigma is below the true norm: by at most 0.5 % on 41 of the 42 kernels measured
            and 1.3 % on one; once the iteration has converged it is proved to be within a factor of 1.036 of it in 1-D,
            1.072 in 2-D, 1.110 in 3-D.
        axis: The output axis or axes of the kernel, an int or a tuple of ints.
        strides: The layer's, for `"convolution"` only: an int or one for each spatial axis. With strides and dilation
            both above 1 leave it at 1, which bounds the norm from above.
        groups: The number of diagonal blocks, consecutive along the output axes in the order of `axis`; the norm is the
            largest of theirs. A depthwise kernel, `(*spatial, channels, multiplier)`, has
            `axis=(-2, -1), groups=channels`, for either operator.
        power_iterations: Iterations in every update, at least 1.
        warmup_iterations: At most so many more in an update where sigma still moves: a cold start, newly loaded
            weights, a spike. 0 switches them off.
        tolerance: Sigma still moves while half an iteration raises it by more than this, relative.
        perturbation: Relative size of a fixed random vector that is mixed into `u`, so that a `u` orthogonal to the
            leading singular vector escapes; it costs about its square in sigma. 0 switches it off.
        companion: Whether a second vector follows the second singular value, so that one that overtakes the first is
            seen at once, not many updates later.
        seed: Seeds the first `u`. By default it follows `keras.utils.set_random_seed`.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_constraint=opnorm.SpectralNorm())

    Reference:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018.
    """

    def __init__(
        self,
        value: float = 1.0,
        *,
        operator: str = "matrix",
        axis: Axis = -1,
        strides: Strides = 1,
        groups: int = 1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 1e-4,
        perturbation: float = 1e-3,
        companion: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            operator=operator,
            axis=axis,
            strides=strides,
            groups=groups,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            companion=companion,
            seed=seed,
        )
        self.value = to_positive("value", value)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return `value / sigma`."""
        return where(sigma > self.value * TINY, self.value / (sigma + TINY), 1.0)


@keras.saving.register_keras_serializable("opnorm")
class MaxSpectralNorm(SpectralConstraint):
    """Constrains a kernel to spectral norm at most `max_value`: W <- W / max(1, sigma / max_value).

    A kernel inside the ball is left bit for bit as it is. Everything else is as in `SpectralNorm`.

    Args:
        max_value: The largest norm allowed, positive.
        operator: See `SpectralNorm`; so are `axis`, `strides`, `groups`, `power_iterations`, `warmup_iterations`,
            `tolerance`, `perturbation`, `companion` and `seed`.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_constraint=opnorm.MaxSpectralNorm(0.95))

    Reference:
        Gouk et al., Regularisation of Neural Networks by Enforcing Lipschitz Continuity, 2018.
    """

    def __init__(
        self,
        max_value: float = 1.0,
        *,
        operator: str = "matrix",
        axis: Axis = -1,
        strides: Strides = 1,
        groups: int = 1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 1e-4,
        perturbation: float = 1e-3,
        companion: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            operator=operator,
            axis=axis,
            strides=strides,
            groups=groups,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            companion=companion,
            seed=seed,
        )
        self.max_value = to_positive("max_value", max_value)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return `min(1, max_value / sigma)`."""
        return where(sigma > self.max_value, self.max_value / (sigma + TINY), 1.0)


def _dtype(x: Tensor) -> str:
    return str(keras.backend.standardize_dtype(x.dtype))
