"""The linear maps of layers that hold other layers, and of layers that only `opnorm.kernels` knows.

Whatever `opnorm.constrain` finds a kernel in, `opnorm.linear_operators` has an operator for.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import keras
import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from opnorm.checks import Array, real_array, to_flag
from opnorm.keras.geometry import KernelGeometry, kernels
from opnorm.keras.layers import require_weights, several
from opnorm.keras.sites import unlike, walk
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal, is_registered, linear_operator, linear_operators

Maps = dict[str, LinearOperator]


@linear_operators.register
def of_any_layer(layer: keras.Layer, *, gates: bool = False) -> Maps:
    """Return the one map of a layer that has one; else its own kernels' and those of the layers inside."""
    to_flag("gates", gates)
    return {"kernel": linear_operator(layer)} if is_registered(layer) else held(layer, gates=gates)


def held(layer: keras.Layer, *, gates: bool = False) -> Maps:
    """Return the maps of the layers inside of `layer`, each under the names of the layers on the way to it.

    Raises:
        TypeError: When there is none.
    """
    require_weights(layer)
    found = list(_held(layer, gates))
    if not found:
        linear_operator(layer)  # raises the error that says how to register a type
    return dict(zip(unlike([name for name, _ in found]), (operator for _, operator in found), strict=True))


def _held(layer: keras.Layer, gates: bool) -> Iterator[tuple[str, LinearOperator]]:
    yield from _by_geometry(layer).items()
    inside: set[int] = set()  # what belongs to a layer that speaks for itself, as the cell of an LSTM
    for path, part, parent in walk(layer):
        if parent is not None and id(part) not in inside:
            maps = own_maps(part, gates=gates)
            yield from ((f"{path}/{name}", operator) for name, operator in maps.items())
            inside |= {id(one) for _, one, _ in walk(part)} if maps else set()


def own_maps(layer: keras.Layer, *, gates: bool = False) -> Maps:
    """Return the maps that are registered for the type of `layer`, or for its own kernels; none for any other."""
    if linear_operators.dispatch(type(layer)) is not of_any_layer or is_registered(layer):
        return linear_operators(layer, gates=gates)
    return _by_geometry(layer)


def _by_geometry(layer: keras.Layer) -> Maps:
    geometries = kernels(layer)
    if geometries:
        require_weights(layer)
    return {one.name: geometric(one, real_array(getattr(layer, one.name), one.name)) for one in geometries}


def geometric(geometry: KernelGeometry, kernel: Array) -> LinearOperator:
    """Return the operator that `geometry` makes of `kernel`: the matrix, or the convolution for every image size."""
    if geometry.strides is not None:
        last = geometry.convolution_axis in (-1, (-1,))
        shape = kernel.shape if last else (*kernel.shape[:-2], 1, prod(kernel.shape[-2:]))
        return Convolution(kernel.reshape(shape), strides=geometry.strides, groups=geometry.groups)
    axes = (geometry.axis,) if isinstance(geometry.axis, int) else geometry.axis
    outputs = prod(kernel.shape[axis] for axis in axes)
    matrix = np.moveaxis(kernel, axes, range(-len(axes), 0)).reshape(-1, outputs)
    blocks = [aslinearoperator(block.T) for block in np.split(matrix, geometry.groups, axis=1)]
    return blocks[0] if len(blocks) == 1 else BlockDiagonal(blocks)


@linear_operators.register(keras.layers.RNN)
def _(layer: Any, *, gates: bool = False) -> Maps:
    require_weights(layer)
    return linear_operators(layer.cell, gates=gates)


@linear_operators.register(keras.layers.TimeDistributed)
def _(layer: Any, *, gates: bool = False) -> Maps:
    return linear_operators(layer.layer, gates=gates)


@linear_operators.register(keras.layers.MultiHeadAttention)
@linear_operators.register(keras.layers.GroupQueryAttention)
def _(layer: Any, *, gates: bool = False) -> Maps:
    require_weights(layer)
    parts = [part for _, part, _ in walk(layer) if isinstance(part, keras.layers.EinsumDense)]
    return {part.name.removeprefix("attention_"): linear_operator(part) for part in parts}


linear_operators.register(keras.layers.Bidirectional, held)
linear_operators.register(keras.layers.StackedRNNCells, held)
for _kind in (
    keras.layers.RNN,
    keras.layers.Bidirectional,
    keras.layers.StackedRNNCells,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
):
    linear_operator.register(_kind, several)
