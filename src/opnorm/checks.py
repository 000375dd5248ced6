"""Argument checks with one form of message: what the argument must be, and the value received."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def require(holds: bool, name: str, must: str, value: Any) -> None:
    """Raise a `ValueError` that names the argument, the rule and the value received, unless the rule holds."""
    if not holds:
        raise ValueError(f"Argument `{name}` {must}. Received: {name}={value!r}")


def to_count(name: str, value: Any, least: int) -> int:
    """Return `value` as an int; raise unless it is an integer that is at least `least`."""
    require(_is_integer(value) and int(value) >= least, name, f"must be an integer >= {least}", value)
    return int(value)


def to_counts(name: str, value: Any, least: int) -> int | tuple[int, ...]:
    """Return `value` as an int or a tuple of ints; raise unless all are integers that are at least `least`."""
    if _is_integer(value):
        return to_count(name, value, least)
    counts = tuple(value) if isinstance(value, Iterable) else ()
    sound = bool(counts) and all(_is_integer(count) and int(count) >= least for count in counts)
    require(sound, name, f"must be an integer >= {least} or a tuple of them", value)
    return tuple(map(int, counts))


def to_positive(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is a positive finite number."""
    require(_is_real(value) and 0 < float(value) < math.inf, name, "must be a positive finite number", value)
    return float(value)


def to_not_negative(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is a finite number, zero or positive."""
    require(_is_real(value) and 0 <= float(value) < math.inf, name, "must be a finite number >= 0", value)
    return float(value)


def to_fraction(name: str, value: Any) -> float:
    """Return `value` as a float; raise unless it is at least 0 and below 1."""
    require(_is_real(value) and 0 <= float(value) < 1, name, "must be a number at least 0 and below 1", value)
    return float(value)


def to_axis(name: str, value: Any) -> int | tuple[int, ...]:
    """Return `value` as an int or a tuple of ints; raise unless it is an integer or several of them, all different."""
    if _is_integer(value):
        return int(value)
    axes = tuple(value) if isinstance(value, Iterable) else ()
    distinct = bool(axes) and all(map(_is_integer, axes)) and len(set(axes)) == len(axes)
    require(distinct, name, "must be an integer or a tuple of different integers", value)
    return tuple(map(int, axes))


def to_operator(operator: Any, axis: int | tuple[int, ...]) -> str:
    """Return `operator`; raise unless it is "matrix", or "convolution" with the last axes for the outputs."""
    operators = "matrix", "convolution"
    require(operator in operators, "operator", f"must be one of {operators}", operator)
    last = operator == "matrix" or axis in (-1, (-1,), (-2, -1))
    require(last, "axis", "must be -1 (if depthwise, (-2, -1)) with operator='convolution'", axis)
    return str(operator)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
