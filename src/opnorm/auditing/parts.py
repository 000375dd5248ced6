"""What a report says of the parts of one tensor: experts of a stack, projections and heads that share a matrix."""

from collections.abc import Mapping, Sequence
from math import inf
from statistics import median
from typing import Any, TypedDict

_EACH = 4  # parts up to which each is told by name


class Part(TypedDict):
    """One expert, projection or head; lower <= its norm <= upper, None where an end is not known."""

    name: str
    lower: float | None
    upper: float | None


def told(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the upper end of each part; of many that of the largest, the median and how many there are."""
    if len(parts) <= _EACH:
        return ", ".join(f"{part['name']} {_number(part['upper'])}" for part in parts)
    uppers = [inf if part["upper"] is None else part["upper"] for part in parts]
    largest = parts[uppers.index(max(uppers))]
    middle = median(uppers)
    median_text = _number(middle if middle < inf else None)
    return f"{len(parts)} parts, the largest {largest['name']} {_number(largest['upper'])}, median {median_text}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
