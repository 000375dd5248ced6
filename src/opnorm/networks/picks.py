"""The entries of one axis that a node picks: a part of a Split, or a Slice."""

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.effects import Shape, find, input_shapes, integers


class Pick(NamedTuple):
    """Entries of one axis, each taken once."""

    axis: int  # of the value with its batch, from the front
    places: range


def pick_of(node: Node) -> Pick | None:
    """Return what a node picks of its one input, None where that is no part of one axis, or is not known."""
    shapes = input_shapes(node) if node.kind in ("Split", "Slice") and len(node.inputs) == 1 else None
    try:
        return _pick(node, shapes[0]) if shapes else None
    except (ArithmeticError, LookupError, TypeError, ValueError):  # settings come from files
        return None


def _pick(node: Node, shape: Shape) -> Pick | None:
    if node.kind == "Split":
        axis = index(node.options.get("axis", 0)) % len(shape)
        return Pick(axis, places_of_part(node, index(shape[axis])))  # type: ignore[arg-type]
    cuts = {axis % len(shape): cut for axis, cut in cuts_of(node).items() if cut != slice(None)}
    ((axis, cut),) = cuts.items()
    return Pick(axis, range(index(shape[axis]))[cut])  # type: ignore[arg-type]


def places_of_part(node: Node, size: int) -> range:
    """Return the places of the part that a Split is, on an axis of that size.

    Raises:
        ValueError: When the parts do not make up the axis, or are not told.
    """
    part, stored = index(node.options["part"]), find(node.weights, "1")
    told = node.options.get("split") if stored is None else stored.astype(int).tolist()
    sizes = _equal(node, size) if told is None else [index(n) for n in told]
    if sum(sizes) != size or min(sizes) < 0 or not 0 <= part < len(sizes) or set(node.weights) - {"1"}:
        raise ValueError(f"parts of {sizes} on an axis of {size}")
    return range(sum(sizes[:part]), sum(sizes[: part + 1]))


def _equal(node: Node, size: int) -> list[int]:
    parts = index(node.options.get("num_outputs") or node.options["parts"])
    each = -(-size // parts)
    return [each] * (parts - 1) + [size - each * (parts - 1)] if parts <= size else []


def cuts_of(node: Node) -> dict[int, slice]:
    """Return the cuts of a Slice by axis.

    Raises:
        ValueError: When they are computed.
    """
    if "cuts" in node.options:  # of a Keras tensor
        return dict(enumerate(node.options["cuts"]))
    starts, ends, axes, steps = (integers(node.weights, str(i)) for i in range(1, 5))
    if starts is None or ends is None or "target" in node.options:
        raise ValueError("limits that are computed")
    return cuts(starts, ends, axes, steps)


def cuts(starts: Array, ends: Array, axes: Array | None, steps: Array | None) -> dict[int, slice]:
    """Return the cuts that ONNX's numbers of a Slice mean, by axis."""
    places: Sequence[int] = range(starts.size) if axes is None else axes.astype(int).tolist()
    strides = np.ones(starts.size) if steps is None else steps
    found = zip(starts.ravel(), ends.ravel(), strides.ravel(), strict=True)
    return dict(zip(places, (slice(*map(int, cut)) for cut in found), strict=True))
