"""Frozen graphs of TensorFlow's (`.pb`): constants in place of variables, and the operations that read them.

Reference:
    TensorFlow, `core/framework/graph.proto`, `tensor.proto`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import byte_size, check_count, check_growth, guarded, require
from opnorm.checkpoints.flat import Entry, unread
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.records import Checkpoint, Weight
from opnorm.checkpoints.tf_bundle import shape_of
from opnorm.checkpoints.tf_checkpoint import apply_uses, guessed
from opnorm.checkpoints.tf_graph import bodies
from opnorm.checkpoints.tf_types import dtype_of, type_name
from opnorm.checkpoints.tf_uses import uses
from opnorm.checkpoints.wire import BYTES, VARINT, Field, Window, places, varint

_LIBRARY, _IN_FUNCTION = 2, 3  # of a GraphDef; nodes of a function
_NODE, _NAME, _KIND, _ATTRIBUTE, _TENSOR = 1, 1, 2, 5, 8  # of a GraphDef, a NodeDef and an AttrValue
_TYPE, _SHAPE, _CONTENT = 1, 2, 4  # of a TensorProto
_LISTS = {5: "<f4", 6: "<f8"}  # numbers one after another; the last stands for all that follow
_TEXT = 1000  # bytes of a name
_SMALL = 2**16  # bytes of a shape


class Constant(NamedTuple):
    """A tensor that stands in a graph."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int  # in bytes
    stored: str  # the dtype of a list, "" for the bytes of the whole tensor


def read_frozen(path: Path) -> Checkpoint:
    """Return the checkpoint of a GraphDef: a row for each constant."""
    size = path.stat().st_size
    with path.open("rb") as file:
        data = Window(file, size)
        parts = list(places(data, 0, size))
        proper = any((one.number, one.wire) == (_NODE, BYTES) for one in parts)
        require(proper, "it is no graph of TensorFlow's: of a SavedModel name the folder")
        taken: set[str] = set()
        entries = {}
        for name, constant in constants(data, parts):
            label = unique(name, taken)
            entries[label] = entry_of(path, label, constant)
            check_count(len(entries))
        known = uses(bodies(data, Field(0, BYTES, 0, size)), {})
    weights = {name: _settings(weight) for name, weight in guessed(entries, ()).items()}
    apply_uses(weights, known)
    return Checkpoint("frozen graph", tuple(weights.values()), None, ("its operations were looked at, and not run",))


def _settings(weight: Weight) -> Weight:
    """Return a weight; these integers are shapes, axes and paddings here, quantized kernels have types of their own."""
    integers = weight.dtype in ("int32", "int64", "bool") and weight.geometry.operator is None
    return weight._replace(geometry=g.nothing("unknown", "settings of an operation")) if integers else weight


def constants(data: Window, parts: Sequence[Field]) -> Iterator[tuple[str, Constant]]:
    """Yield the constants of a graph by name, those of its functions below the functions' names."""
    for part in parts:
        if (part.number, part.wire) == (_NODE, BYTES):
            yield from _of_node(data, part, "")
        elif (part.number, part.wire) == (_LIBRARY, BYTES):
            for function in places(data, part.start, part.end):
                if (function.number, function.wire) == (1, BYTES):
                    yield from _of_function(data, list(places(data, function.start, function.end)))


def _of_function(data: Window, parts: list[Field]) -> Iterator[tuple[str, Constant]]:
    signature = next((one for one in parts if (one.number, one.wire) == (1, BYTES)), None)
    name = _text(data, list(places(data, signature.start, signature.end)), _NAME) if signature else ""
    for part in parts:
        if (part.number, part.wire) == (_IN_FUNCTION, BYTES):
            yield from _of_node(data, part, f"{name}/")


def _of_node(data: Window, part: Field, above: str) -> Iterator[tuple[str, Constant]]:
    inner = list(places(data, part.start, part.end))
    if _text(data, inner, _KIND) == "Const":
        for entry in inner:
            tensor = _tensor(data, entry) if (entry.number, entry.wire) == (_ATTRIBUTE, BYTES) else None
            if tensor:
                yield above + _text(data, inner, _NAME), tensor


def _text(data: Window, parts: list[Field], number: int) -> str:
    found = next((one for one in parts if (one.number, one.wire) == (number, BYTES)), None)
    if found is None:
        return ""
    require(found.end - found.start <= _TEXT, f"an operation of it has a name of {found.end - found.start} bytes")
    return data.read(found.start, found.end).decode("utf-8")


def _tensor(data: Window, entry: Field) -> Constant | None:
    """Return the constant in an attribute, None where it is another attribute."""
    inner = list(places(data, entry.start, entry.end))
    if _text(data, inner, 1) != "value":
        return None
    values = (one for one in inner if (one.number, one.wire) == (2, BYTES))
    tensors = (one for value in values for one in places(data, value.start, value.end) if one.number == _TENSOR)
    found = next((one for one in tensors if one.wire == BYTES), None)
    return _constant(data, list(places(data, found.start, found.end))) if found else None


def _constant(data: Window, parts: list[Field]) -> Constant:
    shape: tuple[int, ...] = ()
    kind, start, size, stored = 0, 0, 0, ""
    for one in parts:
        if (one.number, one.wire) == (_TYPE, VARINT):
            kind = varint(data, one.start, one.end)[0]
        elif (one.number, one.wire) == (_SHAPE, BYTES):
            require(one.end - one.start <= _SMALL, "a constant of it has a shape that is none")
            shape = shape_of(data.read(one.start, one.end))
        elif one.number == _CONTENT or one.number in _LISTS:
            start, size, stored = one.start, one.end - one.start, _LISTS.get(one.number, "")
    return Constant(kind, shape, start, size, stored)


def entry_of(path: Path, name: str, constant: Constant) -> Entry:
    """Return a constant whose numbers fill its shape, or the reason why they are not read."""
    dtype, shape = dtype_of(constant.kind), constant.shape
    if dtype is None:
        kind = type_name(constant.kind)
        return unread(path, name, shape, kind, f"it holds {kind}, which are no numbers that are read")
    size = byte_size(shape, dtype.itemsize)
    if not constant.stored and constant.size == size:
        return Entry(Named(name, shape, str(dtype), guarded(path, _read, path, constant, dtype)))
    if constant.stored != dtype.str or not 0 < constant.size <= size or constant.size % dtype.itemsize:
        return unread(path, name, shape, str(dtype), "its numbers stand in a list, which is not read")
    check_growth(name, size, path.stat().st_size)
    return Entry(Named(name, shape, str(dtype), guarded(path, _repeated, path, constant, dtype)))


def _read(path: Path, constant: Constant, dtype: np.dtype[Any]) -> np.ndarray:
    return _numbers(path, constant, dtype).reshape(constant.shape)


def _repeated(path: Path, constant: Constant, dtype: np.dtype[Any]) -> np.ndarray:
    """Return numbers of which the last stands for all that follow."""
    found = _numbers(path, constant, dtype)
    whole = np.full(int(np.prod(constant.shape, dtype=np.int64)), found[-1], dtype)
    whole[: len(found)] = found
    return whole.reshape(constant.shape)


def _numbers(path: Path, constant: Constant, dtype: np.dtype[Any]) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(constant.start)
        data = file.read(constant.size)
    require(len(data) == constant.size, "it became shorter while it was read")
    return np.frombuffer(data, dtype)
