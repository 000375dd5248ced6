"""`.msgpack` files of flax: tables of arrays, whose places are found first, and whose numbers are read on demand.

The walk is our own, since the format's library takes a whole file into memory to say what is in it.

Reference:
    msgpack, `spec.md`; flax, `serialization.py`: extension 1 is an array, 3 a number of NumPy's, 2 a complex one.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.files import DEPTH, byte_size, check_count, guarded, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.records import Checkpoint
from opnorm.checkpoints.torch_tensors import dtype_of
from opnorm.checkpoints.wire import Window

_ARRAYS, _COMPLEX = (1, 3), 2  # extensions
_CHUNKED = "__msgpack_chunked_array__"  # a table with it holds one array of more than 1 GiB
_VALUES = 2**20  # of a file
_NAME = 1000  # characters of a key
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
          0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}  # bytes of numbers, None and booleans  # fmt: skip
_SIZED = {0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4), 0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
          0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4), 0xDC: ("array", 2), 0xDD: ("array", 4),
          0xDE: ("map", 2), 0xDF: ("map", 4)}  # fmt: skip


class Value(NamedTuple):
    """A value: its kind, its bytes or items, and where its content begins."""

    kind: str  # "number", "str", "bin", "ext", "array", "map"
    size: int  # of bytes; of items, of a map pairs
    start: int
    code: int = 0  # of an extension; of a number its first byte


class Array(NamedTuple):
    """An array whose numbers lie at a place of the file."""

    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int


def read_msgpack(path: Path) -> Checkpoint:
    """Return the checkpoint of a file of flax's."""
    taken: set[str] = set()
    with path.open("rb") as file:
        walk = _Walk(Window(file, path.stat().st_size))
        entries = []
        for name, found in walk.table((), 0):
            entries.append(_entry(path, unique("/".join(name) or "array", taken), found))
            check_count(len(entries))
        require(walk.at == walk.data.size, "bytes follow the end of its table")
    return Checkpoint("msgpack", flat_weights(path, entries))


class _Walk:
    """One pass over a file, which meets each value once."""

    def __init__(self, data: Window):
        self.data, self.at, self.met = data, 0, 0

    def table(self, names: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], list[Array] | Value]]:
        """Yield the arrays of the value at this place with their names, several of a chunked one, and step over it."""
        require(depth < DEPTH, "its tables are nested too deeply")
        value = self.value()
        if value.kind == "map":
            for _ in range(value.size):
                key = self.key()
                if key == _CHUNKED:
                    yield names, self.chunked(value.size, depth)
                    return
                yield from self.table((*names, key), depth + 1)
        elif value.kind == "array":
            for i in range(value.size):
                yield from self.table((*names, str(i)), depth + 1)
        elif value.kind == "ext" and value.code in _ARRAYS:
            yield names, [self.array(value)]
        elif value.kind == "ext":
            self.at = value.start + value.size
            yield names, value

    def value(self) -> Value:
        """Return the value at this place, and step over it or, where it holds others, into it."""
        self.met += 1
        require(self.met <= _VALUES, f"it holds more than {_VALUES} values")
        found = _value(self.data, self.at)
        self.at = found.start + (0 if found.kind in ("array", "map", "ext") else found.size)
        require(found.start + found.size <= self.data.size, "a value of it reaches beyond its end")
        return found

    def key(self) -> str:
        """Return the key at this place: flax writes texts only."""
        value = self.value()
        require(value.kind == "str" and value.size <= _NAME, "it has a key that is no text, or a very long one")
        return self.data.read(value.start, value.start + value.size).decode("utf-8")

    def array(self, value: Value) -> Array:
        """Return the array in an extension: its shape, the name of its dtype, its bytes."""
        end = value.start + value.size
        self.at = value.start
        whole = self.value()
        require((whole.kind, whole.size) == ("array", 3), "an array of it is none of flax's")
        shape = tuple(self.numbers())
        dtype = self.key()
        numbers = self.value()
        require(numbers.kind == "bin" and self.at == end, "the numbers of an array do not fill it")
        return Array(shape, dtype, numbers.start, numbers.size)

    def numbers(self) -> Iterator[int]:
        """Yield the integers of the list at this place."""
        shape = self.value()
        require(shape.kind == "array" and shape.size <= 32, "an array of it has a shape that is none")
        for _ in range(shape.size):
            yield self.number()

    def number(self) -> int:
        """Return the integer at this place, which is not negative."""
        value = self.value()
        small = value.kind == "number" and value.code < 0x80
        large = value.kind == "number" and 0xCC <= value.code <= 0xCF
        require(small or large, "a size in it is no integer")
        return value.code if small else int.from_bytes(self.data.read(value.start, self.at), "big")

    def chunked(self, count: int, depth: int) -> list[Array]:
        """Return the parts of an array of more than 1 GiB; the first has its whole shape."""
        self.value()
        shape: list[int] = []
        parts: dict[str, Array] = {}
        for _ in range(count - 1):
            key = self.key()
            if key == "shape":
                sizes = self.value()
                require(sizes.kind == "map" and sizes.size <= 32, "a chunked array has no shape")
                shape = [size for _, size in sorted((int(self.key()), self.number()) for _ in range(sizes.size))]
            else:
                require(key == "chunks", "a chunked array is none of flax's")
                found = {names[0]: one[0] for names, one in self.table((), depth) if isinstance(one, list)}
                parts |= found
        ordered = [parts.get(str(i)) for i in range(len(parts))]
        require(bool(parts) and None not in ordered, "a chunked array has parts in no order")
        return [part._replace(shape=tuple(shape)) for part in ordered if part]


def _value(data: Window, at: int) -> Value:
    require(at < data.size, "it is cut off")
    first = data[at]
    if first in _SIZED:
        kind, width = _SIZED[first]
        require(at + 1 + width + (kind == "ext") <= data.size, "it is cut off")
        count = int.from_bytes(data.read(at + 1, at + 1 + width), "big")
        start = at + 1 + width
        return Value(kind, count, start + 1, data[start]) if kind == "ext" else Value(kind, count, start)
    if first < 0x80 or first >= 0xE0 or first in _FIXED:
        return Value("number", _FIXED.get(first, 0), at + 1, first)
    if 0xD4 <= first <= 0xD8:  # extensions of 1 to 16 bytes
        require(at + 1 < data.size, "it is cut off")
        return Value("ext", 1 << first - 0xD4, at + 2, data[at + 1])
    require(first != 0xC1, "it is no msgpack")
    kind, mask = ("map", 15) if first < 0x90 else ("array", 15) if first < 0xA0 else ("str", 31)
    return Value(kind, first & mask, at + 1)


def _entry(path: Path, name: str, found: list[Array] | Value) -> Entry:
    """Return an array whose numbers fill their place, or the reason why there is none."""
    if isinstance(found, Value):
        kind = "complex128" if found.code == _COMPLEX else "extension"
        what = "a complex number" if found.code == _COMPLEX else f"an extension of the number {found.code}"
        return unread(path, name, (), kind, f"it holds {what}, which is not read")
    shape, dtype, named = found[0].shape, _dtype(found[0].dtype), found[0].dtype[:40]
    if dtype is None:
        return unread(path, name, shape, named, f"it has the dtype {named!r}, which is not read")
    proper = all(one.dtype == found[0].dtype for one in found)
    size = byte_size(shape, dtype.itemsize)
    require(proper and sum(one.size for one in found) == size, f"{name!r} takes {size} bytes and stores others")
    return Entry(Named(name, shape, str(dtype), guarded(path, _read, path, found, dtype)))


def _dtype(name: str) -> np.dtype[Any] | None:
    """Return the dtype of that name, None for one that holds no numbers that are read."""
    found = dtype_of(name)
    small = name.startswith(("bfloat", "float8"))
    return found if found is not None and (found.kind in "biufc" or small) else None


def _read(path: Path, parts: list[Array], dtype: np.dtype[Any]) -> np.ndarray:
    values = np.empty(prod(parts[0].shape), dtype)
    room, at = values.view(np.uint8), 0
    with path.open("rb") as file:
        for part in parts:
            file.seek(part.start)
            count = file.readinto(room[at : at + part.size].data)
            require(count == part.size, "its numbers are cut off")
            at += part.size
    return values.reshape(parts[0].shape)
