"""Constants computed from constants: what Transpose, Reshape, Mul, DequantizeLinear and others make of tensors.

Nothing is computed before it is read; shapes are known at once, and size and work are bounded by them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np
from scipy.special import expit

from opnorm.checkpoints.guesses import FLOATS
from opnorm.checkpoints.onnx_plans import (
    Given,
    Result,
    Shape,
    as_type,
    clipped,
    elementwise,
    listed,
    moved,
    reduced,
    rounded,
)
from opnorm.checkpoints.onnx_tensors import dtype_name
from opnorm.checks import Array


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


def _reshaped(given: Given, shape: Sequence[int]) -> list[Result]:
    target = tuple(int(n) for n in shape)
    if prod(target) != prod(given.shapes[0]):
        raise ValueError(f"the shape {given.shapes[0]} as {target}")
    return moved(given, target, lambda array: array.reshape(target))


def _reshape(given: Given) -> list[Result]:
    old, new = given.shapes[0], listed(given, 1, "shape")
    if not given.options.get("allowzero"):
        new = [old[i] if n == 0 else n for i, n in enumerate(new)]
    known = prod(n for n in new if n != -1)
    return _reshaped(given, [prod(old) // known if n == -1 else n for n in new])


def _flatten(given: Given) -> list[Result]:
    shape, axis = given.shapes[0], int(given.options.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return _reshaped(given, (prod(shape[:axis]), prod(shape[axis:])))


def _squeeze(given: Given) -> list[Result]:
    shape, axes = given.shapes[0], listed(given, 1, "axes", None)
    chosen = {a % len(shape) for a in axes} if axes else {i for i, n in enumerate(shape) if n == 1}
    return _reshaped(given, [n for i, n in enumerate(shape) if i not in chosen])


def _unsqueeze(given: Given) -> list[Result]:
    shape, axes = given.shapes[0], listed(given, 1, "axes")
    rank = len(shape) + len(axes)
    chosen, rest = {a % rank for a in axes}, iter(shape)
    return _reshaped(given, [1 if i in chosen else next(rest) for i in range(rank)])


def _transpose(given: Given) -> list[Result]:
    shape = given.shapes[0]
    order = [int(i) for i in given.options.get("perm", range(len(shape))[::-1])]
    if sorted(order) != list(range(len(shape))):
        raise ValueError(f"the order {order} of {len(shape)} axes")
    return moved(given, tuple(shape[i] for i in order), lambda array: array.transpose(order))


def _expand(given: Given) -> list[Result]:
    shape = np.broadcast_shapes(given.shapes[0], tuple(listed(given, 1, "shape")))
    return moved(given, shape, lambda array: np.broadcast_to(array, shape))


def _triangle(given: Given) -> list[Result]:
    (first,) = listed(given, 1, "k", [0])
    cut = np.triu if given.options.get("upper", 1) else np.tril
    return moved(given, given.shapes[0], lambda array: cut(array, first))


def _slice(given: Given) -> list[Result]:
    shape = given.shapes[0]
    starts, ends = listed(given, 1, "starts"), listed(given, 2, "ends")
    axes = listed(given, 3, "axes", list(range(len(starts))))
    steps = listed(given, 4, "steps", [1] * len(starts))
    cuts = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    sizes = tuple(len(range(*cut.indices(n))) for cut, n in zip(cuts, shape, strict=True))
    return moved(given, sizes, lambda array: array[tuple(cuts)])


def _split(given: Given) -> list[Result]:
    shape, axis = given.shapes[0], int(given.options.get("axis", 0))
    whole, count = shape[axis], given.results
    sizes = listed(given, 1, "split", None)
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
    if dtype == "bool":
        return [Result(given.shapes[0], dtype, lambda arrays: (arrays[0] != 0).astype(float))]
    if dtype not in FLOATS and not dtype.startswith(("int", "uint")):
        raise ValueError(f"a cast to {dtype}")
    return [Result(given.shapes[0], dtype, lambda arrays: as_type(arrays[0], dtype))]


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


_COMBINED = {"Clip", "Concat", "Add", "Sub", "Mul", "Div", "DequantizeLinear", "Equal", "Where", "Mod", "Pow"}
_PLANS: dict[str, Callable[[Given], list[Result]]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Trilu": _triangle,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "DequantizeLinear": _dequantize,
    "Add": partial(elementwise, np.add),
    "Sub": partial(elementwise, np.subtract),
    "Mul": partial(elementwise, np.multiply),
    "Div": partial(elementwise, np.divide),
    "Mod": partial(elementwise, np.mod),
    "Pow": partial(elementwise, np.power),
    "Equal": _equal,
    "Where": _chosen,
    "Neg": partial(elementwise, np.negative),
    "Sqrt": partial(elementwise, np.sqrt),
    "Reciprocal": partial(elementwise, np.reciprocal),
    "Clip": clipped,
    "ReduceMax": partial(reduced, np.max),
    "ReduceMin": partial(reduced, np.min),
    "Abs": partial(elementwise, np.abs),
    "Exp": partial(elementwise, np.exp),
    "Sigmoid": partial(elementwise, expit),  # as a residual block's learned shares are written
    "Tanh": partial(elementwise, np.tanh),
    "Sin": partial(elementwise, np.sin),
    "Cos": partial(elementwise, np.cos),
}
