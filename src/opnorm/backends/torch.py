"""The operations on PyTorch tensors.

They are PyTorch's own functions, called as directly as can be: an update is eager there, and each call costs 1 to 5
microseconds whatever it does. `repeat_while` and `cond` read a flag on the host: on a GPU each costs a wait.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import arctan2 as arctan2
from torch import cos as cos
from torch import einsum as einsum
from torch import isfinite as isfinite
from torch import reshape as reshape
from torch import sin as sin
from torch import sqrt as sqrt
from torch import where as where
from torch.linalg import eigh as eigh
from torch.nn.functional import pad

Tensor = Any
concatenate, transpose = torch.cat, torch.permute


def constant(array: np.ndarray, like: Tensor) -> Tensor:
    """Return `array` where `like` is: floating-point numbers in its dtype, others in their own."""
    return torch.as_tensor(array, dtype=like.dtype if array.dtype.kind == "f" else None, device=like.device)


def table(like: Tensor, make: Callable[..., np.ndarray], *args: Any) -> Tensor:
    """Return `make(*args)` where `like` is: floating-point numbers in its dtype, others in their own."""
    return _table(like.dtype, like.device, make, *args)


@lru_cache(maxsize=1024)
def _table(dtype: Any, device: Any, make: Callable[..., np.ndarray], *args: Any) -> Tensor:
    # Sent to a device once, not in every update.
    array = make(*args)
    return torch.as_tensor(array, dtype=dtype if array.dtype.kind == "f" else None, device=device)


def detach(x: Tensor) -> Tensor:
    """Return `x` cut off from gradients."""
    return x.detach()


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the shape as integers."""
    return tuple(x.shape)


def dtype(x: Tensor) -> str:
    """Return the name of the dtype."""
    return str(x.dtype).removeprefix("torch.")


def cast(x: Tensor, dtype: str) -> Tensor:
    """Return `x` in another dtype; itself if it has it."""
    return x.to(getattr(torch, dtype))


def has_lapack(x: Tensor) -> bool:
    """Return whether LAPACK computes eigenvectors of tensors where `x` is: on CPUs, but for TensorFlow's own code."""
    return bool(x.device.type == "cpu")


def widened(x: Tensor, size: int) -> Tensor:
    """Return `x` with zeros behind it along the last axis, which then has `size` entries."""
    spare = size - x.shape[-1]
    return pad(x, (0, spare)) if spare else x


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products along the last axis, which is kept."""
    return (x * y).sum(-1, keepdim=True)


def length(x: Tensor) -> Tensor:
    """Return the Euclidean lengths along the last axis, which is kept."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the largest entries along `axes`, which are kept."""
    return torch.amax(x, axes, keepdim=True)


def total(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the sums along `axes`, which are kept."""
    return x.sum(axes, keepdim=True)


def any_of(x: Tensor) -> Tensor:
    """Return whether any entry is true."""
    return x.any()


def all_of(x: Tensor) -> Tensor:
    """Return whether all entries are true."""
    return x.all()


def argmax(x: Tensor) -> Tensor:
    """Return the places of the largest entries along the last axis, which goes."""
    return torch.argmax(x, -1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Return the entries of `x` along its first axis at `indices`, of any shape."""
    return x[indices]


def rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return of `x`, `(groups, count, n)`, the rows of each group at its `indices`, `(groups, k)`."""
    return torch.take_along_dim(x, indices[..., None], 1)


def top_k(x: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest entries along the last axis."""
    return torch.topk(x, count).indices


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and V of a matrix `(m, n)` = U diag(s) V^T, thin."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return u, s, vt.T


def images(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrix @ u` for each of the `vectors`, `(count, columns)`: `(count, rows)`."""
    if _is_sharded(matrix):
        return _of_shards(vectors, matrix.T)
    # Of the forms of this product the one that does not transpose the kernel where it lies: the other is far slower.
    if matrix.stride(0) < matrix.stride(1):  # as of `torch.nn.Linear`, whose outputs come first
        return vectors @ matrix.T
    return (matrix @ vectors.T).T


def preimages(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `v @ matrix` for each of the `vectors`, `(count, rows)`: `(count, columns)`."""
    return _of_shards(vectors, matrix) if _is_sharded(matrix) else vectors @ matrix


def _is_sharded(x: Tensor) -> bool:
    return hasattr(x, "device_mesh")


def _of_shards(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Return `vectors @ matrix` of a DTensor's shards: what travels is the product, never the matrix."""
    from torch.distributed.tensor import Replicate

    mesh = matrix.device_mesh
    whole = type(matrix).from_local(vectors, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return (whole @ matrix).full_tensor()


def repeat_while(moves: Callable[[Any], Tensor], step: Callable[[Any], Any], state: Any, most: int) -> Any:
    """Return the named tuple after at most `most` of the steps `state -> state`, made while `moves(state)`."""
    for _ in range(most):
        if not moves(state):
            break
        state = step(state)
    return state


def repeat(factors: Sequence[float], step: Callable[[Any, Any], Any], state: Any) -> Any:
    """Return the tensor, or tuple of tensors, after a step `(factor, state) -> state` for each factor."""
    for factor in factors:
        state = step(factor, state)
    return state


def known(flags: Sequence[Tensor]) -> Sequence[Any]:
    """Return the flags as the host knows them, where that is cheap; otherwise themselves, or all true."""
    if flags[0].device.type == "cpu":
        known: list[bool] = torch.stack(list(flags)).tolist()
        return known
    return [True] * len(flags)  # a wait for the device costs more than the products


def cond(condition: Tensor, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return `yes()` or `no()`, which agree in structure, shapes and dtypes."""
    return yes() if condition else no()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function(static, tensors)`, compiled once for each hashable `static` and set of shapes where it pays.

    Here it is never compiled, but kept out of `torch.autocast`, which would make its products in half precision.
    """

    def run(static: Any, tensors: Any) -> Any:
        device = _device_type(tensors)
        if not torch.is_autocast_enabled(device):
            return function(static, tensors)
        with torch.autocast(device, enabled=False):
            return function(static, tensors)

    return run


def _device_type(tensors: Any) -> str:
    while not isinstance(tensors, torch.Tensor):
        tensors = tensors[0]
    return str(tensors.device.type)
