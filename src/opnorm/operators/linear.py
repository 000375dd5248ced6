"""Weights as linear operators: which matrix a layer multiplies its input with.

`linear_operator(layer)` is open: `linear_operator.register(MyLayer)` teaches it a new layer. This module imports no
deep-learning framework; `opnorm.keras.layers` registers Keras's layers as soon as Keras is imported, and
`opnorm.torch.operators` PyTorch's modules when the first one is handed over.
"""

from collections.abc import Iterable, Sequence
from functools import singledispatch
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.checks import Array, real_array, require

_HOMES = {("torch", "Module"): "torch"}  # base classes, by package and name, whose operators stand in a front end


class BlockDiagonal(LinearOperator):
    """The operator that applies each of `blocks` to its own part of the vector; its norm is the largest of theirs.

    Args:
        blocks: LinearOperators or matrices, at least one.

    Example:
        >>> opnorm.BlockDiagonal([np.eye(2), [[3.0]]]) @ np.ones(3)
        array([1., 1., 3.])
    """

    def __init__(self, blocks: Sequence[LinearOperator]):
        several = isinstance(blocks, Iterable) and not isinstance(blocks, str | bytes)
        require(several, "blocks", "must be a sequence of operators or matrices", blocks)
        self.blocks = tuple(map(_block, blocks))
        require(bool(self.blocks), "blocks", "must hold at least one operator", blocks)
        self._rows = np.cumsum([block.shape[0] for block in self.blocks])
        self._columns = np.cumsum([block.shape[1] for block in self.blocks])
        super().__init__(np.float64, (int(self._rows[-1]), int(self._columns[-1])))  # type: ignore[call-arg]

    def _matmat(self, X: Array) -> Array:
        parts = zip(self.blocks, np.split(X, self._columns[:-1]), strict=True)
        return np.concatenate([block.matmat(part) for block, part in parts])

    def _rmatmat(self, X: Array) -> Array:
        parts = zip(self.blocks, np.split(X, self._rows[:-1]), strict=True)
        return np.concatenate([block.rmatmat(part) for block, part in parts])

    def _matvec(self, x: Array) -> Array:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: Array) -> Array:
        return self._rmatmat(x.reshape(-1, 1)).ravel()

    def _adjoint(self) -> "BlockDiagonal":
        return BlockDiagonal([block.H for block in self.blocks])

    _transpose = _adjoint  # weights are real


def _block(block: Any) -> LinearOperator:
    """Return an operator as it is, a matrix as an operator."""
    if isinstance(block, LinearOperator):
        return block
    matrix = real_array(block, "blocks")
    require(matrix.ndim == 2, "blocks", "must hold operators and matrices of two axes", block)
    return aslinearoperator(matrix)


class Diagonal(LinearOperator):
    """The operator that multiplies each entry of a vector with its own number; its norm is the largest magnitude.

    Args:
        factors: (n,), real. Integers beyond 2**53 are rounded to float64; their bracket allows for it.
    """

    def __init__(self, factors: Any):
        self.factors = real_array(factors, "factors", exact=False).ravel()
        super().__init__(np.float64, (self.factors.size, self.factors.size))  # type: ignore[call-arg]

    def _matmat(self, X: Array) -> Array:
        return self.factors[:, None] * X

    def _matvec(self, x: Array) -> Array:
        return self.factors * x.ravel()

    def _adjoint(self) -> "Diagonal":
        return self

    _transpose = _adjoint  # weights are real
    _rmatmat, _rmatvec = _matmat, _matvec


@singledispatch
def linear_operator(layer: Any) -> LinearOperator:
    """Return the operator `A` of a built layer: `layer(x)` is `A @ x`, plus a bias, for one flattened input.

    A layer that acts on each position of its input (Dense, Embedding, BatchNormalization) gives the matrix of one
    position; a convolution built for an input of known size gives the matrix of the whole image, channels last. A
    convolution of PyTorch's gives the operator for every image size.

    Args:
        layer: A built layer of Keras, or a module of PyTorch, with exactly one linear map; see `linear_operators` for
            those with several.

    Raises:
        ValueError: When the layer is not built, has several linear maps, or its weights are not its map (quantized).
        TypeError: When nothing is registered for the layer's type.

    Example:
        >>> opnorm.linear_operator(layer).shape
        (2, 3)
    """
    if has_own(type(layer)):  # it was registered just now
        return linear_operator(layer)
    if home := _home(type(layer)):
        found: LinearOperator = home.the_map_of(layer)
        return found
    raise TypeError(
        "Argument `layer` must be of a type that was registered: "
        f"opnorm does not know the linear operator of {type(layer).__module__}.{type(layer).__qualname__}. Register a "
        "function of the layer that returns a LinearOperator: "
        f"`opnorm.linear_operator.register({type(layer).__name__}, function)`. Received: {layer!r}"
    )


@singledispatch
def linear_operators(layer: Any, *, gates: bool = False) -> dict[str, LinearOperator]:
    """Return every linear map inside a built layer, by the name of its weight or sublayer.

    A layer with one map gives `{"kernel": linear_operator(layer)}`. Recurrent layers give `kernel` and
    `recurrent_kernel`, separable convolutions `depthwise_kernel` and `pointwise_kernel`, attention its projections. A
    layer that holds others, such as `Bidirectional` or a model, gives theirs under the names of the layers on the way.
    Of a layer that only `opnorm.kernels` knows, the operators are those of its kernels' geometry.

    Args:
        layer: A built layer.
        gates: Split the kernels of LSTM and GRU into one map for each gate, named `kernel/0`, `kernel/1`, ...

    Example:
        >>> list(opnorm.linear_operators(layer))
        ['kernel']
    """
    if home := _home(type(layer)):
        found: dict[str, LinearOperator] = home.maps_of(layer, gates=gates)
        return found
    return {"kernel": linear_operator(layer)}


def is_registered(layer: Any) -> bool:
    """Return whether `linear_operator` knows the type of `layer`, or says why it does not, as of PyTorch's modules."""
    return has_own(type(layer)) or _home(type(layer)) is not None


def has_own(kind: type) -> bool:
    """Return whether an operator is registered for a type itself."""
    _home(kind)  # which registers its own
    return linear_operator.dispatch(kind) is not linear_operator.dispatch(object)


def _home(kind: type) -> ModuleType | None:
    """Return the module of a front end that knows a type, whose framework is there already; None for other types."""
    bases = [(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__]
    if ("keras", "Layer") in bases:  # on PyTorch a module, too
        return None
    front = next((_HOMES[base] for base in bases if base in _HOMES), None)
    return None if front is None else import_module(f"opnorm.{front}.operators")
