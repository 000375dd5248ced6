"""ONNX's tensors: where their numbers lie, checked against shape and dtype, and read one at a time."""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints.files import byte_size, check_growth, extra, guarded, inside, require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.onnx_wire import SELF
from opnorm.checkpoints.records import CheckpointError

_DTYPES = {  # onnx.TensorProto.DataType: name, bits
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64),
    12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8), 18: ("float8_e4m3fnuz", 8), 19: ("float8_e5m2", 8), 20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4_e2m1fn", 4), 24: ("float8_e8m0fnu", 8),
    25: ("uint2", 2), 26: ("int2", 2),
}  # fmt: skip
_WIDER = {  # what holds the same numbers, and every library reads
    "int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8",
    "float4_e2m1fn": "float32", "float8_e8m0fnu": "float32",
    "float8_e4m3fnuz": "float32", "float8_e5m2fnuz": "float32",
}  # fmt: skip


def dtype_name(data_type: int) -> str:
    """Return the name of an ONNX data type."""
    return _DTYPES.get(data_type, (f"data type {data_type}", 0))[0]


def onnx_tensor(path: Path, name: str, proto: Any) -> Named:
    """Return a tensor by its message in the skeleton; what is wrong with it is raised when it is read."""
    shape, dtype = tuple(proto.dims), dtype_name(proto.data_type)
    try:
        return Named(name, shape, dtype, _reader(path, name, proto))
    except CheckpointError as error:
        return Named(name, shape, dtype, guarded(path, refuse, str(error)))


def _reader(path: Path, name: str, proto: Any) -> Callable[[], np.ndarray]:
    require(proto.data_type in _DTYPES, f"{name!r} has the data type {proto.data_type}, which is not read")
    dtype, bits = _DTYPES[proto.data_type]
    shape = tuple(proto.dims)
    size = -(-byte_size(shape, bits) // 8)
    require(dtype != "string" and not proto.HasField("segment"), f"{name!r} holds no numbers")
    if proto.data_location == 1:
        file, offset = _place(path, name, proto, size)
        return guarded(path, _read, file, offset, size, proto.data_type, shape)
    stored = len(proto.raw_data) or _typed_size(proto)
    require(stored == size or bool(_typed_size(proto)), f"{name!r} takes {size} bytes and stores {stored}")
    require(_fits(proto, shape), f"{name!r} has the shape {shape} and stores another number of values")
    return guarded(path, _decode, proto)


def refuse(message: str) -> np.ndarray:
    """Raise CheckpointError with this message."""
    raise CheckpointError(message)


def _typed_size(proto: Any) -> int:
    """Return the bytes that a tensor's typed fields take in memory."""
    fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
    return sum(8 * len(field) for field in fields)


def _fits(proto: Any, shape: tuple[int, ...]) -> bool:
    """Return whether typed fields hold as many values as the shape asks for; packed ones hold two or four in one."""
    values = _typed_size(proto) // 8
    count = byte_size(shape, 1)
    return not values or values in (count, 2 * count, -(-count // 2), -(-count // 4))


def _place(path: Path, name: str, proto: Any, size: int) -> tuple[Path, int]:
    """Return the file and offset of numbers that lie outside the message; the file must be in the model's folder."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    require(len(proto.external_data) == len(entries), f"{name!r} is stored in several pieces")
    numbers = entries.get("offset", "0"), entries.get("length", str(size))
    require(
        all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers), f"{name!r} lies at {numbers}"
    )
    offset, length = int(numbers[0]), int(numbers[1])
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
    return values.astype(_WIDER.get(values.dtype.name, values.dtype), copy=False)


def sparse_tensor(path: Path, name: str, proto: Any) -> Named:
    """Return a sparse tensor as the dense one it stands for; its size is checked before it is made."""
    shape = tuple(proto.dims)
    values, places = onnx_tensor(path, name, proto.values), onnx_tensor(path, name, proto.indices)
    return Named(name, shape, values.dtype, guarded(path, _dense, name, shape, values, places))


def _dense(name: str, shape: tuple[int, ...], values: Named, places: Named) -> np.ndarray:
    found, at = values.read(), places.read()
    check_growth(name, byte_size(shape, found.dtype.itemsize), found.nbytes)
    require(at.dtype.kind == "i" and len(at) == found.size, f"{name!r} has {found.size} values, {len(at)} places")
    if at.ndim == 2:
        require(at.shape[1] == len(shape), f"{name!r} has {len(shape)} axes, its places {at.shape[1]}")
        inside = np.all((at >= 0) & (at < np.array(shape, dtype=np.int64)))
        require(bool(inside), f"{name!r} has a place outside its shape {shape}")
        at = np.ravel_multi_index(tuple(at.T), shape)
    require(at.ndim == 1 and bool(np.all((at >= 0) & (at < prod(shape)))), f"{name!r} has a place outside its shape")
    dense = np.zeros(prod(shape), found.dtype)
    dense[at] = found.ravel()
    return dense.reshape(shape)


def listed(name: str, value: float | Sequence[float], dtype: str) -> Named:
    """Return the tensor of the numbers that stand in an attribute."""
    array = np.asarray(value, dtype)
    return Named(name, array.shape, dtype, lambda: array)
