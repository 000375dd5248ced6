"""The Keras constraints: pure functions with state, `(kernel, state) -> (kernel, state)`.

Keras applies a constraint after each optimizer update. Its state, the vector `u` of the power iteration, is an
optimizer variable (`opnorm.slots`): `u` is to the constraint what momentum is to Adam.
"""

import random
import warnings
from abc import abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from inspect import signature
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from opnorm.checks import require, require_axis, require_count, require_positive
from opnorm.iterations import TINY, Tensor, random_direction, settled_power_iteration
from opnorm.matrices import Axis, state_shape, to_matrix

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Slot(Protocol):
    """The place of one kernel's state while an optimizer applies an update."""

    def run(self, update: Update, kernel: Any) -> Tensor:
        """Return the kernel that `update` makes of `kernel` and the state, and store the new state."""


def _no_slot(kernel: Any) -> Slot | None:
    return None


# `opnorm.slots` sets it while an optimizer applies an update.
find_slot: ContextVar[Callable[[Any], Slot | None]] = ContextVar("find_slot", default=_no_slot)

_CONVERGED = 2e-7  # float32's resolution: half a step gains less, so the true norm is above by < sqrt(2e-7 / 2) = 3e-4
_CONVERGED_STEPS = 2000  # more would not help: only singular values equal to the first digits need as many


class SpectralConstraint(keras.constraints.Constraint):
    """Abstract: multiplies a kernel by `scale(sigma)`, sigma an estimate from below of its spectral norm."""

    def __init__(
        self,
        *,
        operator: str,
        axis: Axis,
        groups: int,
        power_iterations: int,
        warmup_iterations: int,
        tolerance: float,
        perturbation: float,
        seed: int | None,
    ) -> None:
        require(operator == "matrix", "operator", "must be 'matrix'", operator)
        require_count("groups", groups, 1)
        require_count("power_iterations", power_iterations, 1)
        require_count("warmup_iterations", warmup_iterations, 0)
        require_positive("tolerance", tolerance)
        require(0 <= perturbation < 1, "perturbation", "must be at least 0 and below 1", perturbation)
        if seed is not None:
            require_count("seed", seed, 0)
        self.operator = operator
        self.axis = require_axis(axis)
        self.groups = int(groups)  # a NumPy number would be no JSON
        self.power_iterations = int(power_iterations)
        self.warmup_iterations = int(warmup_iterations)
        self.tolerance = float(tolerance)
        self.perturbation = float(perturbation)
        self.seed = None if seed is None else int(seed)
        self._start = random.randrange(2**31) if seed is None else int(seed)  # follows keras.utils.set_random_seed
        self._warned = False

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """Return the factor for a kernel whose norm is `sigma`; 1 where `sigma` is zero."""

    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray:
        """Return a first `u` for `kernel`: drawn isotropically, unit length, float32.

        Args:
            kernel: An array, tensor or variable; only its shape is read.
            index: Kernels with different indices get different vectors.
        """
        return random_direction(state_shape(tuple(kernel.shape), self.axis, self.groups), (self._start, index))

    def update(self, kernel: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the constrained kernel and the next state; pure, so it serves any training loop.

        Args:
            kernel: A tensor or variable, after the optimizer's update.
            state: What `initial_state` or the last `update` returned.
        """
        return self._apply(kernel, state, self.warmup_iterations, self.tolerance)

    def project(self, kernel: Tensor) -> Tensor:
        """Return the constrained kernel, its norm found to convergence from a fresh start."""
        return self._apply(kernel, self.initial_state(kernel), _CONVERGED_STEPS, _CONVERGED)[0]

    def __call__(self, w: Any) -> Tensor:
        """Return the constrained kernel, and advance its state where an optimizer holds one."""
        slot = find_slot.get()(w)
        if slot is not None:
            return slot.run(self.update, w)
        if isinstance(w, keras.Variable):
            self._warn_once(w)
        return self.project(w)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; JSON-serializable."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def _apply(self, kernel: Tensor, state: Tensor, extra_steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
        kernel = ops.stop_gradient(ops.convert_to_tensor(kernel))  # a projection is no part of the loss: record nothing
        wide = kernel if _dtype(kernel) == "float64" else ops.cast(kernel, "float32")
        estimate = settled_power_iteration(
            to_matrix(ops.cast(wide, "float32"), self.axis, self.groups),
            ops.convert_to_tensor(state, dtype="float32"),
            self.power_iterations,
            extra_steps,
            tolerance,
            self.perturbation,
        )
        factor = ops.cast(self.scale(ops.max(estimate.sigma)), _dtype(wide))
        return ops.cast(wide * factor, _dtype(kernel)), estimate.u

    def _warn_once(self, kernel: Any) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"No optimizer state for the constraint {type(self).__name__} of '{kernel.path}': the norm is found from a "
            "fresh start at every update, which is correct but slow. Remedy: attach the constraint and `import opnorm` "
            "before the optimizer is built, and let the optimizer's own `build` and `apply` call `super()`.",
            stacklevel=4,
        )


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
        operator: `"matrix"`.
        axis: The output axis or axes of the kernel, an int or a tuple of ints.
        groups: The number of diagonal blocks, consecutive along the output axes; the norm is the largest of theirs.
            For a depthwise kernel `(*spatial, channels, multiplier)`: `axis=(-2, -1), groups=channels`.
        power_iterations: Iterations in every update, at least 1.
        warmup_iterations: At most so many more in an update where sigma still moves: a cold start, newly loaded
            weights, a spike. 0 switches them off.
        tolerance: Sigma still moves while half an iteration raises it by more than this, relative.
        perturbation: Relative size of a fixed random vector that is mixed into `u`, so that a `u` orthogonal to the
            leading singular vector escapes; it costs about its square in sigma. 0 switches it off.
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
        groups: int = 1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 1e-4,
        perturbation: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        require_positive("value", value)
        super().__init__(
            operator=operator,
            axis=axis,
            groups=groups,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            seed=seed,
        )
        self.value = float(value)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return `value / sigma`."""
        return ops.where(sigma > self.value * TINY, self.value / ops.maximum(sigma, TINY), 1.0)


@keras.saving.register_keras_serializable("opnorm")
class MaxSpectralNorm(SpectralConstraint):
    """Constrains a kernel to spectral norm at most `max_value`: W <- W / max(1, sigma / max_value).

    A kernel inside the ball is left bit for bit as it is. Everything else is as in `SpectralNorm`.

    Args:
        max_value: The largest norm allowed, positive.
        operator: See `SpectralNorm`; so are `axis`, `groups`, `power_iterations`, `warmup_iterations`, `tolerance`,
            `perturbation` and `seed`.

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
        groups: int = 1,
        power_iterations: int = 1,
        warmup_iterations: int = 100,
        tolerance: float = 1e-4,
        perturbation: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        require_positive("max_value", max_value)
        super().__init__(
            operator=operator,
            axis=axis,
            groups=groups,
            power_iterations=power_iterations,
            warmup_iterations=warmup_iterations,
            tolerance=tolerance,
            perturbation=perturbation,
            seed=seed,
        )
        self.max_value = float(max_value)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return `min(1, max_value / sigma)`."""
        return ops.where(sigma > self.max_value, self.max_value / ops.maximum(sigma, TINY), 1.0)


def _dtype(x: Tensor) -> str:
    return str(keras.backend.standardize_dtype(x.dtype))
