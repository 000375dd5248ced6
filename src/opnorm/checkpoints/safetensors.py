"""`.safetensors` files, alone or in shards: the header is checked first, then tensors are read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints.files import JSON_BYTES, byte_size, extra, guarded, inside, parse_json, require
from opnorm.checkpoints.guesses import Named, guess
from opnorm.checkpoints.records import Checkpoint, Weight

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16",
    "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64",
}  # fmt: skip
_LENGTH = 8  # bytes that say how long the header is


def read_safetensors(path: Path) -> Checkpoint:
    """Return the checkpoint of one `.safetensors` file."""
    return _checkpoint(_tensors(path))


def read_shards(path: Path) -> Checkpoint:
    """Return the checkpoint of the shards that an index names; each must lie in the index's folder."""
    index = parse_json(path.read_bytes() if path.stat().st_size <= JSON_BYTES else b"", "the index")
    require(isinstance(index, Mapping) and isinstance(index.get("weight_map"), Mapping), "it has no `weight_map`")
    places = index["weight_map"]
    files = {name: inside(path.parent, name) for name in sorted(set(map(str, places.values())))}
    shards = {name: _tensors(file) for name, file in files.items()}
    for name, shard in places.items():
        require(name in shards[str(shard)], f"the tensor {name!r} is not in {shard!r}")
    return _checkpoint({name: shards[str(shard)][name] for name, shard in places.items()})


def _checkpoint(tensors: dict[str, Named]) -> Checkpoint:
    weights = [Weight(*tensor, guess(tensor, tensors)) for tensor in tensors.values()]
    return Checkpoint("safetensors", tuple(weights))


def _tensors(path: Path) -> dict[str, Named]:
    header, start = _header(path)
    header.pop("__metadata__", None)
    room = path.stat().st_size - start
    return {name: _tensor(path, name, entry, start, room) for name, entry in header.items()}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where the data begins."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        require(_LENGTH + length <= size, f"its header would take {length} bytes of {size}")
        require(length <= JSON_BYTES, f"its header is larger than {JSON_BYTES >> 20} MiB")
        header = parse_json(file.read(length), "its header")
    require(isinstance(header, dict), "its header is no table")
    return header, _LENGTH + length


def _tensor(path: Path, name: str, entry: Any, start: int, room: int) -> Named:
    """Return a tensor whose place in the file agrees with its shape and dtype."""
    require(isinstance(entry, Mapping), f"the entry of {name!r} is no table")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    require(dtype in _DTYPES, f"{name!r} has the dtype {dtype!r}, which is not read")
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    require(lists and all(type(n) is int for n in (*shape, *offsets)), f"the entry of {name!r} makes no sense")
    numpy_type = _numpy_type(_DTYPES[dtype])
    size = byte_size(shape, numpy_type.itemsize)
    fits = 0 <= offsets[0] <= offsets[1] <= room and offsets[1] - offsets[0] == size
    require(fits, f"{name!r} takes {size} bytes and is placed at {offsets} of {room}")
    shape = tuple(shape)
    read = guarded(path, _read, path, start + offsets[0], numpy_type, shape)
    return Named(name, shape, _DTYPES[dtype], read)


def _numpy_type(name: str) -> np.dtype[Any]:
    if name.startswith(("bfloat", "float8")):
        name = getattr(extra("ml_dtypes"), name)
    return np.dtype(name).newbyteorder("<")


def _read(path: Path, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(byte_size(shape, dtype.itemsize))
    require(len(data) == byte_size(shape, dtype.itemsize), "the file became shorter")
    return np.frombuffer(data, dtype).reshape(shape)
