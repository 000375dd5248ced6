"""HDF5's heaps, walked before the library does: a damaged one sends it round for ever.

Global heaps hold texts, one object behind the other; local heaps the names of a group, and a chain of free blocks.

Reference: HDF5 File Format Specification, III.D. "Local Heaps", III.E. "Disk Format: Level 1E - Global Heap".
"""

from collections.abc import Iterator
from typing import BinaryIO

from opnorm.checkpoints.files import require

_GLOBAL, _LOCAL = b"GCOL\x01", b"HEAP\x00"  # with the version; the library passes over the three bytes behind it
_HEADER = 16  # bytes before the first object of a global heap, and before the data of an object
_END = 1  # of a chain of free blocks, which start at multiples of eight
_CHUNK = 2**20
_LARGEST = 2**32


def check_heaps(file: BinaryIO) -> None:
    """Raise CheckpointError when a walk through a heap of the file would not end, or leave the heap.

    Of a heap that weights may hold by chance, the three bytes behind its version being no zeros, only what would hang
    is refused: whatever else is wrong with it, the library says.
    """
    _require_eight(file)
    end = file.seek(0, 2)
    for start in list(_starts(file, _GLOBAL)):
        surely, size = _fields(file, start, 1)
        require(not surely or _HEADER < size <= _LARGEST, "a heap of it has a size that makes no sense")
        if _HEADER < size <= (_LARGEST if surely else end - start):
            file.seek(start)
            require(_ends(file.read(size), size), "a heap of it is damaged")
    for start in list(_starts(file, _LOCAL)):
        _, size, free, address = _fields(file, start, 3)
        if address + size <= end:
            require(_chain_ends(file, address, size, free), "a heap of it is damaged: its free blocks go round")


def _require_eight(file: BinaryIO) -> None:
    """Raise unless sizes and addresses take eight bytes, as h5py and Keras write them: the walk counts on it."""
    file.seek(8)
    head = file.read(8)
    sizes = head[5:7] if head[:1] in (b"\0", b"\1") else head[1:3]
    require(sizes == b"\x08\x08", "its sizes and addresses do not take eight bytes each, which is not read")


def _starts(file: BinaryIO, signature: bytes) -> Iterator[int]:
    at, before = 0, b""
    file.seek(0)
    while chunk := file.read(_CHUNK):
        data = before + chunk
        found = data.find(signature)
        while found >= 0:
            yield at - len(before) + found
            found = data.find(signature, found + 1)
        at, before = at + len(chunk), data[1 - len(signature) :]


def _fields(file: BinaryIO, start: int, count: int) -> list[int]:
    """Return whether the bytes behind the version are zeros, and so many numbers behind those."""
    file.seek(start + 5)
    data = file.read(3 + 8 * count)
    return [data[:3] == bytes(3), *(int.from_bytes(data[i : i + 8], "little") for i in range(3, 3 + 8 * count, 8))]


def _ends(heap: bytes, size: int) -> bool:
    """Return whether the objects of a global heap follow one another up to its end."""
    at = _HEADER
    while at + _HEADER <= len(heap):
        index = int.from_bytes(heap[at : at + 2], "little")
        length = int.from_bytes(heap[at + 8 : at + 16], "little")
        step = length if index == 0 else _HEADER + -(-length // 8) * 8  # object 0 is the free space, header included
        if step < _HEADER or at + step > size:
            return False
        at += step
    return len(heap) == size


def _chain_ends(file: BinaryIO, begin: int, size: int, free: int) -> bool:
    """Return whether the free blocks of a local heap, from the one at `free` on, end or leave it: each has the next."""
    met: set[int] = set()
    while free != _END and free + 16 <= size:
        if free in met:
            return False
        met.add(free)
        file.seek(begin + free)
        free = int.from_bytes(file.read(8), "little")
    return True
