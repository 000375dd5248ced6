"""The factor that brings a kernel to a spectral norm, differentiable in the kernel."""

from functools import partial
from typing import NamedTuple

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.iterations.frequencies import Strides, sliding
from opnorm.iterations.matrices import Axis, spread, to_matrix
from opnorm.iterations.power import Search, settled_power_iteration
from opnorm.iterations.sigma import convolution_norm, matrix_norm
from opnorm.iterations.subspace import settled_subspace_iteration
from opnorm.rules.norms import Operator, first_vectors


class Normalizer(NamedTuple):
    """How a kernel's norm is found, and what it is brought to, in the words of `opnorm.SpectralNormalization`."""

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
    climbs: int = 4  # between the grid's frequencies: the gradient needs the peak itself
    blockwise: bool = False  # whether each block of a matrix is divided by its own norm

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
        """Return the first vectors for a kernel of `shape`: `(count, *columns)`, isotropic, unit length, float32."""
        return first_vectors(self._operator, shape, self.vectors, seed)

    def factor(self, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor whose derivative is that of `value / sigma`, and the next vectors, all in their dtype."""
        pair: tuple[Tensor, Tensor] = of(kernel).compiled(_factor)(self, (kernel, vectors))
        return pair

    def norm(self, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma of a kernel, whose derivative is v u^T, and the next vectors, all in the vectors' dtype.

        Of equal norms of several groups, the derivative is one of the subgradients.
        """
        pair: tuple[Tensor, Tensor] = of(kernel).compiled(_norm)(self, (kernel, vectors))
        return pair

    def _norm(self, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        xp = of(kernel)
        kernel = xp.cast(kernel, xp.dtype(vectors))
        if self.operator == "matrix":
            matrix = to_matrix(kernel, self.axis, self.groups)
            start = xp.reshape(vectors, (vectors.shape[0], self.groups, -1))
            iterate = partial(settled_subspace_iteration, search=self._search)
            norms, found = matrix_norm(matrix, iterate, start, self.blockwise)
        else:
            slides = sliding(xp.reshape(kernel, self._operator.slides(xp.shape(kernel))), self.strides, self.groups)
            iterate = partial(settled_power_iteration, search=self._search)
            norms, found = convolution_norm(slides, iterate, vectors, self.climbs)
        norms = norms if self.blockwise else xp.reshape(xp.largest(norms, (0,)), ())
        return norms, xp.reshape(found, xp.shape(vectors))

    @property
    def _operator(self) -> Operator:
        return Operator(self.operator, self.axis, self.strides, self.groups)

    @property
    def _search(self) -> Search:
        return Search(self.power_iterations, self.warmup_iterations, self.tolerance, self.perturbation)


def _norm(normalizer: Normalizer, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return normalizer._norm(*tensors)


def _factor(normalizer: Normalizer, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    # In units of sigma itself: with kernels of 1e-30 or 1e+30, sigma**2 in the derivative would leave the range.
    kernel, _ = tensors
    sigma, vectors = normalizer._norm(*tensors)
    xp = of(sigma)
    size = xp.detach(sigma)
    acts = size > normalizer.value * (1.0 if normalizer.cap else TINY)
    unit = xp.where(acts, size, 1.0)
    factor = xp.where(acts, normalizer.value / unit, 1.0) / xp.where(acts, sigma / unit, 1.0)
    return (spread(factor, xp.shape(kernel), normalizer.axis) if normalizer.blockwise else factor), vectors
