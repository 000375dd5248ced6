"""The tensors of a PyTorch file: where their numbers lie, checked against shape and dtype, and read one at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from opnorm.checkpoints.files import byte_size, check_growth, extra, guarded, require
from opnorm.checkpoints.flat import Entry, unread
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import CheckpointError
from opnorm.checkpoints.torch_records import (
    ConvertedTensor,
    Global,
    NumpyArray,
    QuantizedTensor,
    SparseTensor,
    Storage,
    StoredTensor,
    Tensor,
    Unread,
)

_NAMES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2", "UntypedStorage": "uint8",
    "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16", "float": "float32",
    "QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32",
    "qint8": "int8", "quint8": "uint8", "qint32": "int32",
}  # fmt: skip
_QUANTIZED = {"int8": "qint8", "uint8": "quint8", "int32": "qint32"}
_DENSE_BYTES = 2**28  # that a sparse tensor may take when it is written out in float64


class Run(NamedTuple):
    """A run of bytes."""

    open: Callable[[], BinaryIO]
    start: int
    size: int


Find = Callable[[Storage], Run]
Read = Callable[[], np.ndarray]


def dtype_of(kind: str) -> np.dtype[Any] | None:
    """Return the dtype that a pickle calls `kind`, None for one that is not read."""
    plain: Any = _NAMES.get(kind, kind)
    if plain.startswith(("bfloat", "float8")):
        plain = getattr(extra("ml_dtypes"), plain, None)
    try:
        found: np.dtype[Any] | None = np.dtype(plain) if plain is not None else None
    except TypeError:
        return None
    return found if found is not None and found.kind != "O" else None


def entry(path: Path, name: str, tensor: Tensor, find: Find) -> Entry:
    """Return a tensor with its name: its numbers lie within the file, or there is a reason why they cannot be read.

    Args:
        path: The file.
        name: The tensor's name.
        tensor: What the pickle says of it.
        find: Returns the place of a storage.

    Raises:
        CheckpointError: When its numbers would lie elsewhere, or unpack to very many.
    """
    if isinstance(tensor, StoredTensor):
        return _stored(path, name, tensor, find)
    if isinstance(tensor, SparseTensor):
        return _sparse(path, name, tensor, find)
    if isinstance(tensor, QuantizedTensor):
        return _quantized(path, name, tensor, find)
    if isinstance(tensor, ConvertedTensor):
        return _converted(path, entry(path, name, tensor.stored, find), tensor.dtype)
    if isinstance(tensor, NumpyArray):
        return _array(path, name, tensor)
    return _unread(path, name, tensor)


def _unread(path: Path, name: str, tensor: Unread) -> Entry:
    byte_size(tensor.shape, 1)
    return unread(path, name, tensor.shape, tensor.dtype, tensor.reason)


def _converted(path: Path, found: Entry, kind: Global) -> Entry:
    name, shape, stored, read = found.named
    dtype = dtype_of(kind.name)
    if found.reason or dtype is None or "complex" in stored:
        return _unread(path, name, Unread(shape, kind.name, found.reason or f"{stored} turned into {kind.name}"))
    return Entry(Named(name, shape, str(dtype), guarded(path, lambda: read().astype(dtype))))


def _stored(path: Path, name: str, tensor: StoredTensor, find: Find) -> Entry:
    dtype = dtype_of(tensor.kind)
    if dtype is None:
        kind = tensor.kind.removesuffix("Storage")
        return _unread(path, name, Unread(tensor.shape, kind, f"it has the dtype {kind}, which is not read"))
    return Entry(Named(name, tensor.shape, str(dtype), guarded(path, _reader(name, tensor, dtype, find))))


def _reader(name: str, tensor: StoredTensor, dtype: np.dtype[Any], find: Find) -> Read:
    """Return the reader of a view that lies within its storage, which lies within the file."""
    run = find(tensor.storage)
    size, extent = byte_size(tensor.shape, dtype.itemsize), _extent(tensor)
    inside = (tensor.offset + extent) * dtype.itemsize <= run.size
    require(inside, f"{name!r} reaches beyond its storage of {run.size} bytes")
    check_growth(name, size, run.size)  # strides of zero repeat a storage
    part = Run(run.open, run.start + tensor.offset * dtype.itemsize, extent * dtype.itemsize)
    if tensor.negated:
        require(dtype.kind != "b", f"{name!r} is of booleans, and negated")
        return lambda: np.negative(_read(part, dtype, tensor.shape, tensor.strides))
    return lambda: _read(part, dtype, tensor.shape, tensor.strides)


def _extent(tensor: StoredTensor) -> int:
    """Return how many numbers of its storage a view spans."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))


def _read(part: Run, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    with part.open() as file:
        file.seek(part.start)
        data = file.read(part.size)
    require(len(data) == part.size, "its storage is cut off")
    steps = [stride * dtype.itemsize for stride in strides]
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.array(np.ndarray(shape, dtype, data, strides=steps), order="C")  # a copy: strides of zero share memory


def _quantized(path: Path, name: str, tensor: QuantizedTensor, find: Find) -> Entry:
    codes, shape = tensor.codes, tensor.codes.shape
    dtype = dtype_of(codes.kind)
    if dtype is None or str(dtype) not in _QUANTIZED:
        return _unread(path, name, Unread(shape, codes.kind, f"quantized as {codes.kind}, which is not read"))
    around = [1] * len(shape)
    around[tensor.axis : tensor.axis + 1] = [-1] * bool(shape)
    scale, zero = (_number(name, value, find) for value in (tensor.scale, tensor.zero))
    integers = _reader(name, codes, dtype, find)

    def read() -> np.ndarray:
        return np.asarray((integers() - zero().reshape(around)) * scale().reshape(around))

    return Entry(Named(name, shape, _QUANTIZED[str(dtype)], guarded(path, read)))


def _number(name: str, value: float | StoredTensor, find: Find) -> Read:
    """Return the reader of a number, or of a vector of them, in float64, as a vector."""
    if not isinstance(value, StoredTensor):
        return lambda: np.array([value], np.float64)
    dtype = dtype_of(value.kind)
    if dtype is None or dtype.kind not in "fiu":
        raise CheckpointError(f"the scales of {name!r} have the dtype {value.kind}")
    read = _reader(name, value, dtype, find)
    return lambda: read().astype(np.float64)


def _sparse(path: Path, name: str, tensor: SparseTensor, find: Find) -> Entry:
    *indices, values = tensor.parts
    dtype = dtype_of(values.kind)
    if dtype is None or any(dtype_of(part.kind) not in (np.dtype("i4"), np.dtype("i8")) for part in indices):
        return _unread(path, name, Unread(tensor.shape, values.kind, "sparse, of dtypes that are not read"))
    size = byte_size(tensor.shape, 8)
    if size > _DENSE_BYTES:
        return _unread(path, name, Unread(tensor.shape, str(dtype), f"sparse; written out it takes {size} bytes"))
    places = [_reader(name, part, dtype_of(part.kind) or dtype, find) for part in indices]
    numbers = _reader(name, values, dtype, find)
    spread: Callable[..., np.ndarray] = _from_rows if len(places) == 2 else _from_places

    def read() -> np.ndarray:
        found = numbers()
        found = found.astype(np.complex128 if found.dtype.kind == "c" else np.float64)
        return spread(tensor.shape, found, *(place() for place in places))

    return Entry(Named(name, tensor.shape, str(dtype), guarded(path, read)))


def _from_places(shape: tuple[int, ...], values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the tensor of COO's (axes, count) places; what has one place is added."""
    axes = len(places)
    proper = places.ndim == 2 and axes <= len(shape) and values.shape == (places.shape[1], *shape[axes:])
    require(proper, "a sparse tensor has another number of places than values")
    limits = np.array(shape[:axes])[:, None]
    require(bool((places >= 0).all() and (places < limits).all()), "a sparse tensor has a place outside its shape")
    result = np.zeros(shape, values.dtype)
    np.add.at(result, tuple(places), values)
    return result


def _from_rows(shape: tuple[int, ...], values: np.ndarray, starts: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the matrix of CSR's starts of rows and columns."""
    proper = len(shape) == 2 and starts.shape == (shape[0] + 1,) and columns.shape == values.shape == (len(values),)
    require(proper, "a sparse tensor is no matrix of compressed rows")
    counts = np.diff(starts)
    whole = starts[0] == 0 and starts[-1] == len(values) and bool((counts >= 0).all())
    require(whole, "a sparse tensor has rows that do not follow one another")
    return _from_places(shape, values, np.stack([np.repeat(np.arange(shape[0]), counts), columns]))


def _array(path: Path, name: str, array: NumpyArray) -> Entry:
    code = array.type.code
    if array.data is None or len(code) < 2 or code[0] not in "biufc" or not code[1:].isdecimal():
        return _unread(path, name, Unread(array.shape, "object", f"an array of NumPy's of {code[:20]!r}, no numbers"))
    order = array.type.order if array.type.order in "<>" else "="
    dtype = np.dtype(f"{order}{code}")
    require(byte_size(array.shape, dtype.itemsize) == len(array.data), f"{name!r} stores another number of values")
    layout: Any = "F" if array.fortran else "C"
    axes = array.axes or tuple(range(len(array.shape)))
    read = guarded(path, lambda: np.ndarray(array.shape, dtype, array.data, order=layout).transpose(axes).copy("C"))
    return Entry(Named(name, tuple(array.shape[axis] for axis in axes), str(dtype.newbyteorder("=")), read))
