"""Constants computed from constants: what Transpose, Reshape, Mul, DequantizeLinear and others make of tensors.

Nothing is computed before it is read; shapes are known at once, and size and work are bounded by them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.files import extra
from opnorm.checkpoints.guesses import FLOATS
from opnorm.checkpoints.onnx_tensors import dtype_name
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


def planned(kind: str, given: Given) -> list[Result]:
    """Return the outputs of an operator whose inputs are constants.

    Raises:
        LookupError: When the operator is none of those that are worked out here.
        ValueError, TypeError, ArithmeticError: When its inputs do not fit.
    """
    results = _PLANS[kind](given)
    if len(results) != given.results:
        raise ValueError(f"{given.results} results of {kind}")
    return results


def data(kind: str, count: int) -> range:
    """Return which of an operator's inputs hold numbers, and do not only steer."""
    if kind in _COMBINED:
        return range(count)
    return range(1, 2) if kind == "ConstantOfShape" and count > 1 else range(1)


def _moved(given: Given, shape: Shape, compute: Callable[[Array], Array]) -> list[Result]:
    return [Result(shape, given.dtypes[0], lambda arrays: compute(arrays[0]))]


def _reshaped(given: Given, shape: Sequence[int]) -> list[Result]:
    target = tuple(int(n) for n in shape)
    if prod(target) != prod(given.shapes[0]):
        raise ValueError(f"the shape {given.shapes[0]} as {target}")
    return _moved(given, target, lambda array: array.reshape(target))


def _reshape(given: Given) -> list[Result]:
    old, new = given.shapes[0], _list(given, 1, "shape")
    if not given.options.get("allowzero"):
        new = [old[i] if n == 0 else n for i, n in enumerate(new)]
    known = prod(n for n in new if n != -1)
    return _reshaped(given, [prod(old) // known if n == -1 else n for n in new])


def _flatten(given: Given) -> list[Result]:
    shape, axis = given.shapes[0], int(given.options.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return _reshaped(given, (prod(shape[:axis]), prod(shape[axis:])))


def _squeeze(given: Given) -> list[Result]:
    shape, axes = given.shapes[0], _list(given, 1, "axes", None)
    chosen = {a % len(shape) for a in axes} if axes else {i for i, n in enumerate(shape) if n == 1}
    return _reshaped(given, [n for i, n in enumerate(shape) if i not in chosen])


def _unsqueeze(given: Given) -> list[Result]:
    shape, axes = given.shapes[0], _list(given, 1, "axes")
    rank = len(shape) + len(axes)
    chosen, rest = {a % rank for a in axes}, iter(shape)
    return _reshaped(given, [1 if i in chosen else next(rest) for i in range(rank)])


def _transpose(given: Given) -> list[Result]:
    shape = given.shapes[0]
    order = [int(i) for i in given.options.get("perm", range(len(shape))[::-1])]
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"the order {order} of {len(shape)} axes")
    return _moved(given, tuple(shape[i] for i in order), lambda array: array.transpose(order))


def _expand(given: Given) -> list[Result]:
    shape = np.broadcast_shapes(given.shapes[0], tuple(_list(given, 1, "shape")))
    return _moved(given, shape, lambda array: np.broadcast_to(array, shape))


def _slice(given: Given) -> list[Result]:
    shape = given.shapes[0]
    starts, ends = _list(given, 1, "starts"), _list(given, 2, "ends")
    axes = _list(given, 3, "axes", list(range(len(starts))))
    steps = _list(given, 4, "steps", [1] * len(starts))
    cuts = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    sizes = tuple(len(range(*cut.indices(n))) for cut, n in zip(cuts, shape, strict=True))
    return _moved(given, sizes, lambda array: array[tuple(cuts)])


def _split(given: Given) -> list[Result]:
    shape, axis = given.shapes[0], int(given.options.get("axis", 0))
    whole, count = shape[axis], given.results
    sizes = _list(given, 1, "split", None)
    if sizes is None:
        sizes = [-(-whole // count)] * (count - 1)
        sizes.append(whole - sum(sizes))
    if sum(sizes) != whole or min(sizes) < 0:
        raise ValueError(f"{whole} split into {sizes}")
    places = np.cumsum([0, *sizes])
    return [
        Result(
            _with(shape, axis, size),
            given.dtypes[0],
            partial(_part, axis=axis, start=int(start), end=int(start + size)),
        )
        for size, start in zip(sizes, places[:-1], strict=True)
    ]


def _part(arrays: Sequence[Array], axis: int, start: int, end: int) -> Array:
    return np.moveaxis(np.moveaxis(arrays[0], axis, 0)[start:end], 0, axis)


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return tuple(size if i == axis % len(shape) else n for i, n in enumerate(shape))


def _concat(given: Given) -> list[Result]:
    axis, shapes = int(given.options["axis"]), given.shapes
    whole = _with(shapes[0], axis, sum(shape[axis] for shape in shapes))
    if any(_with(shape, axis, 0) != _with(whole, axis, 0) for shape in shapes):
        raise ValueError(f"the shapes {list(shapes)} side by side")
    return [Result(whole, given.dtypes[0], lambda arrays: np.concatenate(arrays, axis))]


def _cast(given: Given) -> list[Result]:
    dtype = dtype_name(int(given.options["to"]))
    if dtype not in FLOATS and not dtype.startswith(("int", "uint")):
        raise ValueError(f"a cast to {dtype}")
    return [Result(given.shapes[0], dtype, lambda arrays: _as(arrays[0], dtype))]


def _as(array: Array, dtype: str) -> Array:
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


def _elementwise(function: Callable[..., Array], given: Given) -> list[Result]:
    whole = len(set(given.dtypes)) == 1 and given.dtypes[0] in ("int32", "int64") and function in _EXACT
    if {"axis", "broadcast", "fmod"} & set(given.options) or not (whole or set(given.dtypes) <= FLOATS):
        raise ValueError("not the arithmetic of today's operators on floating-point numbers, or on integers")
    dtype, shape = given.dtypes[0], np.broadcast_shapes(*given.shapes)
    if whole:  # as shapes are computed
        return [Result(shape, dtype, lambda arrays: _as(_arithmetic(function, arrays), dtype))]
    return [Result(shape, dtype, lambda arrays: rounded(_arithmetic(function, arrays), dtype))]


def _arithmetic(function: Callable[..., Array], arrays: Sequence[Array]) -> Array:
    with np.errstate(all="ignore"):  # an entry that is not finite is found when it is used
        return np.asarray(function(*arrays))


def _require_integers(dtypes: Sequence[str]) -> None:
    if not set(dtypes) <= {"int32", "int64"}:
        raise ValueError("a comparison or choice of other numbers than integers, as sizes are computed")


def _equal(given: Given) -> list[Result]:
    _require_integers(given.dtypes)
    return [Result(np.broadcast_shapes(*given.shapes), "bool", lambda arrays: np.equal(*arrays).astype(float))]


def _chosen(given: Given) -> list[Result]:
    _require_integers(given.dtypes[1:])
    shape = np.broadcast_shapes(*given.shapes)
    return [Result(shape, given.dtypes[1], lambda arrays: np.where(arrays[0] != 0, arrays[1], arrays[2]))]


def _filled(given: Given) -> list[Result]:
    shape = tuple(given.numbers(0) or ())
    if len(given.shapes) < 2:
        return [Result(shape, "float32", lambda arrays: np.zeros(shape))]
    return [Result(shape, given.dtypes[1], lambda arrays: np.broadcast_to(arrays[0].reshape(()), shape))]


def _dequantize(given: Given) -> list[Result]:
    shape, axis, block = given.shapes[0], int(given.options.get("axis", 1)), int(given.options.get("block_size", 0))
    asked, shapes = given.options.get("output_dtype"), given.shapes[1:]
    dtype = dtype_name(int(asked)) if asked else given.dtypes[1]
    if dtype not in FLOATS:
        raise ValueError(f"numbers of the type {dtype}")
    if any(prod(one) != 1 and len(one) not in (1, len(shape)) for one in shapes):
        raise ValueError(f"scales of the shape {shapes[0]} for {shape}")
    spread = partial(spread_along, shape=shape, axis=axis, block=block)

    def compute(arrays: Sequence[Array]) -> Array:
        shift = spread(arrays[2]) if len(arrays) > 2 else 0.0
        return rounded((arrays[0] - shift) * spread(arrays[1]), dtype)

    return [Result(shape, dtype, compute)]


def spread_along(values: Array, shape: Shape, axis: int, block: int = 0) -> Array:
    """Return one number, one for each index along `axis`, or one for each block of indices, spread over `shape`."""
    if values.size == 1:
        return values.reshape(())
    if block:
        values = np.repeat(values, block, axis=axis)[(slice(None),) * (axis % len(shape)) + (slice(shape[axis]),)]
        if values.shape != shape:
            raise ValueError(f"scales for blocks of {block} of the shape {values.shape}")
        return values
    if values.shape != (shape[axis],):
        raise ValueError(f"{values.size} scales for {shape[axis]} of {shape}")
    return values.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _list(given: Given, position: int, option: str, default: Any = ()) -> Any:
    """Return integers that stand in an input, or in an attribute of older operators."""
    found = given.numbers(position)
    found = given.options.get(option) if found is None else found
    if found is None and default == ():
        raise ValueError(f"no {option}")
    return default if found is None else [int(n) for n in found]


_EXACT = (np.add, np.subtract, np.multiply, np.mod, np.negative)  # of integers, below 2^53
_COMBINED = {"Concat", "Add", "Sub", "Mul", "Div", "DequantizeLinear", "Equal", "Where", "Mod", "Pow"}
_PLANS: dict[str, Callable[[Given], list[Result]]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "DequantizeLinear": _dequantize,
    "Add": partial(_elementwise, np.add),
    "Sub": partial(_elementwise, np.subtract),
    "Mul": partial(_elementwise, np.multiply),
    "Div": partial(_elementwise, np.divide),
    "Mod": partial(_elementwise, np.mod),
    "Pow": partial(_elementwise, np.power),
    "Equal": _equal,
    "Where": _chosen,
    "Neg": partial(_elementwise, np.negative),
    "Sqrt": partial(_elementwise, np.sqrt),
    "Reciprocal": partial(_elementwise, np.reciprocal),
}
