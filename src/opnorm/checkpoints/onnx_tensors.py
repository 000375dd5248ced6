"""ONNX's tensors: where their numbers lie, checked against shape and dtype, and read one at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints.files import byte_size, extra, guarded, inside, require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.onnx_wire import SELF

_DTYPES = {  # onnx.TensorProto.DataType: name, bits
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64),
    12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8), 20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1fn", 4), 24: ("float8_e8m0fnu", 8),
}  # fmt: skip


def onnx_tensor(path: Path, name: str, proto: Any) -> Named:
    """Return a tensor by its message in the skeleton; every size is checked before anything is read."""
    require(proto.data_type in _DTYPES, f"{name!r} has the data type {proto.data_type}, which is not read")
    dtype, bits = _DTYPES[proto.data_type]
    shape = tuple(proto.dims)
    size = -(-byte_size(shape, bits) // 8)
    if dtype == "string" or proto.HasField("segment"):
        return Named(name, shape, dtype, guarded(path, _refuse, name))
    if proto.data_location == 1:
        file, offset = _place(path, name, proto, size)
        return Named(name, shape, dtype, guarded(path, _read, file, offset, size, proto.data_type, shape))
    stored = len(proto.raw_data) or _typed_size(proto)
    require(stored == size or bool(_typed_size(proto)), f"{name!r} takes {size} bytes and stores {stored}")
    require(_fits(proto, shape), f"{name!r} has the shape {shape} and stores another number of values")
    return Named(name, shape, dtype, guarded(path, _decode, proto))


def _refuse(name: str) -> np.ndarray:
    require(False, f"{name!r} holds no numbers")
    return np.zeros(0)


def _typed_size(proto: Any) -> int:
    """Return the bytes that a tensor's typed fields take in memory."""
    fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
    return sum(8 * len(field) for field in fields)


def _fits(proto: Any, shape: tuple[int, ...]) -> bool:
    """Return whether typed fields hold as many values as the shape asks for; packed ones hold two in one."""
    values = _typed_size(proto) // 8
    count = byte_size(shape, 1)
    return not values or values in (count, 2 * count, -(-count // 2))


def _place(path: Path, name: str, proto: Any, size: int) -> tuple[Path, int]:
    """Return the file and offset of numbers that lie outside the message; the file must be in the model's folder."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    require(len(proto.external_data) == len(entries), f"{name!r} is stored in several pieces")
    offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
    location = entries.get("location", "?")
    file = path if location == SELF else inside(path.parent, location)
    require(length == size, f"{name!r} takes {size} bytes and stores {length}")
    require(offset >= 0 and offset + size <= file.stat().st_size, f"{name!r} reaches beyond the end of {file.name!r}")
    return file, offset


def _read(file: Path, offset: int, size: int, data_type: int, shape: tuple[int, ...]) -> np.ndarray:
    with file.open("rb") as opened:
        opened.seek(offset)
        data = opened.read(size)
    require(len(data) == size, f"{file.name!r} became shorter")
    return _decode(extra("onnx").TensorProto(dims=shape, data_type=data_type, raw_data=data))


def _decode(proto: Any) -> np.ndarray:
    onnx = extra("onnx")
    importer = onnx.numpy_helper.to_array
    values: np.ndarray = importer(proto)
    require(values.shape == tuple(proto.dims), "a tensor holds another number of values than its shape says")
    return values
