"""Pooling on a ball: windows without padding, evaluated place by place."""

from collections.abc import Callable
from itertools import product
from math import inf, prod, sqrt
from typing import Any

import numpy as np

from opnorm.checkpoints.records import Node
from opnorm.checks import Array
from opnorm.networks.balls.extremes import apart, of_pair
from opnorm.networks.balls.linear import Linear, norm_of, through
from opnorm.networks.balls.rules import Rule, not_followed, rule
from opnorm.networks.balls.values import SPARE, TINY, Found, Space, Value, length, rounding
from opnorm.networks.effects import BoundWeight
from opnorm.networks.pooling import Window
from opnorm.networks.shape_rules import windows_of

_NUMBERS = 2**27  # of the tangents of all entries that are compared: 1 GiB
_MUCH = 4.0  # times what is not known of a value anyway
_KEPT = ("centre", "error", "rest", "size", "rows", "reach", "moved")


@rule("AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "AveragePool")
def _(node: Node, bounds: BoundWeight) -> Rule:
    windows = windows_of(node)
    if any(w.pads == "same" or w.pads != (0, 0) or w.ceil_mode for w in windows):
        raise not_followed("padding")
    first = _channels_first(node)

    def pooled(values: list[Value], space: Space) -> Found:
        count = prod(w.size for w in windows)

        def mean(v: Array) -> Array:
            return np.asarray(sum(_shifts(v, windows, first)) / count)

        norm = inf if any(w.stride < w.extent for w in windows) else SPARE / sqrt(count)
        return through(Linear(mean, mean, count + 2, min(1.0, norm)), values[0])

    return pooled


@rule("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "MaxPool")
def _(node: Node, bounds: BoundWeight) -> Rule:
    windows, first = windows_of(node), _channels_first(node)
    if any(w.pads == "same" or w.pads != (0, 0) or w.ceil_mode for w in windows):
        raise not_followed("padding")
    constant = norm_of(node, bounds)
    return lambda values, space: largest(values[0], space, lambda v: _shifts(v, windows, first), constant)


Shifts = Callable[[Array], list[Array]]  # of a stack of values, the entries that are compared


def largest(value: Value, space: Space, shifts: Shifts, constant: float) -> Found:
    """Return the largest of several entries.

    Where it is open which one that is, and not much else, as on a background of one color, it is worked out pair by
    pair: which of two is larger is an open neuron.
    """
    if sum(part.size for part in shifts(value.centre[None])) * len(value.tangents) > _NUMBERS:
        raise not_followed("the Jacobians of all that may be a maximum do not fit")
    found, beyond = _all_that_may(value, space, shifts, constant)
    if not len(value.tangents) or beyond <= _MUCH * value.whole:
        return found
    entries = _entries(value, shifts)
    while len(entries) > 1:
        pairs = list(zip(entries[::2], entries[1::2], strict=False))
        met = [space.value("", of_pair(a, b, apart(a, b, space), 1.0, space)) for a, b in pairs]
        entries = met + entries[2 * len(pairs) :]
    (top,) = entries
    return Found(top.centre, top.error, top.tangents, top.rest, top.whole)


def _entries(value: Value, shifts: Shifts) -> list[Value]:
    """Return the values that are compared."""
    parts = {name: shifts(getattr(value, name)[None]) for name in _KEPT}
    return [
        value._replace(tangents=tangents, **{name: arrays[k][0] for name, arrays in parts.items()})
        for k, tangents in enumerate(shifts(value.tangents))
    ]


def _all_that_may(value: Value, space: Space, shifts: Shifts, constant: float) -> tuple[Found, float]:
    """Return the largest of several entries: whichever may be it on the ball, its Jacobian's row counts."""
    parts = {name: np.stack(shifts(getattr(value, name)[None]))[:, 0] for name in _KEPT}
    best = np.argmax(parts["centre"], axis=0)[None]
    floor = np.max(parts["centre"] - parts["reach"], axis=0)
    rival = parts["centre"] + parts["reach"] >= floor
    taken = {name: np.take_along_axis(numbers, best, axis=0)[0] for name, numbers in parts.items()}
    stacks = np.stack(shifts(value.tangents))
    tangents = np.take_along_axis(stacks, best[:, None], axis=0)[0]
    far = np.stack([space.open.norms(one) for one in stacks - tangents]) + rounding(1, parts["size"] + taken["size"])
    others = rival & (np.arange(len(rival)).reshape(-1, *[1] * (rival.ndim - 1)) != best)
    rest = np.maximum(taken["rest"], np.max(np.where(others, far + parts["rest"], 0.0), axis=0)) * SPARE
    error = np.max(np.where(rival, parts["error"], 0.0), axis=0)
    beyond = length(np.max(np.where(others, far, 0.0), axis=0)) if np.any(others) else 0.0
    whole = min(constant * value.whole + beyond, length(rest)) if value.whole else length(rest)
    return Found(taken["centre"], error + TINY, tangents, rest, whole * SPARE), beyond


def _channels_first(node: Node) -> bool:
    return node.kind in ("AveragePool", "MaxPool") or node.options.get("data_format") == "channels_first"


def _shifts(v: Array, windows: list[Window], first: bool) -> list[Array]:
    """Return for each place in a window the entries that all windows have there."""
    axes = range(3, 3 + len(windows)) if first else range(2, 2 + len(windows))
    found = []
    for place in product(*(range(w.size) for w in windows)):
        index: list[Any] = [slice(None)] * v.ndim
        for axis, start, w in zip(axes, place, windows, strict=True):
            count = (v.shape[axis] - (w.size - 1) * w.dilation - 1) // w.stride + 1
            if count < 1:
                raise not_followed("a window that is longer than the image")
            index[axis] = slice(start * w.dilation, start * w.dilation + (count - 1) * w.stride + 1, w.stride)
        found.append(v[tuple(index)])
    return found
