"""The small operations of the iterations, called as cheaply as each backend allows.

On PyTorch a function of `keras.ops` takes 4 to 11 microseconds for a short vector, PyTorch's own 1 to 2: conversions,
and casts to a common dtype that all have already. An update of a kernel makes some fifty such calls. Where graphs are
compiled the difference is nothing.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
from keras import ops

State = TypeVar("State", bound=tuple[Any, ...])  # a named tuple of tensors
Tensor = Any  # a tensor of whichever backend Keras runs on
TINY = float(np.finfo("float32").tiny)  # added to divisors: none is zero, and no other number notices
__all__ = [
    "TINY",
    "Tensor",
    "arctan2",
    "concatenate",
    "constant",
    "cos",
    "dot",
    "eigh",
    "largest",
    "length",
    "repeat_while",
    "reshape",
    "sin",
    "transpose",
    "where",
]

if keras.config.backend() == "torch":
    import torch
    from torch import arctan2, cos, reshape, sin, where
    from torch import cat as concatenate
    from torch import permute as transpose
    from torch.linalg import eigh

    def dot(x: Tensor, y: Tensor) -> Tensor:
        """Return the inner products along the last axis, which is kept."""
        return (x * y).sum(-1, keepdim=True)

    def largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return the largest entries along `axes`, which are kept."""
        return torch.amax(x, axes, keepdim=True)

    def constant(array: np.ndarray, like: Tensor) -> Tensor:
        """Return `array` where the tensor `like` is."""
        return torch.as_tensor(array, device=like.device)

    def repeat_while(
        moves: Callable[[State], Tensor], step: Callable[[State], State], state: State, most: int
    ) -> State:
        """Return the named tuple after at most `most` of the steps `state -> state`, made while `moves(state)`."""
        for _ in range(most):
            if not moves(state):
                break
            state = step(state)
        return state
else:
    from keras.ops import arctan2, concatenate, cos, eigh, reshape, sin, transpose, where

    def dot(x: Tensor, y: Tensor) -> Tensor:
        """Return the inner products along the last axis, which is kept."""
        return ops.sum(x * y, axis=-1, keepdims=True)

    def largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return the largest entries along `axes`, which are kept."""
        return ops.max(x, axis=axes, keepdims=True)

    def constant(array: np.ndarray, like: Tensor) -> Tensor:
        """Return `array` where the tensor `like` is."""
        return ops.convert_to_tensor(array)

    def repeat_while(
        moves: Callable[[State], Tensor], step: Callable[[State], State], state: State, most: int
    ) -> State:
        """Return the named tuple after at most `most` of the steps `state -> state`, made while `moves(state)`."""
        kind = type(state)
        return kind(
            *ops.while_loop(
                lambda *values: moves(kind(*values)),
                lambda *values: tuple(step(kind(*values))),
                tuple(state),
                maximum_iterations=most,
            )
        )


def length(x: Tensor) -> Tensor:
    """Return the Euclidean lengths along the last axis, which is kept."""
    return dot(x, x) ** 0.5
