"""Kernels in shards, as FSDP2 has them, clipped or made orthogonal: each process multiplies its own rows.

With the rows of the longer side in shards, what travels is the Gram matrix of the shorter side, the sum of those of the
shards. Shards along the shorter side are exchanged for such before, and back after: by PyTorch, which over gloo gathers
one kernel at a time to do it.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from opnorm.iterations.clipping import Parts, clip, orthogonalize
from opnorm.iterations.matrices import from_matrix, to_matrix
from opnorm.rules import Clip, Orthogonalize
from opnorm.rules.projecting import wide
from opnorm.rules.targets import levelled


def is_sharded(x: Any) -> bool:
    """Return whether `x` is a DTensor."""
    return hasattr(x, "device_mesh")


def overwrite_shards(rule: Clip | Orthogonalize, kernel: Any, found: Any) -> None:
    """Change a DTensor that is one matrix to what the rule makes of it, in place; `found` as in `rule.act`."""
    if isinstance(rule, Clip) and found.blocks is not None and not found.blocks.any():
        return  # within the rule's margin
    nearest = _nearest(rule, kernel, found)
    matrix = to_matrix(wide(kernel), rule.operator.axis, 1)
    rows, _, columns = matrix.shape
    matrix = matrix.reshape(rows, columns)
    lies = rows < columns or (rows == columns and any(one.is_shard(1) for one in matrix.placements))
    changed = _changed(nearest, matrix.T).T if lies else _changed(nearest, matrix)
    kernel.copy_(from_matrix(changed, tuple(kernel.shape), rule.operator.axis).to(kernel.dtype))


def _changed(nearest: Callable[[Tensor, Parts], Tensor], matrix: Any) -> Any:
    """Return what the rule makes of a DTensor that has no more columns than rows, sharded as it is."""
    from torch.distributed.tensor import Shard

    split = matrix.redistribute(placements=[Shard(0) if one.is_shard() else one for one in matrix.placements])
    own = split.to_local()
    held = own if len(own) else own.new_zeros(1, own.shape[1])  # there may be more processes than rows
    rows = nearest(held[None], _parts(split))[0][: len(own)]
    whole = {"shape": split.shape, "stride": split.stride()}  # where shards are not of one size, they do not tell
    changed = type(matrix).from_local(rows, split.device_mesh, split.placements, run_check=False, **whole)
    return changed.redistribute(placements=matrix.placements)


def _nearest(rule: Clip | Orthogonalize, kernel: Any, found: Any) -> Callable[[Tensor, Parts], Tensor]:
    """Return what makes of the rows of a shard those of the nearest matrix that the rule allows."""
    if isinstance(rule, Orthogonalize):
        return orthogonalize
    most = levelled(rule.ends(kernel)[0], found.level, kernel)
    return lambda rows, parts: clip(rows, most, parts)


def _parts(split: Any) -> Parts:
    """Return how the shards of a DTensor make one number or matrix of what each finds."""
    from torch.distributed.tensor import Partial, Replicate

    def joined(how: str, x: Tensor) -> Tensor:
        parts = [Partial(how) if one.is_shard() else Replicate() for one in split.placements]
        whole: Tensor = type(split).from_local(x, split.device_mesh, parts, run_check=False).full_tensor()
        return whole

    return Parts(lambda x: joined("sum", x), lambda x: joined("max", x))
