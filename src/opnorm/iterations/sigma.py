"""The spectral norm as a differentiable function of the kernel: search without gradient, then one bilinear form.

At a simple singular value, d sigma = v^T dW u with the singular vectors held fixed. The vectors are found on a kernel
cut off from the gradient, and v^T W u, linear in W, is what is differentiated. It serves every operator that is linear
in its kernel, and no loop has to be differentiated, which JAX could not.
"""

from opnorm.backends import Tensor, of
from opnorm.iterations.frequencies import Iterate, Sliding, peak_maps, survey
from opnorm.iterations.maps import Maps
from opnorm.iterations.matrices import matrix_maps
from opnorm.iterations.power import Estimate


def bilinear_form(maps: Maps, estimate: Estimate) -> Tensor:
    """Return v^T W u of each diagonal block of `maps`, (1, blocks, 1), differentiable in W alone.

    It is the estimate's sigma, and its derivative by W is v u^T. A zero block gives zero, and a zero derivative.

    Args:
        maps: The operator; `times` is used once.
        estimate: What a search on the same operator returned.
    """
    xp = of(estimate.sigma)
    return xp.dot(xp.detach(estimate.image), maps.times(xp.detach(estimate.vectors[:1])))


def matrix_norm(matrix: Tensor, iterate: Iterate, vectors: Tensor, alone: bool = False) -> tuple[Tensor, Tensor]:
    """Return the norm of each block of a matrix, (groups,), differentiable, and the next vectors.

    Unless `alone`, only the largest of them is found; what is known of the others is that they are no larger.
    """
    xp = of(matrix)
    found = iterate(matrix_maps(xp.detach(matrix), alone), xp.detach(vectors))
    return xp.reshape(bilinear_form(matrix_maps(matrix), found), (-1,)), xp.detach(found.vectors)


def convolution_norm(one: Sliding, iterate: Iterate, vectors: Tensor, climbs: int) -> tuple[Tensor, Tensor]:
    """Return the norm of each group of a convolution, (groups,), differentiable, and the next vectors.

    See `frequencies.survey`. The frequency of the largest norm is held fixed like the vectors: there the norm's
    derivative by the frequency is zero.
    """
    xp, groups = of(one.blocks), one.blocks.shape[0]
    (found,) = survey([one._replace(blocks=xp.detach(one.blocks))], iterate, [xp.detach(vectors)], climbs)
    norms = [bilinear_form(peak_maps(one, peaks), peaks.estimate) for peaks in found.peaks]
    together = xp.concatenate([xp.reshape(norm, (groups, -1)) for norm in norms], axis=1)
    return xp.reshape(xp.largest(together, (1,)), (-1,)), xp.detach(found.vectors)
