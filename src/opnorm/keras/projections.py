"""The Keras constraints that change singular values, not all by one factor: clipped at a bound, or all made equal."""

import keras

from opnorm.checks import Norm, require, to_axis, to_count, to_counts, to_flag, to_fraction, to_norm, to_operator
from opnorm.iterations.frequencies import Strides
from opnorm.iterations.matrices import Axis
from opnorm.keras.base import OperatorConstraint
from opnorm.rules import Clip, Operator, Orthogonalize, require_matrix, target_of, to_least


@keras.saving.register_keras_serializable("opnorm")
class SpectralClip(OperatorConstraint):
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
        max_value: The largest singular value allowed, given as the `value` of `SpectralNorm`.
        operator: `"matrix"` or `"convolution"`.
        axis: The output axis or axes of the kernel, an int or a tuple of ints; for a convolution -1,
            for a depthwise kernel `(-2, -1)` with `groups=channels`.
        strides: The layer's, for `"convolution"` only: an int or one for each spatial axis.
        groups: The number of diagonal blocks, consecutive along the output axes; each of them is clipped.
        blockwise: Accepted as the other constraints do; it changes nothing: each block is clipped by itself anyway.
        margin: Above 0, nothing is done until the norm exceeds `max_value`; then singular values are clipped to
            `(1 - margin) * max_value`, so that the next updates find nothing to do: 0.1 makes a step two to six times
            faster. Of a matrix the norm is then estimated from below by vectors in the optimizer, like that of
            `SpectralNorm`, and what lies within a tenth of the margin, 0.003 at least, below `max_value` counts as too
            large, for what the estimate may miss. A convolution has a margin of 0.01 at least.
        min_value: Singular values of a matrix below it are raised to it, within 1e-3, those above a thousandth of the
            largest. A zero one has no direction to rise in: a zero kernel stays zero, and the null directions of a
            rank-deficient one end between 0 and `min_value`, until a gradient, or rounding, gives them a direction. At
            most `max_value` and in its unit: `SpectralClip("rms", min_value="0.1 rms")`. It costs a search for the
            polar factor in every update, and allows no `margin`.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_constraint=opnorm.SpectralClip(0.95, margin=0.05))
    """

    def __init__(
        self,
        max_value: Norm = 1.0,
        *,
        operator: str = "matrix",
        axis: Axis = -1,
        strides: Strides = 1,
        groups: int = 1,
        blockwise: bool = False,
        margin: float = 0.0,
        min_value: float | str = 0.0,
    ) -> None:
        self.axis = to_axis("axis", axis)
        self.operator = to_operator(operator, self.axis)
        self.strides = to_counts("strides", strides, 1)
        self.groups = to_count("groups", groups, 1)
        self.blockwise = to_flag("blockwise", blockwise)
        self.max_value = to_norm("max_value", max_value)
        require_matrix("max_value", self.max_value, self.operator)
        self.margin = to_fraction("margin", margin)
        self.min_value = to_least(min_value, self.max_value, self.operator, self.margin)

    @property
    def rule(self) -> Clip:
        """What is done to a kernel."""
        operator = Operator(self.operator, self.axis, self.strides, self.groups)
        size, rms, _ = self.norm
        return Clip(size, operator, self.margin, min_value=target_of(self.min_value).size, rms=rms)


@keras.saving.register_keras_serializable("opnorm")
class Orthogonal(OperatorConstraint):
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
        blockwise: Accepted as the other constraints do; it changes nothing: each block is projected by itself anyway.

    Example:
        >>> layer = keras.layers.Dense(256, kernel_constraint=opnorm.Orthogonal())

    Reference:
        Björck and Bowie, An iterative algorithm for computing the best estimate of an orthogonal matrix, 1971.
    """

    def __init__(self, *, operator: str = "matrix", axis: Axis = -1, groups: int = 1, blockwise: bool = False) -> None:
        must = "must be 'matrix': cut to k x k taps, the orthogonal symbols nearest to a kernel are not orthogonal"
        require(isinstance(operator, str) and operator == "matrix", "operator", must, operator)
        self.operator = operator
        self.axis = to_axis("axis", axis)
        self.groups = to_count("groups", groups, 1)
        self.blockwise = to_flag("blockwise", blockwise)

    @property
    def rule(self) -> Orthogonalize:
        """What is done to a kernel."""
        return Orthogonalize(Operator("matrix", self.axis, 1, self.groups))
