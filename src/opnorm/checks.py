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
