"""What constants computed from constants are planned as, and the functions of their numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.files import extra
from opnorm.checkpoints.guesses import FLOATS
from opnorm.checks import Array

Shape = tuple[int, ...]
Numbers = Callable[[int], list[int] | None]  # the integers of an input that steers, None where it is left out


class Given(NamedTuple):
    """What a plan is made from."""

    options: Mapping[str, Any]
    shapes: Sequence[Shape]  # of the inputs, () where one is left out
    dtypes: Sequence[str]
    numbers: Numbers
    results: int


class Result(NamedTuple):
    """One output: its shape, its dtype, and how it is computed from the inputs that hold `data`."""

    shape: Shape
    dtype: str
    compute: Callable[[Sequence[Array]], Array]


def moved(given: Given, shape: Shape, compute: Callable[[Array], Array]) -> list[Result]:
    """Return the one output of an operator that moves the numbers of its first input."""
    return [Result(shape, given.dtypes[0], lambda arrays: compute(arrays[0]))]


def listed(given: Given, position: int, option: str, default: Any = ()) -> Any:
    """Return integers that stand in an input, or in an attribute of older operators."""
    found = given.numbers(position)
    found = given.options.get(option) if found is None else found
    if found is None and default == ():
        raise ValueError(f"no {option}")
    return default if found is None else [int(n) for n in found]


def as_type(array: Array, dtype: str) -> Array:
    """Return what the numbers are in another type; integers are cut, not rounded, and must fit."""
    if dtype in FLOATS:
        return rounded(array, dtype)
    kind = "uint" if dtype.startswith("uint") else "int"
    bits, cut = int(dtype.removeprefix(kind)), np.trunc(array)
    low, high = (0, 2**bits - 1) if kind == "uint" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if np.any(cut < low) or np.any(cut > min(high, 2**53)):
        raise ValueError(f"a number beyond {dtype}")
    return np.asarray(cut)


def rounded(array: Array, dtype: str) -> Array:
    """Return the nearest numbers of a floating type, in float64: of + - * / the results that the type itself has."""
    if dtype == "float64":
        return array
    target = extra("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    with np.errstate(over="ignore"):  # then the number is infinite, and whoever reads it says so
        return array.astype(target).astype(np.float64)


def elementwise(function: Callable[..., Array], given: Given) -> list[Result]:
    """Return the one output of a function of each entry, in the type of its inputs."""
    whole = len(set(given.dtypes)) == 1 and given.dtypes[0] in ("int32", "int64") and function in _EXACT
    if {"axis", "broadcast", "fmod"} & set(given.options) or not (whole or set(given.dtypes) <= FLOATS):
        raise ValueError("not the arithmetic of today's operators on floating-point numbers, or on integers")
    dtype, shape = given.dtypes[0], np.broadcast_shapes(*given.shapes)
    if whole:  # as shapes are computed
        return [Result(shape, dtype, lambda arrays: as_type(_arithmetic(function, arrays), dtype))]
    return [Result(shape, dtype, lambda arrays: rounded(_arithmetic(function, arrays), dtype))]


def _arithmetic(function: Callable[..., Array], arrays: Sequence[Array]) -> Array:
    with np.errstate(all="ignore"):  # an entry that is not finite is found when it is used
        return np.asarray(function(*arrays))


def clipped(given: Given) -> list[Result]:
    """Return the numbers between two others, either of which may be left out."""
    places = [i for i, dtype in enumerate(given.dtypes) if dtype]
    if not {given.dtypes[i] for i in places} <= FLOATS or set(given.options):
        raise ValueError("integers, or the ends in attributes")

    def compute(arrays: Sequence[Array]) -> Array:
        ends = dict(zip(places, arrays, strict=True))
        low, high = (ends[i].reshape(()) if i in ends else sign * np.inf for i, sign in ((1, -1), (2, 1)))
        return np.minimum(np.maximum(ends[0], low), high)

    return [Result(given.shapes[0], given.dtypes[0], compute)]


def reduced(function: Callable[..., Array], given: Given) -> list[Result]:
    """Return the largest or smallest numbers over some axes, of no axes over all."""
    shape, kept = given.shapes[0], bool(given.options.get("keepdims", 1))
    axes = listed(given, 1, "axes", None) or list(range(len(shape)))
    if given.options.get("noop_with_empty_axes") or 0 in shape:
        raise ValueError("nothing to compare")
    over = tuple(axis % len(shape) for axis in axes)
    after = tuple(1 if i in over else n for i, n in enumerate(shape) if kept or i not in over)
    return moved(given, after, lambda array: np.asarray(function(array, axis=over, keepdims=kept)))


_EXACT = (np.add, np.subtract, np.multiply, np.mod, np.negative)  # of integers, below 2^53
