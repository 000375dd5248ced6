"""`.safetensors` files: the header is checked first, then tensors are read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints.files import JSON_BYTES, byte_size, check_count, extra, guarded, parse_json, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import Checkpoint

FORMAT = "safetensors"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # bits of numbers of which several share a byte
_LENGTH = 8  # bytes that say how long the header is


def read_safetensors(path: Path) -> Checkpoint:
    """Return the checkpoint of one `.safetensors` file."""
    return Checkpoint(FORMAT, flat_weights(path, list(tensors_of(path).values())))


def tensors_of(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file, which fill it from the end of its header to its own, one after another."""
    header, start = _header(path)
    notes = header.pop("__metadata__", {})
    require(isinstance(notes, Mapping) and all(map(_is_text, notes.values())), "its __metadata__ is no table of texts")
    check_count(len(header))
    at = 0
    for begin, end in sorted(_offsets(name, entry) for name, entry in header.items()):
        require(begin == at and begin <= end, f"its tensors leave a hole or overlap at {begin}")
        at = end
    room = path.stat().st_size - start
    require(at == room, f"its tensors fill {at} of {room} bytes")
    return {name: _tensor(path, name, entry, start) for name, entry in header.items()}


def metadata_of(path: Path) -> dict[str, str]:
    """Return the texts that a file holds beside its tensors."""
    notes = _header(path)[0].get("__metadata__", {})
    return {key: text for key, text in notes.items() if _is_text(text)} if isinstance(notes, dict) else {}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    """Return where a tensor begins and ends."""
    offsets = entry.get("data_offsets") if isinstance(entry, Mapping) else None
    proper = isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)
    require(proper, f"the entry of {name!r} makes no sense")
    return tuple(offsets)  # type: ignore[arg-type]


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


def _tensor(path: Path, name: str, entry: Mapping[str, Any], start: int) -> Entry:
    """Return a tensor whose place in the file agrees with its shape and dtype."""
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    begin, end = _offsets(name, entry)
    known = isinstance(dtype, str) and (dtype in _DTYPES or dtype in _PACKED)
    require(known, f"{name!r} has the dtype {dtype!r}, which the format does not have")
    proper = isinstance(shape, list) and all(type(n) is int for n in shape)
    require(proper, f"the entry of {name!r} makes no sense")
    bits = _PACKED.get(dtype) or 8 * _numpy_type(_DTYPES[dtype]).itemsize
    size = byte_size(shape, bits)
    require(8 * (end - begin) == size, f"{name!r} takes {-(-size // 8)} bytes and is placed at {[begin, end]}")
    if dtype in _PACKED:
        reason = f"it has the dtype {dtype}, which is not read"
        return unread(path, name, tuple(shape), dtype, reason)
    read = guarded(path, _read, path, start + begin, _numpy_type(_DTYPES[dtype]), tuple(shape))
    return Entry(Named(name, tuple(shape), _DTYPES[dtype], read))


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
