"""HDF5's global heaps, where texts lie, walked before the library does: a damaged one sends it round for ever.

Reference: HDF5 File Format Specification, III.E. "Disk Format: Level 1E - Global Heap".
"""

from collections.abc import Iterator
from typing import BinaryIO

from opnorm.checkpoints.files import require

_SIGNATURE = b"GCOL\x01\x00\x00\x00"  # with version and zeros: eight bytes that weights hold by chance once in 2**64
_HEADER = 16  # bytes before the first object of a heap, and before the data of an object
_CHUNK = 2**20


def check_heaps(file: BinaryIO) -> None:
    """Raise CheckpointError when a walk through a global heap of the file would not end, or leave the heap."""
    for start in list(_starts(file)):
        file.seek(start + len(_SIGNATURE))
        size = int.from_bytes(file.read(8), "little")
        file.seek(start)
        require(_HEADER < size <= 2**32, "a heap of it has a size that makes no sense")
        require(_ends(file.read(size), size), "a heap of it is damaged")


def _starts(file: BinaryIO) -> Iterator[int]:
    at, before = 0, b""
    file.seek(0)
    while chunk := file.read(_CHUNK):
        data = before + chunk
        found = data.find(_SIGNATURE)
        while found >= 0:
            yield at - len(before) + found
            found = data.find(_SIGNATURE, found + 1)
        at, before = at + len(chunk), data[1 - len(_SIGNATURE) :]


def _ends(heap: bytes, size: int) -> bool:
    """Return whether the objects of a heap follow one another up to its end."""
    at = _HEADER
    while at + _HEADER <= len(heap):
        index = int.from_bytes(heap[at : at + 2], "little")
        length = int.from_bytes(heap[at + 8 : at + 16], "little")
        step = length if index == 0 else _HEADER + -(-length // 8) * 8  # object 0 is the free space, header included
        if step < _HEADER or at + step > size:
            return False
        at += step
    return len(heap) == size
