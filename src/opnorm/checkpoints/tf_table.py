"""TensorFlow's sorted tables (LevelDB's format): the index of a checkpoint, as pairs of a key and a value.

Reference:
    LevelDB, `doc/table_format.md`; TensorFlow, `core/lib/io/format.cc`, `core/lib/io/block_builder.cc`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from opnorm.checkpoints.files import JSON_BYTES, require
from opnorm.checkpoints.records import CheckpointError
from opnorm.checkpoints.tf_snappy import unpacked
from opnorm.checkpoints.wire import varint

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")  # the last bytes of the file
_FOOTER = 48  # bytes: two handles, zeros, the magic number
_TRAILER = 5  # bytes after a block: how it is compressed, and a checksum, which is not looked at
_KEY = 2**12  # bytes: a key is a name
_PAIRS = 2**18  # of a table
_PLAIN, _SNAPPY = 0, 1


def is_table(path: Path) -> bool:
    """Return whether a file ends as a table does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(_MAGIC)))
        return file.read() == _MAGIC


def pairs(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of a table; one block of it is in memory at a time.

    Keys ascend and blocks follow one another, so nothing is read twice.
    """
    size = path.stat().st_size
    require(size >= _FOOTER and is_table(path), "it is no table of TensorFlow's: its end is another's, or cut off")
    with path.open("rb") as file:
        file.seek(size - _FOOTER)
        footer = file.read(_FOOTER)
        _, at = _handle(footer, 0)
        index, _ = _handle(footer, at)
        begin, last, count = 0, None, 0
        for _, value in _block(file, index, size):
            place, _ = _handle(value, 0)
            require(place[0] >= begin, "the blocks of its table overlap")
            begin = sum(place)
            for key, entry in _block(file, place, size):
                count += 1
                require(last is None or last < key, "the keys of its table stand in no order")
                require(count <= _PAIRS, f"its table has more than {_PAIRS} entries")
                yield key, entry
                last = key


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return where a block lies, and where its handle ends."""
    offset, at = varint(data, at, len(data))
    size, at = varint(data, at, len(data))
    return (offset, size), at


def _block(file: BinaryIO, place: tuple[int, int], size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of a block: of each key only what differs from the one before is stored."""
    data = _contents(file, place, size)
    require(len(data) >= 4, "a block of its table is cut off")
    restarts = int.from_bytes(data[-4:], "little")
    end, at, key = len(data) - 4 * (restarts + 1), 0, b""
    require(end >= 0, "a block of its table is cut off")
    while at < end:
        shared, at = varint(data, at, end)
        own, at = varint(data, at, end)
        length, at = varint(data, at, end)
        require(shared <= len(key) and at + own + length <= end, "an entry of its table reaches beyond its block")
        require(shared + own <= _KEY, f"its table has a key of {shared + own} bytes")
        key = key[:shared] + data[at : at + own]
        at += own + length
        yield key, data[at - length : at]


def _contents(file: BinaryIO, place: tuple[int, int], size: int) -> bytes:
    offset, length = place
    require(offset + length + _TRAILER <= size - _FOOTER, "a block of its table lies beyond its end")
    require(length <= JSON_BYTES, f"a block of its table takes {length} bytes")
    file.seek(offset)
    data, kind = file.read(length), file.read(1)
    require(len(data) == length and len(kind) == 1, "it became shorter while it was read")
    if kind[0] == _PLAIN:
        return data
    if kind[0] == _SNAPPY:
        return unpacked(data, JSON_BYTES)
    raise CheckpointError(f"a block of its table is compressed by a method of the number {kind[0]}")
