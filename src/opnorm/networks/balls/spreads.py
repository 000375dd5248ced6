"""Padding, cropping, repeating and upsampling on a ball: what gives entries new places, copies or zeros beside them."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.linear import moved_by, moving, norm_of, through
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, Found, Space, Value
from opnorm.networks.effects import RULES, BoundWeight, find, integers, per_axis, text_of

Pairs = Sequence[tuple[int, int]]  # before and behind each axis


@rule("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def _(node: Node, bounds: BoundWeight) -> Rule:
    pairs = _pairs(node, "padding")
    return moved_by(lambda v: np.pad(v, [(0, 0), *_along(node, pairs, v.ndim - 1)]))


@rule("Cropping1D", "Cropping2D", "Cropping3D")
def _(node: Node, bounds: BoundWeight) -> Rule:
    pairs = _pairs(node, "cropping")

    def cropped(v: Array) -> Array:
        sizes = zip(v.shape[1:], _along(node, pairs, v.ndim - 1), strict=True)
        return np.asarray(v[(slice(None), *(slice(a, n - b) for n, (a, b) in sizes))])

    return moved_by(cropped)


def _pairs(node: Node, option: str) -> Pairs:
    """Return what Keras has for each spatial axis: one number, a pair, or a pair for each."""
    rank, given = int(node.kind[-2]), node.options[option]
    if isinstance(given, int):
        return [(given, given)] * rank
    if rank == 1:
        return [(int(given[0]), int(given[1]))]
    return [(one, one) if isinstance(one, int) else (int(one[0]), int(one[1])) for one in given]


def _along(node: Node, pairs: Pairs, rank: int) -> Pairs:
    """Return the pairs of all axes of a value, batch included."""
    first = node.options.get("data_format") == "channels_first"
    found = [(0, 0), *([(0, 0)] if first else []), *pairs, *([] if first else [(0, 0)])]
    if len(found) != rank:
        raise not_followed(f"{len(pairs)} spatial axes of {rank} in all")
    return found


@rule("Pad")
def _(node: Node, bounds: BoundWeight) -> Rule:
    mode, fill = text_of(node.options.get("mode", "constant")), find(node.weights, "2", "value")
    stored, axes = integers(node.weights, "1"), integers(node.weights, "3")
    amounts = [int(n) for n in (node.options.get("pads") or () if stored is None else stored)]
    number = float(node.options.get("value") or 0.0) if fill is None else float(fill.item())
    if (
        node.options.get("steered")
        or not amounts
        or mode not in ("constant", "edge", "reflect", "wrap")
        or set(node.weights) - {"1", "2", "3"}
    ):
        raise not_followed("how it pads is computed, or not known")
    if min(amounts) < 0 and mode != "constant":
        raise not_followed("it drops entries and repeats others")
    norm = norm_of(node, bounds)

    def padded(values: list[Value], space: Space) -> Found:
        rank = values[0].centre.ndim
        places = range(rank) if axes is None else [int(axis) % rank for axis in axes]
        half = len(amounts) // 2
        given = dict(zip(places, zip(amounts[:half], amounts[half:], strict=True), strict=True))
        pairs = [given.get(axis, (0, 0)) for axis in range(rank)]
        if pairs[0] != (0, 0):
            raise not_followed("it pads the examples of a batch")
        if any(n < max(-a, 0) + max(-b, 0) for n, (a, b) in zip(values[0].centre.shape, pairs, strict=True)):
            raise not_followed("it drops more entries than there are")
        grown = [(max(a, 0), max(b, 0)) for a, b in pairs]

        def around(v: Array, **options: Any) -> Array:
            cut = [slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(v.shape[1:], pairs, strict=True)]
            padded: Array = np.pad(v[(slice(None), *cut)], [(0, 0), *grown], mode, **options)  # type: ignore[call-overload]
            return padded

        filled = {} if mode != "constant" or not number else {"constant_values": number}
        border = around(np.zeros((1, *values[0].centre.shape)), **filled)[0] if filled else 0.0
        return through(moving(around, norm), values[0], border)

    return padded


@rule("RepeatVector")
def _(node: Node, bounds: BoundWeight) -> Rule:
    (count,) = per_axis(node.options["n"], 1)
    return moved_by(lambda v: np.repeat(v[:, :, None], count, axis=2), sqrt(count) * SPARE)


@rule("Tile", "Expand")
def _(node: Node, bounds: BoundWeight) -> Rule:
    stored = integers(node.weights, "1")
    if stored is None or set(node.weights) != {"1"}:
        raise not_followed("it repeats its input as often as something computed says")
    numbers = [int(n) for n in stored]
    spread: Callable[[Array], Array] = (lambda v: np.tile(v, numbers)) if node.kind == "Tile" else _expanded(numbers)

    def repeated(values: list[Value], space: Space) -> Found:
        centre = values[0].centre
        copies = spread(centre).size / max(1, centre.size)
        if spread(centre).shape[:1] != centre.shape[:1] or spread(centre).ndim != centre.ndim:
            raise not_followed("it repeats the examples of a batch")
        return through(moving(lambda v: _stacked(spread, v), sqrt(copies) * SPARE), values[0])

    return repeated


def _expanded(shape: Sequence[int]) -> Callable[[Array], Array]:
    return lambda v: np.broadcast_to(v, np.broadcast_shapes(v.shape, tuple(shape)))


def _stacked(spread: Callable[[Array], Array], v: Array) -> Array:
    """Return what a function of one value makes of each of a stack, of which there may be none."""
    shape = spread(np.zeros(v.shape[1:])).shape
    return np.array([spread(one) for one in v]).reshape(len(v), *shape)


@rule("UpSampling1D", "UpSampling2D", "UpSampling3D", "Resize", "Upsample")
def _(node: Node, bounds: BoundWeight) -> Rule:
    norm = RULES[node.kind](node, bounds).constant  # raises where it is anything but repeating each pixel, or linear
    if node.kind in ("Resize", "Upsample"):
        stored = find(node.weights, "2" if node.kind == "Resize" else "1", "scales")
        factors = [] if stored is None else [int(n) for n in stored]
    else:
        if node.options.get("interpolation", "nearest") != "nearest":
            raise not_followed("interpolation")
        sizes = per_axis(node.options["size"], int(node.kind[-2]))
        first = node.options.get("data_format") == "channels_first"
        factors = [1, *([1] if first else []), *sizes, *([] if first else [1])]
    if not factors or factors[0] != 1 or "3" in node.weights or "axes" in node.options:
        raise not_followed("how often it repeats its input is not told")

    def larger(v: Array) -> Array:
        if v.ndim - 1 != len(factors):
            raise not_followed("axes that are not told")
        for axis, factor in enumerate(factors, 1):
            v = np.repeat(v, factor, axis=axis)
        return v

    return moved_by(larger, norm)


@rule("DepthToSpace", "SpaceToDepth")
def _(node: Node, bounds: BoundWeight) -> Rule:
    n, column = int(node.options["blocksize"]), text_of(node.options.get("mode", "DCR")) == "CRD"

    def arranged(v: Array) -> Array:
        count, batch, channels, height, width = v.shape
        if node.kind == "SpaceToDepth":
            parts = v.reshape(count, batch, channels, height // n, n, width // n, n).transpose(0, 1, 4, 6, 2, 3, 5)
            return parts.reshape(count, batch, channels * n * n, height // n, width // n)
        shape, order = (
            ((channels // n**2, n, n), (0, 1, 2, 5, 3, 6, 4))
            if column
            else ((n, n, channels // n**2), (0, 1, 4, 5, 2, 6, 3))
        )
        parts = v.reshape(count, batch, *shape, height, width).transpose(order)
        return parts.reshape(count, batch, channels // n**2, height * n, width * n)

    return moved_by(arranged)
