"""TensorFlow's sorted tables (LevelDB's format): the index of a checkpoint, as pairs of a key and a value.

Reference:
    LevelDB, `doc/table_format.md`; TensorFlow, `core/lib/io/format.cc`, `core/lib/io/block_builder.cc`.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from opnorm.checkpoints.files import require
from opnorm.checkpoints.records import CheckpointError
from opnorm.checkpoints.tf_snappy import unpacked
from opnorm.checkpoints.wire import varint

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")  # the last bytes of the file
_FOOTER = 48  # bytes: two handles, zeros, the magic number
_TRAILER = 5  # bytes after a block: how it is compressed, and a checksum, which is not looked at
_KEY = 2**12  # bytes: a key is a name
_LARGEST = 2**31  # bytes of a block: a tensor of the first format is one
_KEPT = 2**28  # bytes of a block that are kept
_SMALL_VALUES = 2**13  # of a block, which ends at 256 KiB
_BLOCKS = 2**16  # of a table
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
    with path.open("rb") as file:
        begin, last, count = 0, None, 0
        for _, value in _index(file, size):
            place, _ = _handle(value, 0)
            require(place[0] >= begin, "the blocks of its table overlap")
            begin = sum(place)
            for key, entry in _block(file, place, size):
                count += 1
                require(last is None or last < key, "the keys of its table stand in no order")
                require(count <= _PAIRS, f"its table has more than {_PAIRS} entries")
                yield key, entry
                last = key


class Table:
    """A table of which single values are asked for.

    The block that was read last is kept, unless it is large: a block of many small values is unpacked once.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        with path.open("rb") as file:
            found = [(last, _handle(value, 0)[0]) for last, value in islice(_index(file, self.size), _BLOCKS + 1)]
        require(len(found) <= _BLOCKS, f"its table has more than {_BLOCKS} blocks")
        self.keys, self.places = [last for last, _ in found], [place for _, place in found]
        self.last: tuple[tuple[int, int], bytes] = ((0, 0), b"")

    def find(self, key: bytes) -> bytes | None:
        """Return the value of a key, None where there is none: only the block that may have it is read."""
        at = bisect_left(self.keys, key)
        if at == len(self.keys):
            return None
        for count, (name, value) in enumerate(_entries(self._block(self.places[at]))):
            require(count < _SMALL_VALUES, f"a block of its table has more than {_SMALL_VALUES} entries")
            if name == key:
                return value
        return None

    def _block(self, place: tuple[int, int]) -> bytes:
        kept, data = self.last
        if kept != place:
            with self.path.open("rb") as file:
                data = _contents(file, place, self.size)
            if len(data) <= _KEPT:
                self.last = place, data
        return data


def _index(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the blocks' places, each with a key that is not less than any in it."""
    file.seek(max(0, size - _FOOTER))
    footer = file.read(_FOOTER)
    whole = len(footer) == _FOOTER and footer.endswith(_MAGIC)
    require(whole, "it is no table of TensorFlow's: its end is another's, or cut off")
    _, at = _handle(footer, 0)
    yield from _block(file, _handle(footer, at)[0], size)


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return where a block lies, and where its handle ends."""
    offset, at = varint(data, at, len(data))
    size, at = varint(data, at, len(data))
    return (offset, size), at


def _block(file: BinaryIO, place: tuple[int, int], size: int) -> Iterator[tuple[bytes, bytes]]:
    yield from _entries(_contents(file, place, size))


def _entries(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of a block: of each key only what differs from the one before is stored."""
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
    file.seek(offset)
    data, kind = file.read(length), file.read(1)
    require(len(data) == length and len(kind) == 1, "it became shorter while it was read")
    if kind[0] == _PLAIN:
        return data
    if kind[0] == _SNAPPY:
        return unpacked(data, _LARGEST)
    raise CheckpointError(f"a block of its table is compressed by a method of the number {kind[0]}")
