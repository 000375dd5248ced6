"""Argument checks with one form of message: what the argument must be, and the value received."""

import math
from numbers import Integral, Real
from typing import Any


def require(holds: bool, name: str, must: str, value: Any) -> None:
    """Raise a `ValueError` that names the argument, the rule and the value received, unless the rule holds."""
    if not holds:
        raise ValueError(f"Argument `{name}` {must}. Received: {name}={value!r}")


def require_count(name: str, value: Any, least: int) -> None:
    """Raise unless `value` is an integer that is at least `least`."""
    holds = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    require(holds, name, f"must be an integer >= {least}", value)


def require_positive(name: str, value: Any) -> None:
    """Raise unless `value` is a positive finite number."""
    holds = isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < math.inf
    require(holds, name, "must be a positive finite number", value)


def require_axis(value: Any) -> int | tuple[int, ...]:
    """Return `value` as an int or a tuple of ints, or raise unless it names one axis or several different ones."""
    axes = value if isinstance(value, (tuple, list)) else [value]
    integers = all(isinstance(i, Integral) and not isinstance(i, bool) for i in axes)
    holds = integers and 0 < len(axes) == len(set(axes))
    require(holds, "axis", "must be an integer or a tuple of different integers", value)
    return tuple(int(i) for i in axes) if isinstance(value, (tuple, list)) else int(value)
