"""How a dataset of an HDF5 file is stored: refused before the library reads it where that could take more than it says.

The library inflates a chunk to its end, however long it is said to be, once for each filter it went through.
"""

import zlib
from collections.abc import Callable
from itertools import product
from math import prod
from os import SEEK_END
from typing import Any, BinaryIO

import numpy as np

from opnorm.checkpoints.files import byte_size, require

_DEFLATE, _SHUFFLE, _CHECKSUM, _LZF = 1, 2, 3, 32000
_FILTERS = {_DEFLATE: "deflate", _SHUFFLE: "shuffle", _CHECKSUM: "fletcher32", _LZF: "lzf"}
_COMPRESSIONS = (_DEFLATE, _LZF)
_GROWTH = {_DEFLATE: 1032, _LZF: 90}  # bytes at most that one stored byte unpacks to: 1032 : 1 and 264 : 3
_FREE = 2**26  # bytes that a dataset may take, whatever the file stores of it
_RATIO = 100  # weights hardly compress
_CHUNKS = 2**16  # of a dataset whose chunks are tiny: to read one takes ten microseconds, however few its bytes
_TINY = 2**12  # bytes
_MISSING = 2**15  # of them that are not stored, beside one for each that is
_BLOCK = 2**13  # chunks read at a time: the library takes 4 KiB for each, however small it is
_PIECE = 2**14  # bytes inflated at a time: into 16 MiB at most
_SLACK = 16  # bytes of a chunk beside its values: a checksum


def check_storage(dataset: Any, file: BinaryIO) -> None:
    """Raise unless the values lie in the file, take about the space they say, and need no plugin.

    Args:
        dataset: A dataset of h5py's, with a shape.
        file: The file it lies in.
    """
    name, size = dataset.name, file.seek(0, SEEK_END)
    require(not dataset.external, f"the values of {name!r} lie in another file")
    require(not dataset.is_virtual, f"the values of {name!r} lie in other datasets")
    stored = min(dataset.id.get_storage_size(), size)  # chunks may claim one place of the file many times
    _check_growth(name, byte_size(dataset.shape, dataset.dtype.itemsize), stored)
    if dataset.chunks is not None:
        _check_growth(f"a chunk of {name}", _chunk_bytes(dataset), stored)
        _check_filters(dataset)
        _check_chunks(dataset, size)


def check_contents(dataset: Any) -> None:
    """Raise when a chunk inflates to more than it says: read and inflated piece by piece, nothing of it is kept."""
    codes = [code for code, _ in _filters(dataset)] if dataset.chunks is not None else []
    if _DEFLATE in codes:
        limit, left_out = _chunk_bytes(dataset) + _SLACK, 1 << codes.index(_DEFLATE)
        for chunk in _chunks(dataset, lambda one: one.size * _GROWTH[_DEFLATE] > _FREE):
            if not chunk.filter_mask & left_out:
                _, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
                require(_inflated(data, limit) <= limit, f"a chunk of {dataset.name!r} inflates to more than it says")


def read_values(dataset: Any) -> np.ndarray:
    """Return the values of a dataset, block by block where its chunks are many."""
    if dataset.chunks is None or prod(_counts(dataset)) <= _BLOCK:
        return np.asarray(dataset[()])
    values, room = np.empty(dataset.shape, dataset.dtype), _BLOCK
    steps: list[int] = []
    for count, length in zip(_counts(dataset)[::-1], dataset.chunks[::-1], strict=True):
        steps.insert(0, min(count, room) * length)
        room = max(1, room // count)
    starts = (range(0, n, step) for n, step in zip(dataset.shape, steps, strict=True))
    for corner in product(*starts):
        block = tuple(slice(start, start + step) for start, step in zip(corner, steps, strict=True))
        values[block] = dataset[block]
    return values


def _check_growth(name: str, declared: int, stored: int) -> None:
    bomb = declared > max(_FREE, _RATIO * stored)
    require(not bomb, f"{name!r} says that it takes {declared} bytes and stores {stored}")


def _chunk_bytes(dataset: Any) -> int:
    return byte_size(dataset.chunks, dataset.dtype.itemsize)


def _filters(dataset: Any) -> list[tuple[int, tuple[int, ...]]]:
    plan = dataset.id.get_create_plist()
    found = [plan.get_filter(i) for i in range(plan.get_nfilters())]
    return [(code, values) for code, _, values, _ in found]


def _compression(dataset: Any) -> int | None:
    return next((code for code, _ in _filters(dataset) if code in _COMPRESSIONS), None)


def _check_filters(dataset: Any) -> None:
    """Raise unless at most one filter compresses, behind whatever shuffles: then its output is the chunk."""
    name, found = dataset.name, _filters(dataset)
    strange = sorted({code for code, _ in found} - set(_FILTERS))
    require(not strange, f"{name!r} is stored by a filter that is not read: {strange}")
    codes = [code for code, _ in found if code != _CHECKSUM]
    compressing = [code for code in codes if code in _COMPRESSIONS]
    require(len(compressing) <= 1, f"{name!r} is stored by {len(compressing)} compression filters, one upon another")
    require(not compressing or codes[-1] in _COMPRESSIONS, f"{name!r} is compressed before it is shuffled")
    sizes = [values[2] for code, values in found if code == _LZF and len(values) > 2]  # of the buffer it unpacks into
    require(all(n <= _chunk_bytes(dataset) + _SLACK for n in sizes), f"a filter of {name!r} claims {sizes} bytes")


def _check_chunks(dataset: Any, size: int) -> None:
    """Raise unless each chunk lies in the file, and is no larger than what it unpacks to."""
    compression = _compression(dataset)
    longest = _chunk_bytes(dataset) if compression is None else 2 * _chunk_bytes(dataset)  # deflate adds 1 part in 1000
    count = prod(_counts(dataset))
    stored = dataset.id.get_num_chunks() if count else 0
    most = max(_CHUNKS, byte_size(dataset.shape, dataset.dtype.itemsize) // _TINY)
    crowd = count > min(most, _MISSING + 2 * stored)
    require(not crowd, f"{dataset.name!r} is cut into {count} chunks, of which {stored} are stored")
    large = [one.size for one in _chunks(dataset, lambda one: one.size > min(longest + _SLACK, size))]
    require(not large, f"a chunk of {dataset.name!r} claims {max(large, default=0)} bytes")
    swollen = compression == _LZF and _chunks(dataset, lambda one: one.size * _GROWTH[_LZF] > 2 * _FREE)
    require(not swollen, f"a chunk of {dataset.name!r} may unpack to more than {2 * _FREE >> 20} MiB")


def _counts(dataset: Any) -> list[int]:
    """Return into how many chunks each axis of a dataset is cut."""
    return [-(-n // k) for n, k in zip(dataset.shape, dataset.chunks, strict=True)]


def _chunks(dataset: Any, suspect: Callable[[Any], bool]) -> list[Any]:
    """Return the stored chunks that are `suspect`: to keep them all would take more than the file does."""
    found: list[Any] = []
    if prod(dataset.shape):  # of an empty dataset the library says that it has no chunks by an error
        dataset.id.chunk_iter(lambda one: found.append(one) if suspect(one) else None)
    return found


def _inflated(data: bytes, limit: int) -> int:
    """Return to how many bytes `data` inflates, or a number above `limit`."""
    stream, count = zlib.decompressobj(), 0
    for start in range(0, len(data), _PIECE):
        if stream.eof or count > limit:
            break
        count += len(stream.decompress(data[start : start + _PIECE]))
    return count
