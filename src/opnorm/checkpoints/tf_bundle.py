"""TensorFlow's checkpoints: an index of tensors, and files that hold their numbers, read one tensor at a time.

Checksums are not looked at: a number that was changed on the disk is read as it stands there.

Reference:
    TensorFlow, `core/util/tensor_bundle/tensor_bundle.h`, `core/protobuf/tensor_bundle.proto`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.boxes import check_cover, joined
from opnorm.checkpoints.files import JSON_BYTES, byte_size, check_count, guarded, inside, require
from opnorm.checkpoints.flat import Entry, unread
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import CheckpointError
from opnorm.checkpoints.tf_slices import slice_key, slice_of
from opnorm.checkpoints.tf_table import pairs
from opnorm.checkpoints.tf_types import dtype_of, type_name
from opnorm.checkpoints.wire import fields, message, number, varint

_NAME = 1000  # characters
_SHARDS = 2**17


class Stored(NamedTuple):
    """What the index says of a tensor, or of a part of one."""

    kind: int  # TensorFlow's number of the dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    slices: tuple[bytes, ...]  # of a variable whose parts are entries of their own


class Bundle(NamedTuple):
    """The index of a checkpoint."""

    path: Path  # as it was opened: of the index, a folder, ...
    table: Path  # its index
    shards: int
    entries: Mapping[str, Stored]  # by the name of the tensor
    parts: Mapping[bytes, Stored]  # by the key of a part
    files: dict[int, tuple[Path, int]]  # that were met, and their bytes

    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors."""
        return tuple(self.entries)

    def entry(self, name: str, label: str) -> Entry:
        """Return a tensor that lies within its file, called `label`, or the reason why it cannot be read."""
        stored = self.entries[name]
        dtype = dtype_of(stored.kind)
        if dtype is None:
            kind = type_name(stored.kind)
            return unread(self.path, label, stored.shape, kind, f"it holds {kind}, which are no numbers that are read")
        if stored.slices:
            read = self._joined(name, stored, dtype)
        else:
            read = guarded(self.path, _numbers, self._file(label, stored, dtype), stored.offset, dtype, stored.shape)
        return Entry(Named(label, stored.shape, str(dtype), read))

    def text(self, name: str) -> bytes:
        """Return a single string: its length, a checksum of that, its bytes."""
        stored = self.entries[name]
        require(stored.size <= JSON_BYTES, f"{name!r} takes {stored.size} bytes")
        data = _bytes(self._shard(stored)[0], stored.offset, stored.size)
        length, at = varint(data, 0, len(data))
        require(at + 4 + length <= len(data), f"{name!r} is cut off")
        return data[at + 4 : at + 4 + length]

    def _shard(self, stored: Stored) -> tuple[Path, int]:
        require(0 <= stored.shard < self.shards, f"its index names the file {stored.shard} of {self.shards}")
        if stored.shard not in self.files:
            prefix = self.table.name.removesuffix(".index")
            file = inside(self.table.parent, f"{prefix}.data-{stored.shard:05d}-of-{self.shards:05d}")
            self.files[stored.shard] = file, file.stat().st_size
        return self.files[stored.shard]

    def _file(self, name: str, stored: Stored, dtype: np.dtype[Any]) -> Path:
        """Return the file of a tensor, which lies in it as its shape and dtype say."""
        size = byte_size(stored.shape, dtype.itemsize)
        require(stored.size == size, f"{name!r} takes {size} bytes and is stored in {stored.size}")
        file, end = self._shard(stored)
        require(0 <= stored.offset <= end - size, f"{name!r} lies beyond the end of {file.name!r}")
        return file

    def _joined(self, name: str, stored: Stored, dtype: np.dtype[Any]) -> Callable[[], np.ndarray]:
        """Return the reader of a variable of several parts, which cover it."""
        boxes = [slice_of(one, stored.shape) for one in stored.slices]
        check_cover(name, stored.shape, boxes)
        parts = []
        for box, encoded in zip(boxes, stored.slices, strict=True):
            part = self.parts.get(slice_key(name, encoded))
            if part is None or part.shape != box.shape or part.kind != stored.kind:
                raise CheckpointError(f"a part of {name!r} is not in its index, or has another shape")
            file = self._file(name, part, dtype)
            parts.append((box, partial(_numbers, file, part.offset, dtype, part.shape)))
        return guarded(self.path, joined, stored.shape, dtype, parts)


def read_bundle(index: Path, opened: Path) -> Bundle:
    """Return the index of a checkpoint, which was opened by the path `opened`."""
    entries, parts, shards = {}, {}, 0
    for key, value in pairs(index):
        if key == b"":
            shards = _shards(value)
        elif key[0] == 0:
            parts[key] = _stored(value)
        else:
            require(len(key) <= _NAME, f"a tensor of it has a name of {len(key)} characters")
            entries[key.decode("utf-8")] = _stored(value)
        check_count(max(len(entries), len(parts)))
    require(shards > 0, "its index has no header")
    return Bundle(opened, index, shards, entries, parts, {})


def _shards(header: bytes) -> int:
    """Return how many files hold the numbers."""
    found = {key: value for key, value in fields(header) if isinstance(value, int)}
    require(found.get(2, 0) == 0, "its numbers are big-endian")
    require(0 < found.get(1, 0) < _SHARDS, f"its index names {found.get(1, 0)} files")
    return found[1]


def _stored(entry: bytes) -> Stored:
    found: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    slices = []
    for key, value in fields(entry):
        if key == 2:
            shape = shape_of(message(value))
        elif key == 7:
            slices.append(message(value))
        elif isinstance(value, int):
            found[key] = number(value)
    return Stored(found.get(1, 0), shape, found.get(3, 0), found.get(4, 0), found.get(5, 0), tuple(slices))


def shape_of(data: bytes) -> tuple[int, ...]:
    """Return the sizes of a TensorShapeProto."""
    sizes = tuple(_size(message(value)) for key, value in fields(data) if key == 2)
    byte_size(sizes, 1)
    return sizes


def _size(dimension: bytes) -> int:
    return next((number(value) for key, value in fields(dimension) if key == 1), 0)


def _bytes(file: Path, offset: int, size: int) -> bytes:
    require(offset >= 0 and size >= 0, "a tensor of it has a place that makes no sense")
    with file.open("rb") as opened:
        opened.seek(offset)
        data = opened.read(size)
    require(len(data) == size, f"{file.name!r} is cut off")
    return data


def _numbers(file: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(_bytes(file, offset, byte_size(shape, dtype.itemsize)), dtype).reshape(shape)
