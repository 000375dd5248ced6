"""One subspace iteration without a number that decides what is computed, for `torch.compile` and `torch.export`.

Their tracers follow neither loops that end on a number nor `opnorm.backends`, which finds a framework from a tensor.
"""

import torch
from torch import Tensor

from opnorm.backends import TINY
from opnorm.rules import Normalizer


def written_out(normalizer: Normalizer, kernel: Tensor, vectors: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return what `Normalizer.factor` does of a matrix, after exactly so many steps.

    Without a step sigma is |W u|, right to second order where the vectors are those of nearly the same kernel: for each
    further operation compilers take long.
    """
    blocks = _blocks(normalizer, kernel.to(vectors.dtype))  # (groups, rows, columns)
    following = vectors.reshape(vectors.shape[0], normalizer.groups, -1).permute(1, 2, 0)
    if not steps:
        images = (blocks @ following[:, :, :1]).double()  # squares of 1e-30 and 1e+30 would leave the range
        return _factor(normalizer, images.norm(dim=1).flatten().to(vectors.dtype), kernel), vectors
    v, following = _iterated(blocks.detach(), following, steps)
    norms = (v.mT @ blocks @ following[:, :, :1]).flatten()
    return _factor(normalizer, norms, kernel), following.permute(2, 0, 1).reshape(vectors.shape)


def _iterated(blocks: Tensor, vectors: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the leading left singular vectors, and the right ones, after subspace iterations."""
    matrix = torch.nan_to_num(blocks / (blocks.abs().amax((1, 2), keepdim=True) + TINY))
    for _ in range(steps):
        basis, _ = torch.linalg.qr(matrix @ vectors)
        vectors, _, rotation = torch.linalg.svd(matrix.mT @ basis, full_matrices=False)
    return basis @ rotation[:, :1].mT, vectors


def _factor(normalizer: Normalizer, norms: Tensor, kernel: Tensor) -> Tensor:
    norm = norms if normalizer.blockwise else norms.amax()
    size = norm.detach()
    acts = size > normalizer.value * (1.0 if normalizer.cap else TINY)
    unit = torch.where(acts, size, 1.0)
    factor = torch.where(acts, normalizer.value / unit, 1.0) / torch.where(acts, norm / unit, 1.0)
    return factor.reshape(-1, *[1] * (kernel.ndim - 1)) if normalizer.blockwise else factor


def _blocks(normalizer: Normalizer, kernel: Tensor) -> Tensor:
    axes = [normalizer.axis] if isinstance(normalizer.axis, int) else list(normalizer.axis)
    outputs = [axis % kernel.ndim for axis in axes]
    inputs = [axis for axis in range(kernel.ndim) if axis not in outputs]
    columns = 1
    for axis in outputs:
        columns *= kernel.shape[axis]
    matrix = kernel.permute(*inputs, *outputs).reshape(-1, normalizer.groups, columns // normalizer.groups)
    return matrix.permute(1, 0, 2)
