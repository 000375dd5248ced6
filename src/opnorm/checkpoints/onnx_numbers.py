"""Integers that an ONNX graph computes of shapes, where the sizes are known: limits of slices, targets of reshapes.

Exporters write `x[:, : x.shape[1] // 2]` and `x.view(len(x), -1, 2)` out as Shape, Gather, Div, Concat. Entries are
integers; the names of open sizes, which only move about; or None.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from math import prod
from operator import add, eq, mul, sub
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opnorm.checkpoints.files import extra

_SMALL = 64  # entries of what is worked out
_LARGEST = 2**31  # of what is computed: no integer type wraps around below it
_INTEGERS = (6, 7)  # ONNX's int32 and int64
_LEAST = {  # of what steers these
    "Reshape": -1,
    "Slice": -(2**63),
    "Expand": 1,
    "Tile": 0,
    "TopK": 0,
    "Split": 0,
    "Pad": 0,
}
Numbers = NDArray[Any]
Shapes = Mapping[str, Sequence[int | str]]
Place = tuple[str, int]  # the first result of an operator, and one of its inputs


def settled_numbers(graph: Any, shapes: Shapes, kept: Set[str] = frozenset()) -> dict[Place, Numbers]:
    """Return the integers that steer operators, where they are computed and known, and make constants of them.

    Args:
        graph: Of an ONNX model; operators get new inputs, and the graph constants.
        shapes: Of its values, as far as they are known.
        kept: Values that are to stay as they are known.
    """
    constants = dict(_constants(graph))
    numbers, found = _numbers(graph, constants, shapes), {}
    for node in (node for node in graph.node if node.op_type in _LEAST and kept.isdisjoint(node.output)):
        for i, value in enumerate(node.input):
            if i and value in numbers and value not in constants:
                steering = _told(node, numbers[value], shapes)
                if steering is not None and bool(np.all(steering >= _LEAST[node.op_type])):
                    found[node.output[0], i] = steering
                    node.input[i] = f"{node.output[0]} by {i}"  # a name that no value of a file has by chance
                    graph.initializer.append(extra("onnx.numpy_helper").from_array(steering, node.input[i]))
    return found


def _told(node: Any, numbers: Numbers, shapes: Shapes) -> Numbers | None:
    """Return numbers that are all known; of a Reshape's target a size that its input has at that place is zero."""
    entries = list(numbers.ravel())
    if node.op_type == "Reshape" and not any(a.name == "allowzero" and a.i for a in node.attribute):
        given = shapes.get(node.input[0], ())
        same = [isinstance(e, str) and i < len(given) and given[i] == e for i, e in enumerate(entries)]
        entries = [0 if kept else entry for kept, entry in zip(same, entries, strict=True)]
    return np.array(entries, np.int64).reshape(numbers.shape) if all(isinstance(e, int) for e in entries) else None


def _constants(graph: Any) -> Iterator[tuple[str, Numbers]]:
    """Yield the small integers that stand in a graph."""
    held = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.output:
            value = node.attribute[0]
            if value.name == "value":
                held.append((node.output[0], value.t))
            elif value.name in ("value_int", "value_ints"):
                yield node.output[0], np.array(value.i if value.name == "value_int" else list(value.ints), dtype=object)
    for name, tensor in held:
        if tensor.data_type in _INTEGERS and prod(tensor.dims) <= _SMALL and not tensor.external_data:
            yield name, np.asarray(extra("onnx.numpy_helper").to_array(tensor).astype(object))


def _numbers(graph: Any, constants: Mapping[str, Numbers], shapes: Shapes) -> dict[str, Numbers]:
    """Return the integers of all values, as far as they are known; operators come after what they read."""
    numbers = dict(constants)
    for node in graph.node:
        if node.op_type not in _RULES or not node.output or node.domain:
            continue
        try:
            options = {a.name: a for a in node.attribute}
            read = [shapes[node.input[0]]] if node.op_type in ("Shape", "Size") else [numbers[n] for n in node.input]
            found: Numbers = np.asarray(_RULES[node.op_type](options, *read), dtype=object)
        except Exception:  # not known, or makes no sense: models come from files
            continue
        if found.size <= _SMALL and all(_is_entry(entry) for entry in found.ravel()):
            numbers[node.output[0]] = found
    return numbers


def _is_entry(entry: Any) -> bool:
    return entry is None or isinstance(entry, str) or (isinstance(entry, int) and abs(entry) < _LARGEST)


Options = Mapping[str, Any]  # attributes


def _shape(options: Options, shape: Sequence[int | str]) -> Numbers:
    start, end = (options[end].i if end in options else None for end in ("start", "end"))
    return np.array(list(shape)[slice(start, end)], dtype=object)


def _size(options: Options, shape: Sequence[int | str]) -> Any:
    return prod(shape) if all(isinstance(size, int) for size in shape) else None


def _gathered(options: Options, data: Numbers, places: Numbers) -> Numbers:
    _require(data.ndim == 1)
    return np.asarray(data[places.astype(np.int64)])


def _cut(options: Options, data: Numbers, starts: Numbers, ends: Numbers, *more: Numbers) -> Numbers:
    axis = int(more[0].item()) if more else 0
    step = int(more[1].item()) if len(more) > 1 else 1
    _require(-data.ndim <= axis < data.ndim)
    cuts = [slice(None)] * data.ndim
    cuts[axis] = slice(int(starts.item()), int(ends.item()), step)
    return data[tuple(cuts)]


def _concatenated(options: Options, *parts: Numbers) -> Numbers:
    _require(all(part.ndim == 1 for part in parts))
    return np.concatenate(parts)


def _transposed(options: Options, data: Numbers) -> Numbers:
    return data.transpose(*options["perm"].ints) if "perm" in options else data.transpose()


def _raised(options: Options, data: Numbers, *axes: Numbers) -> Numbers:
    _require(data.ndim == 0)
    return data.reshape(1)


def _lowered(options: Options, data: Numbers, *axes: Numbers) -> Numbers:
    _require(data.shape == (1,))
    return data.reshape(())


def _same(options: Options, data: Numbers) -> Numbers:
    return data


def _cast(options: Options, data: Numbers) -> Numbers:
    _require(options["to"].i in _INTEGERS)
    return data


def _reshaped(options: Options, data: Numbers, target: Numbers) -> Numbers:
    _require(all(size != 0 for size in target))
    return data.reshape(*(int(size) for size in target))


def _product(options: Options, data: Numbers) -> Any:
    _require(data.ndim == 1 and "noop_with_empty_axes" not in options)
    _require((options["keepdims"].i if "keepdims" in options else 1) == 0)
    return prod(data) if all(isinstance(entry, int) for entry in data) else None


def _filled(options: Options, shape: Numbers) -> Numbers:
    value = extra("onnx.numpy_helper").to_array(options["value"].t)
    _require(options["value"].t.data_type in _INTEGERS and prod(shape) <= _SMALL)
    return np.full([int(size) for size in shape], int(value.item()), dtype=object)


def _chosen(condition: Any, one: Any, other: Any) -> Any:
    return (one if condition else other) if isinstance(condition, int) else one if one == other else None


def _each(function: Callable[..., Any]) -> Callable[..., Numbers]:
    """Return the function of arrays, entry by entry, which are repeated to fit each other."""

    def found(options: Options, *arrays: Numbers) -> Numbers:
        return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays))

    return found


def _of_integers(function: Callable[[int, int], int | None]) -> Callable[..., Numbers]:
    return _each(lambda a, b: function(a, b) if isinstance(a, int) and isinstance(b, int) else None)


def _divided(a: int, b: int) -> int | None:
    return a // b if a >= 0 and b > 0 else None


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


_RULES: Mapping[str, Callable[..., Any]] = {
    "Shape": _shape, "Size": _size, "Gather": _gathered, "Slice": _cut, "Concat": _concatenated, "Unsqueeze": _raised,
    "Squeeze": _lowered, "Identity": _same, "Cast": _cast, "Reshape": _reshaped, "ReduceProd": _product,
    "Transpose": _transposed,
    "ConstantOfShape": _filled, "Where": _each(_chosen), "Equal": _of_integers(eq), "Div": _of_integers(_divided),
    "Add": _of_integers(add), "Sub": _of_integers(sub), "Mul": _of_integers(mul),
}  # fmt: skip
