"""Activations, and the slopes that they have on intervals: the ends of all difference quotients there."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf, expit, ndtr

from opnorm.bounds.certificates import UNIT
from opnorm.checks import Array
from opnorm.networks.activations import activation
from opnorm.networks.balls.rules import not_followed

Function = Callable[[Array], Array]
Slopes = Callable[[Array, Array], tuple[Array, Array]]  # of intervals: the ends of all difference quotients inside


class Known(NamedTuple):
    """A function of one number."""

    function: Function  # right to 32 ulps
    slopes: Slopes
    inexact: float = 0.0  # and this, where its terms cancel


_FAR = 1e-25  # where the normal distribution is less, at -10 and below, its digits are not all right
WIDER = 2.0**-40  # by which slopes are rounded outwards: a dozen elementary operations on numbers near one


def straight(*bends: tuple[float, float], first: float) -> Known:
    """Return a continuous piecewise linear function through the origin.

    Args:
        bends: Where it bends, from left to right, and its slope behind each.
        first: Its slope before them.
    """
    places = np.array([place for place, _ in bends])
    slopes = np.array([first, *(slope for _, slope in bends)])

    def function(v: Array) -> Array:
        return np.asarray(sum(s * _piece(v, *ends) for s, ends in zip(slopes, _pieces(places), strict=True)))

    def between(low: Array, high: Array) -> tuple[Array, Array]:
        met = [(low <= end) & (high >= begin) for begin, end in _pieces(places)]
        least = np.min([np.where(m, s, np.inf) for m, s in zip(met, slopes, strict=True)], axis=0)
        most = np.max([np.where(m, s, -np.inf) for m, s in zip(met, slopes, strict=True)], axis=0)
        return least, most

    return Known(function, between)


def _pieces(places: Array) -> list[tuple[float, float]]:
    ends = [-np.inf, *places.tolist(), np.inf]
    return list(pairwise(ends))


def _piece(v: Array, begin: float, end: float) -> Array:
    """Return how much of the way from the origin to `v` lies between two places, with its sign."""
    above = np.clip(v, max(begin, 0.0), max(end, 0.0)) - max(begin, 0.0)
    return np.asarray(above + np.clip(v, min(begin, 0.0), min(end, 0.0)) - min(end, 0.0))


def smooth(function: Function, derivative: Function, *extremes: tuple[float, float], rising: bool = True) -> Known:
    """Return a function whose derivative is monotone between the places of its extremes.

    Args:
        function: Right to 32 ulps.
        derivative: Its derivative, right to 2^-41.
        extremes: Where the derivative has its extremes, whole numbers or to a thousandth, and at least how far it gets.
        rising: Whether the function never falls.
    """

    def between(low: Array, high: Array) -> tuple[Array, Array]:
        ends = derivative(low), derivative(high)
        wider = WIDER * (1 + np.maximum(*np.abs(ends)))
        least, most = np.minimum(*ends) - wider, np.maximum(*ends) + wider
        for place, value in extremes:
            near = 0.0 if float(place).is_integer() else 1e-3
            inside = (low <= place + near) & (high >= place - near)
            least = np.where(inside, np.minimum(least, value), least)
            most = np.where(inside, np.maximum(most, value), most)
        return np.maximum(least, 0.0) if rising else least, most

    return Known(function, between)


def _gelu_slope(v: Array) -> Array:
    return np.asarray(ndtr(v) + v * np.exp(-(v**2) / 2) / sqrt(2 * np.pi))


def _silu_slope(v: Array) -> Array:
    return np.asarray(expit(v) * (1 + v * expit(-v)))


def _elu(alpha: float) -> Known:
    def derivative(v: Array) -> Array:
        return np.asarray(np.where(v > 0, 1.0, alpha * np.exp(np.minimum(v, 0.0))))

    def function(v: Array) -> Array:
        return np.asarray(np.where(v > 0, v, alpha * np.expm1(np.minimum(v, 0.0))))

    return smooth(function, derivative, (0.0, alpha), (0.0, 1.0), rising=alpha >= 0)


def _leaky(slope: float, most: float | None = None) -> Known:
    ends = ((0.0, 1.0),) if most is None else ((0.0, 1.0), (most, 0.0))
    return straight(*ends, first=slope)


def _hard_sigmoid(slope: float, shift: float) -> Known:
    """Return `clip(slope x + shift, 0, 1)`, which bends where rounding does not tell exactly."""
    if not slope > 0:
        raise not_followed(f"the slope {slope:g}")
    ends = (-shift / slope, slope), ((1 - shift) / slope, 0.0)
    margin, between = 2.0**-40 * (1 + abs(shift)) / slope, straight(*ends, first=0.0).slopes

    def wider(low: Array, high: Array) -> tuple[Array, Array]:
        least, most = between(low - margin, high + margin)
        return least * (1 - WIDER), most * (1 + WIDER)

    return Known(lambda v: np.clip(slope * v + shift, 0.0, 1.0), wider, 8 * UNIT * (1 + abs(shift)))


def _hard_silu_slope(v: Array) -> Array:
    return np.asarray(np.where(v < -3, 0.0, np.where(v > 3, 1.0, np.clip(v, -3, 3) / 3 + 0.5)))


def _mish_slope(v: Array) -> Array:
    t = np.tanh(np.logaddexp(0.0, v))
    return np.asarray(t + v * expit(v) * (1 - t) * (1 + t))


def _elu_times(scale: float, alpha: float) -> Known:
    if not scale > 0:
        raise not_followed(f"the factor {scale:g}")
    own = _elu(alpha)
    return Known(lambda v: scale * own.function(v), lambda low, high: _scaled_ends(scale, own.slopes(low, high)))


def _scaled_ends(scale: float, ends: tuple[Array, Array]) -> tuple[Array, Array]:
    least, most = ends[0] * scale, ends[1] * scale
    return least - WIDER * np.abs(least), most + WIDER * np.abs(most)


_ERF = smooth(erf, lambda v: 2 / sqrt(np.pi) * np.exp(-(v**2)), (0.0, 1.1283792))
_KNOWN: dict[str, Callable[[Mapping[str, Any]], Known]] = {
    "linear": lambda _: straight(first=1.0),
    "relu": lambda _: _leaky(0.0),
    "relu6": lambda _: _leaky(0.0, 6.0),
    "leaky_relu": lambda _: _leaky(0.2),
    "abs": lambda _: _leaky(-1.0),
    "hard_tanh": lambda _: straight((-1.0, 1.0), (1.0, 0.0), first=0.0),
    "tanh": lambda _: smooth(np.tanh, lambda v: 1 / np.cosh(np.clip(v, -300, 300)) ** 2, (0.0, 1.0)),
    "sigmoid": lambda _: smooth(expit, lambda v: expit(v) * expit(-v), (0.0, 0.25)),
    "softplus": lambda _: smooth(lambda v: np.logaddexp(0.0, v), expit),
    "silu": lambda _: smooth(lambda v: v * expit(v), _silu_slope, (2.3994, 1.09984), (-2.3994, -0.09984), rising=False),
    "erf": lambda _: _ERF,
    "elu": lambda options: _elu(float(options.get("alpha", 1.0))),
    "gelu": lambda options: smooth(
        lambda v: v * ndtr(v), _gelu_slope, (sqrt(2), 1.128994), (-sqrt(2), -0.128994), rising=False
    )._replace(inexact=_FAR),
    "selu": lambda _: _elu_times(1.05070098735548, 1.67326324235437),
    "softsign": lambda _: smooth(lambda v: v / (1 + np.abs(v)), lambda v: 1 / (1 + np.abs(v)) ** 2, (0.0, 1.0)),
    "log_sigmoid": lambda _: smooth(lambda v: -np.logaddexp(0.0, -v), lambda v: expit(-v)),
    "mish": lambda _: smooth(
        lambda v: v * np.tanh(np.logaddexp(0.0, v)), _mish_slope, (1.4906, 1.088499), (-2.2564, -0.112527), rising=False
    ),
    "hard_silu": lambda _: smooth(
        lambda v: v * (np.clip(v + 3, 0.0, 6.0) / 6), _hard_silu_slope,
        (-3.0, -0.5), (-3.0, 0.0), (3.0, 1.5), (3.0, 1.0), rising=False,
    ),
    "Selu": lambda options: _elu_times(
        float(options.get("gamma", np.float32(1.0507010))), float(options.get("alpha", np.float32(1.6732632)))
    ),
    "hard_sigmoid": lambda options: _hard_sigmoid(1 / 6, 0.5),
    "HardSigmoid": lambda options: _hard_sigmoid(float(options.get("alpha", 0.2)), float(options.get("beta", 0.5))),
    "ReLU": lambda options: _leaky(float(options.get("negative_slope") or 0.0), options.get("max_value")),
    "LeakyReLU": lambda options: _leaky(float(options.get("negative_slope", options.get("alpha", 0.3)))),
    "LeakyRelu": lambda options: _leaky(float(options.get("negative_slope", options.get("alpha", 0.01)))),
}  # fmt: skip
_SAME_AS = {
    "swish": "silu", "Silu": "silu", "SiLU": "silu", "absolute": "abs", "HardTanh": "hard_tanh",
    "LogSigmoid": "log_sigmoid", "SoftSign": "softsign",
    **dict.fromkeys(("hard_swish", "HardSwish", "HardSilu"), "hard_silu"),
}  # fmt: skip


def known_function(name: str, options: Mapping[str, Any]) -> Known:
    """Return an activation and its slopes on intervals.

    Raises:
        Unbounded: When it is not known here, or has no finite slopes.
    """
    activation(name, options)  # raises where its settings make it jump
    own = name if name in _KNOWN else _SAME_AS.get(name, name.lower())
    if own not in _KNOWN or (own == "gelu" and _is_rough(options)):
        raise not_followed(f"the activation {name}")
    return _KNOWN[own](options)


def _is_rough(options: Mapping[str, Any]) -> bool:
    """Return whether a GELU is the tanh form, which is another function."""
    told = options.get("approximate", b"none")
    return told not in (False, b"none", "none")
