"""Which axes of a value become which side of a product that an ONNX network makes of it later.

A bias along one side of a product is a bias; one whose entries are spread over both sides is a matrix of the product.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import inf
from operator import or_

from opnorm.checkpoints.onnx_shapes import Shape
from opnorm.checkpoints.onnx_unfold import Op

ROW, COLUMN, PLACE = 1, 2, 4  # the two sides of a product; which of many products
Sides = tuple[int, ...] | None  # for each axis of a value, what becomes of it, as a sum; None: not known
_RESHAPED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_CHANNELS = ("Conv", "ConvTranspose", "BatchNormalization")  # whose vectors lie along the second axis


def operand(op: Op, shape: Shape | None) -> Sides:
    """Return what becomes of the axes of an operand of a product of two values."""
    if op.kind not in ("MatMul", "Gemm") or shape is None or len(shape) < 2:
        return None
    return (*[PLACE] * (len(shape) - 2), ROW, COLUMN)


def before(op: Op, position: int, sides: Sides, shapes: Mapping[str, Shape]) -> Sides:
    """Return what becomes of the axes of an input, where `sides` says it of the operator's first result."""
    shape = shapes.get(op.inputs[position])
    if sides is None or shape is None:
        return None
    if op.kind == "Transpose":
        order = op.options.get("perm", range(len(sides))[::-1])
        known = sorted(order) == list(range(len(sides)))
        return tuple(sides[list(order).index(axis)] for axis in range(len(sides))) if known else None
    if op.kind in _RESHAPED:
        return _ungrouped(shape, shapes.get(op.outputs[0]), sides)
    if op.kind == "Gather" and len(shape) == len(sides) + 1:  # one index of an axis, which is gone then
        axis = op.options.get("axis", 0) % len(shape)
        return (*sides[:axis], PLACE, *sides[axis:])
    return sides if len(shape) == len(sides) else None


def _ungrouped(shape: Shape, after: Shape | None, sides: tuple[int, ...]) -> Sides:
    """Return the sides before a reshape: an axis has those of all axes over which its entries are spread."""
    if after is None or len(after) != len(sides) or sum(isinstance(size, str) for size in after) > 1:
        return None
    parts = list(zip(_strides(after), sides, strict=True))
    return tuple(_joined(side for part, side in parts if _meet(whole, part)) for whole in _strides(shape))


def _strides(shape: Shape) -> list[tuple[float, float]]:
    """Return for each axis how far apart its entries stand, and how far its last reaches; inf behind an open size."""
    low, found = 1.0, []
    for size in reversed(shape):
        high = low * size if isinstance(size, int) else inf
        found.append((low, high))
        low = low if high == inf else high
    return found[::-1]


def _meet(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _joined(sides: Iterable[int]) -> int:
    return reduce(or_, sides, 0)


def is_spread(op: Op, constant: Sequence[int], sides: Sides) -> bool:
    """Return whether the entries of a constant that enters an operator lie along both sides of the product."""
    if sides is None or len(constant) > len(sides):
        return False
    at = [1] if op.kind in _CHANNELS and len(constant) == 1 else range(len(sides) - len(constant), len(sides))
    met = _joined(sides[axis] for axis, size in zip(at, constant, strict=True) if size != 1)
    return met & ROW > 0 and met & COLUMN > 0
