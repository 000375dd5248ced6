"""PyTorch files (`.pt`, `.pth`, `.bin`): tensors by name, read from the archive one at a time, without PyTorch."""

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_STORED, ZipInfo

import numpy as np

from opnorm.checkpoints import torch_pickle
from opnorm.checkpoints.archives import members, read_member, searchable
from opnorm.checkpoints.files import DEPTH, JSON_BYTES, byte_size, check_growth, extra, guarded, require
from opnorm.checkpoints.guesses import Named, guess
from opnorm.checkpoints.keras_tree import unique
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Weight
from opnorm.checkpoints.torch_pickle import Opaque, Storage, StoredTensor

_MAGIC = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6
_NAMES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2", "UntypedStorage": "uint8",
    "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16", "float": "float32",
}  # fmt: skip


class Run(NamedTuple):
    """A run of bytes."""

    open: Callable[[], BinaryIO]
    start: int
    size: int


def read_torch(path: Path) -> Checkpoint:
    """Return the checkpoint of a zip archive of PyTorch's, or of TorchScript's, whose code is not run."""
    found = members(path)
    pickles = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    require(len(pickles) == 1, "the archive holds no data.pkl, so it is none of PyTorch's")
    prefix = pickles[0].removesuffix("data.pkl")
    require(_order(path, found.get(f"{prefix}byteorder")) == b"little", "its numbers are big-endian")
    value = torch_pickle.load(io.BytesIO(read_member(path, found[pickles[0]], JSON_BYTES)))
    scripted = any(name.startswith(f"{prefix}code/") for name in found)
    notes = ("the archive holds TorchScript code, which was not run",) if scripted else ()
    return _checkpoint(path, value, lambda storage: _member(path, found, f"{prefix}data/{storage.key}"), notes)


def _order(path: Path, info: ZipInfo | None) -> bytes:
    return b"little" if info is None else read_member(path, info, 64).strip()


def _member(path: Path, found: Mapping[str, ZipInfo], name: str) -> Run:
    info = found.get(name)
    if info is None:
        raise CheckpointError(f"the archive holds no {name!r}")
    require(info.compress_type == ZIP_STORED, f"the member {name!r} is compressed, which PyTorch never does")
    return Run(searchable(path, info), 0, info.file_size)


def read_old_torch(path: Path) -> Checkpoint:
    """Return the checkpoint of a file from before PyTorch 1.6: five pickles, then the storages one after another."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(JSON_BYTES))
        require(torch_pickle.load(start) == _MAGIC, "it is a pickle, but none of PyTorch's; nothing of it was run")
        torch_pickle.load(start)  # the protocol's version
        system = torch_pickle.load(start)
        value, keys = torch_pickle.load(start), torch_pickle.load(start)
    require(isinstance(system, dict) and system.get("little_endian") is True, "its numbers are big-endian")
    tensors = list(_flat(value))
    storages = {tensor.storage.key: tensor.storage for _, tensor in tensors}
    runs = dict(_runs(path, start.tell(), keys, storages))
    return _checkpoint(path, value, lambda storage: _known(runs, storage.key), ())


def _known(runs: Mapping[str, Run], key: str) -> Run:
    require(key in runs, f"the storage {key!r} is missing")
    return runs[key]


def _runs(path: Path, at: int, keys: Any, storages: Mapping[str, Storage]) -> Iterator[tuple[str, Run]]:
    """Yield the places of storages: each is its count, then its numbers."""
    require(isinstance(keys, list), "its list of storages is missing")
    for key in map(str, keys):
        require(key in storages, f"the storage {key!r} belongs to no tensor")
        size = storages[key].size * _dtype(storages[key].kind.name).itemsize
        yield key, Run(lambda: path.open("rb"), at + 8, size)
        at += 8 + size
    require(at <= path.stat().st_size, "its storages are cut off")


def _checkpoint(path: Path, value: Any, find: Callable[[Storage], Run], notes: tuple[str, ...]) -> Checkpoint:
    taken: set[str] = set()
    tensors = [_named(path, unique(name, taken), tensor, find) for name, tensor in _flat(value)]
    by_name = {tensor.name: tensor for tensor in tensors}
    weights = [Weight(*tensor, guess(tensor, by_name)) for tensor in tensors]
    return Checkpoint("torch", tuple(weights), None, notes)


def _flat(value: Any) -> Iterator[tuple[str, StoredTensor]]:
    """Yield every tensor with the dotted path of its keys; what is held twice is met once."""
    return _walk(value, (), set())


def _walk(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(value, StoredTensor):
        yield ".".join(path) or "tensor", value
        return
    require(len(path) <= DEPTH, "its tables are nested too deeply")
    inner = value.state if isinstance(value, Opaque) else value
    if id(inner) in seen or not isinstance(inner, dict | list | tuple) or isinstance(inner, torch_pickle.Global):
        return
    seen.add(id(inner))
    items = inner.items() if isinstance(inner, dict) else enumerate(inner)
    for key, item in items:
        yield from _walk(item, (*path, str(key)), seen)


def _dtype(name: str) -> np.dtype[Any]:
    plain: Any = _NAMES.get(name, name)
    if plain.startswith(("bfloat", "float8")):
        plain = getattr(extra("ml_dtypes"), plain)
    try:
        found: np.dtype[Any] = np.dtype(plain)
        return found
    except TypeError as error:
        raise CheckpointError(f"its tensors have the dtype {name}, which is not read") from error


def _named(path: Path, name: str, tensor: StoredTensor, find: Callable[[Storage], Run]) -> Named:
    """Return a tensor whose view lies within its storage, and whose storage lies within the file."""
    dtype = _dtype(tensor.dtype.name if tensor.dtype else tensor.storage.kind.name)
    run = find(tensor.storage)
    size, extent = byte_size(tensor.shape, dtype.itemsize), _extent(tensor)
    inside = (tensor.offset + extent) * dtype.itemsize <= run.size
    require(inside, f"{name!r} reaches beyond its storage of {run.size} bytes")
    check_growth(name, size, run.size)  # strides of zero repeat a storage
    part = Run(run.open, run.start + tensor.offset * dtype.itemsize, extent * dtype.itemsize)
    return Named(name, tensor.shape, str(dtype), guarded(path, _read, part, dtype, tensor.shape, tensor.strides))


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
