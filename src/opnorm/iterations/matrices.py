"""A kernel as the matrix, or the diagonal blocks of the matrix, that its layer applies."""

from collections.abc import Callable
from math import prod

from keras import ops

from opnorm.backends.primitives import Tensor, concatenate
from opnorm.checks import require
from opnorm.iterations.power import Maps

Axis = int | tuple[int, ...]


def to_matrix(kernel: Tensor, axis: Axis, groups: int) -> Tensor:
    """Return `kernel` with its output axes as columns: `(rows, columns)`, or `(rows, groups, columns)` of one block.

    No copy is made when the output axes come last, as in Keras's dense and convolution kernels.
    """
    blocks = output_shape(tuple(kernel.shape), axis, groups)
    order = _order(kernel.shape, axis)
    if order != sorted(order):
        kernel = ops.transpose(kernel, order)
    return ops.reshape(kernel, (-1, *blocks))


def from_matrix(matrix: Tensor, shape: tuple[int, ...], axis: Axis) -> Tensor:
    """Return the kernel of `shape` of which `matrix` is `to_matrix`."""
    order = _order(shape, axis)
    kernel = ops.reshape(matrix, [shape[i] for i in order])
    return kernel if order == sorted(order) else ops.transpose(kernel, [order.index(i) for i in range(len(order))])


def matrix_maps(matrix: Tensor) -> Maps:
    """Return the maps of `(rows, columns)` or `(rows, groups, columns)`, which read the kernel where it lies."""
    if len(matrix.shape) == 2:
        # A product a vector: XLA on CPUs is faster at two of these than at one with a thin matrix, and the kernel is
        # still in the cache for the second.
        return Maps(
            lambda u: _each(lambda x: (matrix @ x[0][:, None])[None, :, 0], u), lambda v: _each(lambda x: x @ matrix, v)
        )
    return Maps(lambda u: ops.einsum("rgc,kgc->kgr", matrix, u), lambda v: ops.einsum("rgc,kgr->kgc", matrix, v))


def _each(function: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    if vectors.shape[0] == 1:
        return function(vectors)
    return concatenate([function(vectors[i : i + 1]) for i in range(vectors.shape[0])])


def output_shape(shape: tuple[int, ...], axis: Axis, groups: int) -> tuple[int, ...]:
    """Return the shape of `u` for a kernel of `shape`: `(columns,)`, or `(groups, columns)` of one block."""
    return _blocks([shape[i] for i in _output_axes(shape, axis)], groups)


def _blocks(outputs: list[int], groups: int) -> tuple[int, ...]:
    columns = prod(outputs)
    require(columns % groups == 0, "groups", f"must divide the number of output channels, {columns}", groups)
    return (columns,) if groups == 1 else (groups, columns // groups)


def _order(shape: tuple[int, ...], axis: Axis) -> list[int]:
    outputs = _output_axes(shape, axis)
    return [i for i in range(len(shape)) if i not in outputs] + outputs


def _output_axes(shape: tuple[int, ...], axis: Axis) -> list[int]:
    axes = [axis] if isinstance(axis, int) else list(axis)
    inside = all(-len(shape) <= i < len(shape) for i in axes)
    different = inside and len({i % len(shape) for i in axes}) == len(axes)
    require(different, "axis", f"must name different axes of the kernel, whose shape is {tuple(shape)}", axis)
    return [i % len(shape) for i in axes]
