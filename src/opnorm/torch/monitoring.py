"""The norms of a module's kernels as a dictionary, for whatever logs the training."""

from math import isnan, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm.checks import require, to_flag, to_operator
from opnorm.iterations.power import Search
from opnorm.rules import Operator, Question, find_norms, first_vectors
from opnorm.selection import Selection, choose
from opnorm.torch.attention import logits_of, proved_logits_of
from opnorm.torch.fitting import by_device
from opnorm.torch.keeping import last_step
from opnorm.torch.parametrization import ball_of
from opnorm.torch.sites import Kernel, find_kernels

_SLACK = 1e-2  # over a ball: constraints hold 1e-3, the rounding of a half-precision kernel and a spike may add some
_SEARCH = Search(steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)  # what `SpectralNorm` does by default


class _Watched(NamedTuple):
    """A kernel as its module applies it, and the operator that is meant."""

    path: str
    meaning: Operator
    tensor: Tensor  # as the rules read it
    ball: float | None  # the norm that is declared for it


def monitor(
    module: nn.Module,
    *,
    operator: str = "matrix",
    include: Selection | None = None,
    exclude: Selection | None = None,
    proved: bool = False,
) -> dict[str, float]:
    """Return the norm of every kernel of `module`, for any logger; nothing of the module is written.

    `spectral/<name>` is an estimate from below of each, nan for a kernel that is not finite; `spectral/largest` the
    largest; `spectral/outside` how many exceed the ball that `constrain` or `spectral_normalization` declares, by more
    than 1 %. Of a parametrized kernel what the module multiplies with is measured. Of each `MultiheadAttention`
    `spectral/<module>.query_key` is the norm of W_q^T W_k, the largest over the heads, and `spectral/query_key` the
    largest of all: a head's logits are at most |x| |y| times it, before they are divided by the root of its size.

    Args:
        module: A `torch.nn.Module`.
        operator: `"convolution"` measures convolutions as what slides. A kernel with a constraint means what that says.
        include: The kernels to measure, by default all; see `constrain`.
        exclude: The kernels to leave out; it wins.
        proved: Whether to add `spectral_lower/<name>` and `spectral_upper/<name>`, proved in float64.

    Example:
        >>> wandb.log(opnorm.torch.monitor(critic))
    """
    require(isinstance(module, nn.Module), "module", "must be a torch.nn.Module", module)
    to_operator(operator, -1)
    found = [one for one in find_kernels(module) if isinstance(one, Kernel) and not one.obstacle.startswith("sparse")]
    kernels = choose(found, include, exclude)
    with torch.no_grad():
        watched = [one for one in (_watched(kernel, operator) for kernel in kernels) if one.tensor.numel()]
        norms = dict(zip([one.path for one in watched], _estimates(watched), strict=True))
    logs = {f"spectral/{path}": norm for path, norm in norms.items()}
    if logs:
        logs["spectral/largest"] = nan if any(map(isnan, norms.values())) else max(norms.values())
        logs["spectral/outside"] = sum(not _within(one.ball, norms[one.path]) for one in watched)
    logs |= logits_of(kernels)
    return logs | _proved(watched) | proved_logits_of(kernels) if to_flag("proved", proved) else logs


def _watched(kernel: Kernel, operator: str) -> _Watched:
    constraint, declared = kernel.constraint, ball_of(kernel.module, kernel.geometry.name)
    meant = declared.operator if declared else constraint.operator if constraint else operator
    blockwise = constraint.blockwise if constraint and not declared else False
    geometry = kernel.geometry.asked(blockwise)
    tensor, meaning = geometry.view(kernel.tensor.detach(), meant), geometry.operator(meant)
    own = constraint.of(meaning, geometry.blockwise).ball(tensor.shape, _last_step(kernel)) if constraint else None
    return _Watched(kernel.path, meaning, tensor, declared.ball if declared else own)


def _last_step(kernel: Kernel) -> int | None:
    return last_step(getattr(kernel.module, kernel.geometry.name))


def _estimates(watched: list[_Watched]) -> list[float]:
    """Return sigma of each kernel, from below; the numbers come from each device at once."""
    numbers = [nan] * len(watched)
    for places in by_device([one.tensor for one in watched]):
        found = _together([watched[i] for i in places]).tolist()
        for i, number in zip(places, found, strict=True):
            numbers[i] = number
    return numbers


def _together(watched: list[_Watched]) -> Tensor:
    starts = [torch.tensor(first_vectors(one.meaning, tuple(one.tensor.shape), 2, (0,))) for one in watched]
    vectors = [start.to(one.tensor.device) for start, one in zip(starts, watched, strict=True)]
    norms, _ = find_norms([Question(one.meaning, _SEARCH) for one in watched], [one.tensor for one in watched], vectors)
    finite = [_whole(_wide(one.tensor).isfinite().all()) for one in watched]
    return torch.stack([torch.where(f, norm.max().float(), nan) for f, norm in zip(finite, norms, strict=True)])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype.itemsize > 1 else x.float()  # of eight bits PyTorch does not know which are finite


def _whole(x: Any) -> Tensor:
    """Return a tensor itself, of a DTensor the whole."""
    whole: Tensor = x.full_tensor() if hasattr(x, "device_mesh") else x
    return whole


def _proved(watched: list[_Watched]) -> dict[str, float]:
    from opnorm.torch.proofs import bounds_of  # SciPy takes longer to import than all of this front end

    bounds = {one.path: bounds_of(one.meaning, _whole(one.tensor)) for one in watched}
    lower = {f"spectral_lower/{path}": lower for path, (lower, _) in bounds.items()}
    return lower | {f"spectral_upper/{path}": upper for path, (_, upper) in bounds.items()}


def _within(ball: float | None, norm: float) -> bool:
    return ball is None or norm <= ball * (1 + _SLACK)
