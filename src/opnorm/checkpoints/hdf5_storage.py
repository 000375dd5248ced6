"""How a dataset of an HDF5 file is stored: refused before the library reads it where that could take more than it says.

The library inflates a chunk to its end, however long it is said to be, once for each filter it went through.
"""

import zlib
from math import prod
from os import SEEK_END
from typing import Any, BinaryIO

from opnorm.checkpoints.files import byte_size, require

_DEFLATE, _SHUFFLE, _CHECKSUM, _LZF = 1, 2, 3, 32000
_FILTERS = {_DEFLATE: "deflate", _SHUFFLE: "shuffle", _CHECKSUM: "fletcher32", _LZF: "lzf"}
_COMPRESSIONS = (_DEFLATE, _LZF)
_GROWTH = {_DEFLATE: 1032, _LZF: 90}  # bytes at most that one stored byte unpacks to: 1032 : 1 and 264 : 3
_FREE = 2**26  # bytes that a dataset may take, whatever the file stores of it
_RATIO = 100  # weights hardly compress
_CHUNKS = 2**15  # of a dataset, stored or not: the library takes 4 KiB for each while it reads
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
        for chunk in _chunks(dataset):
            if chunk.size * _GROWTH[_DEFLATE] > _FREE and not chunk.filter_mask & left_out:
                _, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
                require(_inflated(data, limit) <= limit, f"a chunk of {dataset.name!r} inflates to more than it says")


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
    most = _chunk_bytes(dataset) if compression is None else 2 * _chunk_bytes(dataset)  # deflate adds 1 part in 1000
    chunks, count = _chunks(dataset), prod(-(-n // k) for n, k in zip(dataset.shape, dataset.chunks, strict=True))
    crowd = count > _CHUNKS + 2 * len(chunks)
    require(not crowd, f"{dataset.name!r} is cut into {count} chunks, of which {len(chunks)} are stored")
    for chunk in chunks:
        require(chunk.size <= min(most + _SLACK, size), f"a chunk of {dataset.name!r} claims {chunk.size} bytes")
        swollen = compression == _LZF and chunk.size * _GROWTH[_LZF] > 2 * _FREE
        require(not swollen, f"a chunk of {dataset.name!r} may unpack to more than {2 * _FREE >> 20} MiB")


def _chunks(dataset: Any) -> list[Any]:
    found: list[Any] = []
    if prod(dataset.shape):  # of an empty dataset the library says that it has no chunks by an error
        dataset.id.chunk_iter(found.append)
    return found


def _inflated(data: bytes, limit: int) -> int:
    """Return to how many bytes `data` inflates, or a number above `limit`."""
    stream, count = zlib.decompressobj(), 0
    for start in range(0, len(data), _PIECE):
        if stream.eof or count > limit:
            break
        count += len(stream.decompress(data[start : start + _PIECE]))
    return count
