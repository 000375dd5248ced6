"""The spectral norm as a differentiable function of the kernel: search without gradient, then one bilinear form.

At a simple singular value, d sigma = v^T dW u with the singular vectors held fixed. The vectors are found on a kernel
cut off from the gradient, and v^T W u, linear in W, is what is differentiated. It serves every operator that is linear
in its kernel, and no loop has to be differentiated, which JAX could not.
"""

from collections.abc import Callable

from keras import ops

from opnorm.iterations.frequencies import Strides, peak_maps, survey
from opnorm.iterations.matrices import Axis, matrix_maps, to_matrix
from opnorm.iterations.power import Estimate, Maps, Tensor

Search = Callable[[Maps, Tensor], Estimate]


def bilinear_form(maps: Maps, estimate: Estimate) -> Tensor:
    """Return v^T W u of each diagonal block of `maps`, (1,) or (1, blocks), differentiable in W alone.

    It is the estimate's sigma, and its derivative by W is v u^T. A zero block gives zero, and a zero derivative.

    Args:
        maps: The operator, of float32 kernels; `times` is used once.
        estimate: What a search on the same operator returned.
    """
    u, v = ops.stop_gradient(estimate.vectors[:1]), ops.stop_gradient(estimate.image)
    return ops.sum(v * maps.times(u), axis=-1)


def matrix_norm(kernel: Tensor, axis: Axis, groups: int, search: Search, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spectral norm of a float32 kernel as a matrix, differentiable, and the next vectors.

    Of equal norms of several groups, the derivative is one of the subgradients.
    """
    found = search(matrix_maps(to_matrix(ops.stop_gradient(kernel), axis, groups)), ops.stop_gradient(vectors))
    norms = bilinear_form(matrix_maps(to_matrix(kernel, axis, groups)), found)
    return ops.max(norms), ops.stop_gradient(found.vectors)


def convolution_norm(
    kernel: Tensor, strides: Strides, groups: int, search: Search, vectors: Tensor, climbs: int
) -> tuple[Tensor, Tensor]:
    """Return the norm of a float32 kernel as a convolution, differentiable, and the next vectors.

    See `frequencies.survey`. The frequency of the largest norm is held fixed like the vectors: there the norm's
    derivative by the frequency is zero.
    """
    found = survey(ops.stop_gradient(kernel), strides, groups, search, ops.stop_gradient(vectors), climbs)
    norms = [bilinear_form(peak_maps(kernel, groups, peaks), peaks.estimate) for peaks in found.peaks]
    return ops.max(ops.concatenate(norms, axis=-1)), ops.stop_gradient(found.vectors)
