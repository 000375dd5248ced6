"""TFLite's sparse tensors: the values of a tree whose levels are axes, dense or compressed, and axes inside blocks."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints.files import check_growth, require


class Level(NamedTuple):
    """An axis: every node has `size` children, or those that the indices between two segments name."""

    size: int
    segments: np.ndarray | None = None
    indices: np.ndarray | None = None


class Sparsity(NamedTuple):
    """How a tensor's values are stored."""

    order: tuple[int, ...]  # the axis of each level: of the tensor, then those inside its blocks
    blocks: tuple[int, ...]  # for each axis inside a block the tensor's axis that it cuts
    levels: tuple[Level, ...]


def densified(name: str, values: np.ndarray, shape: tuple[int, ...], sparsity: Sparsity) -> np.ndarray:
    """Return the dense tensor; everything is held against its shape and the number of values before it is made."""
    order, blocks, levels = sparsity
    rank = len(shape)
    proper = sorted(order) == list(range(rank + len(blocks))) and len(levels) == len(order)
    require(proper and all(0 <= axis < rank for axis in blocks), f"{name!r} is sparse along axes that it does not have")
    check_growth(name, prod(shape) * values.itemsize, values.nbytes)
    inner = _inner(order, blocks, levels)
    places = np.zeros((1, rank), np.int64)  # of the nodes of a level
    for axis, level in zip(order, levels, strict=True):
        parents, index = _children(name, level, len(places), prod(shape))
        own, step = (axis, inner.get(axis, 1)) if axis < rank else (blocks[axis - rank], 1)
        places = places[parents]
        places[:, own] += index * step
    require(len(places) == len(values), f"{name!r} stores {len(values)} values for {len(places)} places")
    require(bool(np.all((places >= 0) & (places < np.array(shape)))), f"{name!r} has a value outside its shape")
    dense = np.zeros(shape, values.dtype)
    dense[tuple(places.T)] = values
    return dense


def _inner(order: Sequence[int], blocks: Sequence[int], levels: Sequence[Level]) -> dict[int, int]:
    """Return for each axis that is cut into blocks how many places a block has along it."""
    rank = len(order) - len(blocks)
    sizes = {axis: level.size for axis, level in zip(order, levels, strict=True)}
    return {cut: sizes[rank + i] for i, cut in enumerate(blocks)}


def _children(name: str, level: Level, nodes: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each node of the next level its parent, and its index along the level's axis."""
    if level.segments is None or level.indices is None:
        require(level.size >= 0 and nodes * level.size <= limit, f"{name!r} has more places than entries")
        return np.repeat(np.arange(nodes), level.size), np.tile(np.arange(level.size), nodes)
    counts = np.diff(level.segments)
    fits = len(counts) == nodes and np.all(counts >= 0) and level.segments[0] == 0
    require(bool(fits) and counts.sum() == len(level.indices) <= limit, f"{name!r} has indices that do not fit")
    return np.repeat(np.arange(nodes), counts), level.indices
