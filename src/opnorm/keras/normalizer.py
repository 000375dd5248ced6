"""The factor that brings a kernel to a spectral norm, differentiable in the kernel."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from opnorm.backends.compiled import compiled_once
from opnorm.backends.primitives import TINY, Tensor, where
from opnorm.iterations.frequencies import Strides, convolution_shape, start_shape
from opnorm.iterations.matrices import Axis, output_shape
from opnorm.iterations.power import random_directions, settled_power_iteration
from opnorm.iterations.sigma import convolution_norm, matrix_norm
from opnorm.iterations.subspace import settled_subspace_iteration


class Normalizer(NamedTuple):
    """How a kernel's norm is found, and what it is brought to; the words are those of `SpectralNormalization`."""

    value: float
    cap: bool
    vectors: int
    power_iterations: int
    warmup_iterations: int
    tolerance: float
    perturbation: float
    operator: str = "matrix"
    axis: Axis = -1
    strides: Strides = 1
    groups: int = 1

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
        """Return the first vectors for a kernel of `shape`: `(count, *columns)`, isotropic, unit length, float32."""
        if self.operator == "convolution":
            columns = start_shape(convolution_shape(shape, self.axis), self.strides, self.groups)
            return random_directions((1, *columns), seed)
        columns = output_shape(shape, self.axis, self.groups)
        return random_directions((min(self.vectors, columns[-1]), *columns), seed)

    def factor(self, kernel: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor, float32, whose derivative is that of `value / sigma`, and the next vectors."""
        factor, vectors = _factor(self, ops.cast(kernel, "float32"), ops.convert_to_tensor(vectors))
        return factor, vectors

    def norm(self, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma of a float32 kernel, whose derivative is v u^T, and the next vectors."""
        iterate = settled_subspace_iteration if self.operator == "matrix" else settled_power_iteration
        search = partial(
            iterate,
            steps=self.power_iterations,
            extra_steps=self.warmup_iterations,
            tolerance=self.tolerance,
            perturbation=self.perturbation,
        )
        if self.operator == "matrix":
            return matrix_norm(kernel, self.axis, self.groups, search, vectors)
        kernel = ops.reshape(kernel, convolution_shape(tuple(kernel.shape), self.axis))
        return convolution_norm(kernel, self.strides, self.groups, search, vectors, climbs=1)


@compiled_once(static_argnums=(0,))
def _factor(normalizer: Normalizer, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    # In units of sigma itself: with kernels of 1e-30 or 1e+30, sigma**2 in the derivative would leave the range.
    sigma, vectors = normalizer.norm(kernel, vectors)
    size = ops.stop_gradient(sigma)
    acts = size > normalizer.value * (1.0 if normalizer.cap else TINY)
    unit = where(acts, size, 1.0)
    return where(acts, normalizer.value / unit, 1.0) / where(acts, sigma / unit, 1.0), vectors
