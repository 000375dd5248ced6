"""Keras values of integer types: what computes with them wraps around, or truncates what it is fed."""

import re
from collections.abc import Iterable, Iterator, Set
from typing import Any

from opnorm.checkpoints.keras_layers import Layer
from opnorm.checkpoints.records import Node

_SUMS = ("Add", "Subtract", "Multiply", "Average", "Dot")
_MOVES = (  # which leave numbers as they are
    "Reshape", "Flatten", "Permute", "Concatenate", "RepeatVector", "Maximum", "Minimum", "Slice", "Split", "Identity",
    "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D",
)  # fmt: skip
_MOVED = (
    "Concatenate", "ExpandDims", "Flip", "GetItem", "Moveaxis", "Repeat", "Reshape", "Roll", "Squeeze", "Stack",
    "Swapaxes", "Take", "Tile", "Transpose",
)  # fmt: skip
_QUOTIENTS = ("Divide", "TrueDivide", "Quotient")  # of integers are floating-point numbers


def is_whole(layer: Layer) -> bool:
    """Return whether an input's numbers are integers."""
    return is_integer_type(layer.config.get("dtype"))


def is_integer_type(dtype: Any) -> bool:
    """Return whether that is the name of a type of integers."""
    return isinstance(dtype, str) and re.fullmatch(r"bool|u?int\d+", dtype) is not None


def without_wrapping(nodes: Iterable[Node], whole: Set[str]) -> Iterator[Node]:
    """Yield the nodes of a graph, in order; those that compute with integers as ones that are not read.

    Layers with a dtype of their own cast what they are given; functions, and layers that merge, do not.
    """
    integers = set(whole)
    for node in nodes:
        function = node.kind.removeprefix("keras.ops.")
        is_function = function != node.kind
        if integers.isdisjoint(node.inputs):
            yield node
        elif node.kind in _MOVES or (is_function and function in _MOVED):
            integers.add(node.name)
            yield node
        elif node.kind in _SUMS or (is_function and function not in ("Cast", *_QUOTIENTS) and not _has_float(node)):
            integers.add(node.name)
            yield Node(node.name, "Unread", node.inputs, {"reason": "it computes with integers, which wrap around"}, {})
        else:
            yield node


def _has_float(node: Node) -> bool:
    """Return whether a function is given a floating-point number, to whose type it casts."""
    return any(isinstance(value, float) for value in _flat(node.options.get("arguments") or {}))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value
