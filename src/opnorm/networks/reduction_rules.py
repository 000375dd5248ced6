"""Rules for nodes that make one entry of many: maxima, means and sums over axes."""

from math import prod, sqrt
from operator import index

from opnorm.bounds.certificates import up
from opnorm.checkpoints.records import Node
from opnorm.networks.effects import BoundWeight, Effect, Unbounded, called_with, find, rule
from opnorm.networks.sizes import image_size


@rule("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GlobalMaxPool", "ReduceMax")
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "the maximum moves no more than the entry that moves most")


@rule("keras.ops.Max from an initial value on", "keras.ops.Min from an initial value on")
def _(node: Node, bounds: BoundWeight) -> Effect:
    initial = node.options["initial"]
    if type(initial) not in (int, float):
        raise Unbounded("its initial value may repeat what it gives")
    return Effect(1.0, "the maximum moves no more than the entry that moves most")


@rule("GlobalAveragePooling1D")
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "mean over an unknown number of entries, at least one", sized=False)


@rule("ReduceMean")
def _(node: Node, bounds: BoundWeight) -> Effect:
    count = reduced_count(node)
    if count is None:
        return Effect(1.0, "mean over an unknown number of entries, at least one", sized=False)
    return Effect(up(1 / sqrt(count)), f"mean over {count} entries", sized=True)


@rule("ReduceSum")
def _(node: Node, bounds: BoundWeight) -> Effect:
    count = reduced_count(node)
    if count is None:
        raise Unbounded("sums over an unknown number of entries")
    return Effect(up(sqrt(count)), f"sum over {count} entries", sized=True)


@rule("ReduceL1")
def _(node: Node, bounds: BoundWeight) -> Effect:
    count = reduced_count(node)
    if count is None:
        raise Unbounded("adds up the magnitudes of an unknown number of entries")
    return Effect(up(sqrt(count)), f"magnitudes of {count} entries", sized=True)


@rule("GlobalAveragePooling2D", "GlobalAveragePooling3D", "GlobalAveragePool")
def _(node: Node, bounds: BoundWeight) -> Effect:
    pixels = image_size(node)
    if pixels is None:
        return Effect(1.0, "mean over an unknown number of pixels, at least one", sized=False)
    return Effect(up(1 / sqrt(prod(pixels))), f"mean over {prod(pixels)} pixels", sized=True)


def reduced_count(node: Node) -> int | None:
    """Return the number of entries that a reduction makes one of in every run, None where that is open."""
    shapes, axes = node.options.get("input_shapes"), reduced_axes(node)
    shape = shapes[0] if shapes and len(shapes) == len(node.inputs) == 1 else None
    if shape is None or not axes:
        return None
    sizes = [shape[axis] for axis in {axis % len(shape) for axis in axes}]  # which may be named twice
    return prod(sizes) if all(type(size) is int and size > 0 for size in sizes) else None


def reduced_axes(node: Node) -> tuple[int, ...] | None:
    """Return the axes over which a reduction goes, as its file has them; None where that is not told."""
    options, steered = node.options, find(node.weights, "1")
    axes = options.get("axes", called_with(node).get("axis", options.get("axis")))
    axes = axes if steered is None else steered.ravel().astype(int).tolist()
    if axes is None or set(node.weights) - {"1"}:
        return None
    return tuple(index(axis) for axis in ([axes] if isinstance(axes, int) else axes))
