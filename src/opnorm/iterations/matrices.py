"""A kernel as the matrix, or the diagonal blocks of the matrix, that its layer applies."""

from math import prod

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.checks import require
from opnorm.iterations.maps import Maps, Part

Axis = int | tuple[int, ...]


def to_matrix(kernel: Tensor, axis: Axis, groups: int) -> Tensor:
    """Return `kernel` with its output axes as columns: `(rows, groups, columns)`, of each block.

    No copy is made when the output axes come last, as in Keras's dense and convolution kernels.
    """
    xp = of(kernel)
    shape = xp.shape(kernel)
    blocks = output_shape(shape, axis, groups)
    order = _order(shape, axis)
    if order != sorted(order):
        kernel = xp.transpose(kernel, order)
    return xp.reshape(kernel, (prod(shape) // prod(blocks), *blocks))


def from_matrix(matrix: Tensor, shape: tuple[int, ...], axis: Axis) -> Tensor:
    """Return the kernel of `shape` of which `matrix` is `to_matrix`."""
    xp = of(matrix)
    order = _order(shape, axis)
    kernel = xp.reshape(matrix, [shape[i] for i in order])
    return kernel if order == sorted(order) else xp.transpose(kernel, [order.index(i) for i in range(len(order))])


def spread(values: Tensor, shape: tuple[int, ...], axis: Axis) -> Tensor:
    """Return one value a block, `(groups,)`, so that it multiplies the block's entries in a kernel of `shape`."""
    xp = of(values)
    outputs = _output_axes(shape, axis)
    sizes = tuple(size if i in outputs else 1 for i, size in enumerate(shape))
    blocks = output_shape(shape, axis, xp.shape(values)[0])
    return from_matrix(xp.reshape(values, (-1, 1)) * xp.table(values, np.ones, blocks), sizes, axis)


def matrix_maps(matrix: Tensor, alone: bool = False) -> Maps:
    """Return the maps of `(rows, groups, columns)`, which read the kernel where it lies.

    Args:
        matrix: Of a kernel, as `to_matrix` gives it.
        alone: Whether each block's norm counts by itself.
    """
    xp = of(matrix)
    rows, groups, columns = xp.shape(matrix)
    part = (Part(groups, rows, columns, alone),)
    if groups > 1:
        einsum = xp.einsum
        return Maps(lambda u: einsum("rgc,kgc->kgr", matrix, u), lambda v: einsum("rgc,kgr->kgc", matrix, v), part)
    flat = xp.reshape(matrix, (rows, columns))
    return Maps(lambda u: xp.images(flat, u[:, 0])[:, None], lambda v: xp.preimages(flat, v[:, 0])[:, None], part)


def product_maps(first: Tensor, second: Tensor) -> Maps:
    """Return the maps of A B^T of each pair of blocks of `(rows, groups, columns)`, which is not written out."""
    einsum = of(first).einsum
    rows, groups, _ = of(first).shape(first)
    part = (Part(groups, rows, int(second.shape[0]), alone=True),)
    return Maps(
        lambda u: einsum("igd,kgd->kgi", first, einsum("jgd,kgj->kgd", second, u)),
        lambda v: einsum("jgd,kgd->kgj", second, einsum("igd,kgi->kgd", first, v)),
        part,
    )


def output_shape(shape: tuple[int, ...], axis: Axis, groups: int) -> tuple[int, int]:
    """Return the blocks and the columns of each of a kernel of `shape`: `(groups, columns)`."""
    columns = prod(shape[i] for i in _output_axes(shape, axis))
    require(columns % groups == 0, "groups", f"must divide the number of output channels, {columns}", groups)
    return groups, columns // groups


def _order(shape: tuple[int, ...], axis: Axis) -> list[int]:
    outputs = _output_axes(shape, axis)
    return [i for i in range(len(shape)) if i not in outputs] + outputs


def _output_axes(shape: tuple[int, ...], axis: Axis) -> list[int]:
    axes = [axis] if isinstance(axis, int) else list(axis)
    inside = all(-len(shape) <= i < len(shape) for i in axes)
    different = inside and 0 < len(axes) == len({i % len(shape) for i in axes})
    require(different, "axis", f"must be one or more axes of the kernel, whose shape is {list(shape)}", axis)
    return [i % len(shape) for i in axes]
