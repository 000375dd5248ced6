"""The products of an attention's query and key weights, whose norm bounds its logits."""

from collections.abc import Iterator, Sequence
from math import isnan, nan

import torch
from torch import Tensor, nn

from opnorm.rules import first_product_vectors, product_norm
from opnorm.torch.sites import Kernel

_FUSED, _APART = ("in_proj_weight",), ("q_proj_weight", "k_proj_weight")


def logits_of(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Return the norm of W_q^T W_k of each `MultiheadAttention`, of all heads the largest, from below, and the largest.

    Args:
        kernels: Those of a module; the products are of attentions whose query and key weights are among them.
    """
    norms = {name: _estimate(query, key) for name, query, key in _pairs(kernels)}
    logs = {f"spectral/{name}": norm for name, norm in norms.items()}
    if norms:
        logs["spectral/query_key"] = nan if any(map(isnan, norms.values())) else max(norms.values())
    return logs


def proved_logits_of(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Return each between two proved numbers; both are nan for weights that are not finite."""
    from opnorm.bounds.pairs import bracket_heads  # SciPy takes longer to import than all of this front end

    logs = {}
    for name, query, key in _pairs(kernels):
        sound = bool(query.isfinite().all() and key.isfinite().all())
        ends = bracket_heads(*(one.double().cpu().numpy() for one in (query, key))) if sound else (nan, nan)
        logs[f"spectral_lower/{name}"], logs[f"spectral_upper/{name}"] = ends
    return logs


def _estimate(query: Tensor, key: Tensor) -> float:
    start = torch.tensor(first_product_vectors(tuple(query.shape), tuple(key.shape)), device=query.device)
    return float(product_norm(query, key, start).norm)


def _pairs(kernels: Sequence[Kernel]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield a name, and the weights of queries and keys as `(in, heads, size)`."""
    known = {(id(one.module), one.geometry.name): one for one in kernels}
    for one in kernels:
        module, name = one.module, one.geometry.name
        others = [known.get((id(module), other)) for other in (_FUSED if name in _FUSED else _APART)]
        if not isinstance(module, nn.MultiheadAttention) or name not in (_FUSED[0], _APART[0]) or None in others:
            continue
        weights = [_whole(other) for other in others if other is not None]
        query, key, *_ = weights[0].chunk(3) if name in _FUSED else weights
        path = one.path.removesuffix(name) + "query_key"
        yield path, *(weight.unflatten(0, (module.num_heads, -1)).permute(2, 0, 1) for weight in (query, key))


def _whole(kernel: Kernel) -> Tensor:
    tensor = kernel.tensor.detach()
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "device_mesh") else tensor
    return whole.float() if whole.dtype.itemsize < 4 else whole
