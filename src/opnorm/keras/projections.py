"""The Keras constraints that change singular values, not all by one factor: clipped at a bound, or all made equal."""

from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from keras import ops

from opnorm.checks import require, to_axis, to_count, to_counts, to_operator, to_positive
from opnorm.iterations.clipping import clip, orthogonalize
from opnorm.iterations.convolution_clipping import Ball, clip_convolution
from opnorm.iterations.frequencies import Strides, convolution_shape, start_shape
from opnorm.iterations.matrices import Axis, from_matrix, to_matrix
from opnorm.iterations.power import CONVERGED, Effort, Tensor, random_directions
from opnorm.keras.base import OperatorConstraint

_USUAL = Effort(extra_steps=100, tolerance=1e-4, climbs=1)  # what `SpectralNorm` does by default


class Projection(OperatorConstraint):
    """Abstract: replaces the matrix, or each diagonal block of it, by `nearest(matrix)`, which needs no state."""

    def __init__(self, *, axis: Axis, groups: int) -> None:
        self.axis = to_axis("axis", axis)
        self.groups = to_count("groups", groups, 1)

    @abstractmethod
    def nearest(self, matrix: Tensor) -> Tensor:
        """Return the projections of the matrices `(..., m, n)`, float32 or float64."""

    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray | None:
        """Return None: an update starts from the kernel alone. Raise if `axis` or `groups` do not fit the kernel."""
        to_matrix(kernel, self.axis, self.groups)
        return None

    def update(self, kernel: Tensor, state: Tensor = None) -> tuple[Tensor, Tensor]:
        """Return the projected kernel and `state`, which is not read."""
        return self.project(kernel), state

    def project(self, kernel: Tensor) -> Tensor:
        """Return the projected kernel; computed in float32, or in float64 for a float64 kernel."""
        kernel = ops.stop_gradient(ops.convert_to_tensor(kernel))  # a projection is no part of the loss: record nothing
        dtype = keras.backend.standardize_dtype(kernel.dtype)
        wide = kernel if dtype == "float64" else ops.cast(kernel, "float32")
        matrix = to_matrix(wide, self.axis, self.groups)
        if self.groups == 1:
            nearest = self.nearest(matrix)
        else:
            nearest = ops.swapaxes(self.nearest(ops.swapaxes(matrix, 0, 1)), 0, 1)  # blocks first
        return ops.cast(from_matrix(nearest, tuple(kernel.shape), self.axis), dtype)

    def _warn_once(self, kernel: Any) -> None:
        """Do nothing: without a place for its state, which is none, a projection is as fast as ever."""


@keras.saving.register_keras_serializable("opnorm")
class SpectralClip(Projection):
    """Constrains a kernel to spectral norm at most `max_value` by clipping: W = U S V^T <- U min(S, max_value) V^T.

    It is the nearest such matrix in Frobenius norm: singular values below `max_value` stay as they are, where
    `MaxSpectralNorm` shrinks all of them alike. A kernel inside the ball is left bit for bit as it is, unless its norm
    is `max_value` but for rounding; one with a NaN is left alone. The result is exact within 1e-4, relative, in
    float32.

    The matrix is the one that `SpectralNorm` means. Frequent small excesses cost one pass; a norm of many times
    `max_value` costs one pass for each factor of 4, in that update alone.

    With `operator="convolution"` the norm is that of the sliding operator, for every image size and dilation, estimated
    from below as `SpectralNorm` does. A kernel within `max_value` by that estimate is left bit for bit. Any other ends
    there: singular values are clipped to 0.99 `max_value` at the 16 frequencies where the norm is largest, as far as
    k x k kernels allow, again and again while the norm is too large, 12 times at most. What is left then is scaled
    away, as is, before the first time, what exceeds 4 times `max_value`. The true norm ended at 0.992 to 1.008 times
    `max_value` on 24 kernels measured, at 1.0015 at most after `project`. The result lies near the kernel, but is not
    the nearest of the ball: smaller singular values move a little, too. It keeps vectors in the optimizer, like
    `SpectralNorm`, and costs as much as `MaxSpectralNorm` while the kernel is inside.

    Args:
        max_value: The largest singular value allowed, positive.
        operator: `"matrix"` or `"convolution"`.
        axis: The output axis or axes of the kernel, an int or a tuple of ints; for a convolution -1,
            for a depthwise kernel `(-2, -1)` with `groups=channels`.
        strides: The layer's, for `"convolution"` only: an int or one for each spatial axis.
        groups: The number of diagonal blocks, consecutive along the output axes; each of them is clipped.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_constraint=opnorm.SpectralClip(0.95))
    """

    def __init__(
        self,
        max_value: float = 1.0,
        *,
        operator: str = "matrix",
        axis: Axis = -1,
        strides: Strides = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(axis=axis, groups=groups)
        self.operator = to_operator(operator, self.axis)
        self.strides = to_counts("strides", strides, 1)
        self.max_value = to_positive("max_value", max_value)

    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray | None:
        """Return None; for a convolution the first vectors, as `SpectralNorm` does, but the same in every run."""
        if self.operator == "matrix":
            return super().initial_state(kernel, index)
        shape = convolution_shape(tuple(kernel.shape), self.axis)
        return random_directions((1, *start_shape(shape, self.strides, self.groups)), (index,))

    def update(self, kernel: Tensor, state: Tensor = None) -> tuple[Tensor, Tensor]:
        """Return the clipped kernel and the next state; pure, so it serves any training loop."""
        if self.operator == "matrix":
            return super().update(kernel, state)
        return self._clip_convolution(kernel, state, _USUAL)

    def project(self, kernel: Tensor) -> Tensor:
        """Return the clipped kernel; for a convolution, its norm found to convergence from a fresh start."""
        if self.operator == "matrix":
            return super().project(kernel)
        return self._clip_convolution(kernel, self.initial_state(kernel), CONVERGED)[0]

    def _clip_convolution(self, kernel: Tensor, state: Tensor, effort: Effort) -> tuple[Tensor, Tensor]:
        kernel = ops.stop_gradient(ops.convert_to_tensor(kernel))  # as in `Projection.project`
        ball = Ball(self.max_value, self.strides, self.groups)
        sliding = ops.reshape(kernel, convolution_shape(tuple(kernel.shape), self.axis))
        clipped, state = clip_convolution(sliding, ops.convert_to_tensor(state, dtype="float32"), ball, effort)
        return ops.reshape(clipped, kernel.shape), state

    def _warn_once(self, kernel: Any) -> None:
        """Warn of a missing place for the state where there is a state."""
        if self.operator == "convolution":
            OperatorConstraint._warn_once(self, kernel)

    def nearest(self, matrix: Tensor) -> Tensor:
        """Return the matrices with their singular values clipped."""
        return clip(matrix, self.max_value)


@keras.saving.register_keras_serializable("opnorm")
class Orthogonal(Projection):
    """Constrains a kernel to the nearest (semi-)orthogonal matrix: W = U S V^T <- U V^T.

    There is no `operator="convolution"`: the orthogonal symbols nearest to those of a k x k kernel belong to a larger
    kernel, and cut to k x k taps they are not orthogonal any more.

    All singular values become 1, within 1e-4 for those above a thousandth of the largest; a zero one stays zero, and
    what lies between, mostly rounding errors of a rank-deficient kernel, ends between 0 and 1. A kernel with a NaN is
    left alone. A one-dimensional weight becomes a unit vector.

    Args:
        operator: `"matrix"`.
        axis: The output axis or axes of the kernel, an int or a tuple of ints.
        groups: The number of diagonal blocks, consecutive along the output axes; each becomes (semi-)orthogonal.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_constraint=opnorm.Orthogonal())

    Reference:
        Björck and Bowie, An iterative algorithm for computing the best estimate of an orthogonal matrix, 1971.
    """

    def __init__(self, *, operator: str = "matrix", axis: Axis = -1, groups: int = 1) -> None:
        must = "must be 'matrix': cut to k x k taps, the orthogonal symbols nearest to a kernel are not orthogonal"
        require(operator == "matrix", "operator", must, operator)
        super().__init__(axis=axis, groups=groups)
        self.operator = operator

    def nearest(self, matrix: Tensor) -> Tensor:
        """Return the polar factors of the matrices."""
        return orthogonalize(matrix)
