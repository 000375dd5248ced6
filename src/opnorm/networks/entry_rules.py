"""Rules for nodes that pick, repeat, sort or weigh the entries of their input."""

from math import prod, sqrt
from operator import index

import numpy as np

from opnorm.bounds.certificates import up
from opnorm.checkpoints.keras_results import key_of
from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.effects import BoundWeight, Effect, Shape, Unbounded, called_with, find, fits, input_shapes, rule


def picked(node: Node) -> Effect:
    """Return the effect of a Gather at stored places: an entry counts as often as it is picked.

    Raises:
        Unbounded: When the places are computed.
    """
    places = find(node.weights, "1")
    if places is None or set(node.weights) != {"1"}:
        raise Unbounded("its table is not there, nor are the places that it reads")
    most = sum(_most(places[sign]) for sign in (places >= 0, places < 0))  # -1 may be the place n - 1
    return Effect(up(sqrt(max(most, 1))), f"picks an entry at most {max(most, 1)} times")


def _most(places: Array) -> int:
    return int(np.unique(places, return_counts=True)[1].max(initial=0))


@rule("Expand")
def _(node: Node, bounds: BoundWeight) -> Effect:
    target, shapes = find(node.weights, "1"), input_shapes(node)
    if target is None or shapes is None or set(node.weights) != {"1"}:
        raise Unbounded("repeats its input as often as something computed says")
    times = [_times(size, int(n)) for size, n in zip(_padded(shapes[0], target.size), target[::-1], strict=False)]
    return Effect(up(sqrt(prod(times))), f"repeats its input {prod(times)} times")


def _padded(shape: Shape, rank: int) -> Shape:
    """Return the sizes of a shape from the last on, those that broadcasting adds among them."""
    return (*shape[::-1], *[1] * max(0, rank - len(shape)))


def _times(size: int | str | None, target: int) -> int:
    """Return how often broadcasting repeats an axis: an open one may have one entry."""
    return 1 if isinstance(size, int) and size != 1 else max(target, 1)


@rule("keras.ops.GetItem")
def _(node: Node, bounds: BoundWeight) -> Effect:
    """Drop entries by numbers and slices; a list of places, or a mask, is something else."""
    if not key_of(node):
        raise Unbounded("what it picks is neither numbers nor slices")
    return Effect(1.0, "drops entries")


@rule("Where")
def _(node: Node, bounds: BoundWeight) -> Effect:
    shapes, roles = input_shapes(node), set(node.weights)
    if "0" not in roles or len(roles) != 2 or roles - {"0", "1", "2"} or shapes is None:
        raise Unbounded("it chooses by something computed, or between two values")
    if not all(fits(tuple(weight.shape), shapes[0]) for weight in node.weights.values()):
        raise Unbounded("its input may be repeated to fit")
    return Effect(1.0, "keeps entries, or has constants in their place")


@rule("TopK", "Trilu", "keras.ops.Sort")
def _(node: Node, bounds: BoundWeight) -> Effect:
    if not node.options.get("sorted", 1):
        raise Unbounded("in which order it gives its entries is not known")
    return Effect(1.0, "sorts entries, or drops them")  # sorting both brings two vectors nearer to each other


@rule("ReduceMin", "ReduceL2", "ReduceLogSumExp")
def _(node: Node, bounds: BoundWeight) -> Effect:
    return Effect(1.0, "its gradient is no longer than 1")


@rule("LogSoftmax")
def _(node: Node, bounds: BoundWeight) -> Effect:
    shapes = input_shapes(node)
    size = shapes[0][index(node.options.get("axis", -1))] if shapes else None
    if not isinstance(size, int) or node.options.get("axis", -1) not in (-1, len(shapes[0] if shapes else ()) - 1):
        raise Unbounded("over how many classes it runs is not known")
    return Effect(up(sqrt(size)), f"root of its {size} classes")


@rule("LRN")
def _(node: Node, bounds: BoundWeight) -> Effect:
    alpha, beta = float(node.options.get("alpha", 1e-4)), float(node.options.get("beta", 0.75))
    bias, size = float(node.options.get("bias", 1.0)), index(node.options["size"])
    if not (alpha >= 0 and beta > 0 and bias > 0 and size > 0):
        raise Unbounded(f"no bound is known for alpha {alpha:g}, beta {beta:g}, bias {bias:g} and {size} channels")
    own, others = bias**-beta, 2 * sqrt(size) * (1 + 1 / beta) ** -(beta + 1)
    return Effect(up(own * (1 + others)), f"divides by what {size} neighbouring channels hold")


@rule("keras.ops.Flip", "keras.ops.Roll", "keras.ops.Swapaxes", "keras.ops.Moveaxis")
def _(node: Node, bounds: BoundWeight) -> Effect:
    if called_with(node):
        raise Unbounded("it was called with arguments that opnorm does not read")
    return Effect(1.0, "moves entries")


@rule("keras.ops.Repeat", "keras.ops.Tile")
def _(node: Node, bounds: BoundWeight) -> Effect:
    repeats = node.options["repeats"]
    counts = repeats if isinstance(repeats, list | tuple) and node.kind == "keras.ops.Tile" else [repeats]
    if called_with(node) or not all(type(count) is int and count > 0 for count in counts):
        raise Unbounded("repeats its input as often as something else than numbers says")
    return Effect(up(sqrt(prod(counts))), f"repeats its input {prod(counts)} times")


@rule("keras.ops.Take")
def _(node: Node, bounds: BoundWeight) -> Effect:
    given, axis, shapes = called_with(node), node.options.get("axis"), input_shapes(node)
    places = np.asarray(given["args"][0]) if set(given) == {"args"} and len(given["args"]) == 1 else np.zeros(0)
    size = shapes[0][axis] if shapes and isinstance(axis, int) else None
    if places.size == 0 or places.dtype.kind != "i" or not isinstance(size, int):
        raise Unbounded("which places of how many it reads is not known")
    if places.min() < -size or places.max() >= size:
        raise Unbounded("it reads places beyond its input's, each backend others")
    most = _most(places % size)
    return Effect(up(sqrt(most)), f"picks an entry at most {most} times")
