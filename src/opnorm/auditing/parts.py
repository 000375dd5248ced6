"""What a report says of the parts of one tensor: experts of a stack, projections and heads that share a matrix."""

from collections.abc import Mapping, Sequence
from math import inf
from statistics import median
from typing import Any, TypedDict

from opnorm.tables import number

_EACH = 4  # parts up to which each is told by name


class Part(TypedDict):
    """One expert, projection or head; lower <= its norm <= upper, None where an end is not known."""

    name: str
    lower: float | None
    upper: float | None


def told(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the upper end of each part; of many that of the largest, the median and how many there are."""
    if len(parts) <= _EACH:
        return ", ".join(f"{part['name']} {number(part['upper'])}" for part in parts)
    uppers = _uppers(parts)
    largest = parts[uppers.index(max(uppers))]
    name, upper = largest["name"], number(largest["upper"])
    return f"{len(parts)} parts, the largest {name} {upper}, median {_middle(uppers)}"


def brief(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return how many parts there are and the median of their upper ends, nothing where there are none."""
    return f"{len(parts)}, {_middle(_uppers(parts), 4)}" if parts else ""


def _uppers(parts: Sequence[Mapping[str, Any]]) -> list[float]:
    return [inf if part["upper"] is None else part["upper"] for part in parts]


def _middle(uppers: Sequence[float], digits: int = 6) -> str:
    middle = median(uppers)
    return number(middle if middle < inf else None, digits)
