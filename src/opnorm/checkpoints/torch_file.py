"""PyTorch files (`.pt`, `.pth`, `.bin`): tensors by name, read from the archive one at a time, without PyTorch."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipInfo

from opnorm.checkpoints import torch_pickle
from opnorm.checkpoints.archives import ARCHIVE, Archive, members, read_member, searchable
from opnorm.checkpoints.files import DEPTH, JSON_BYTES, check_count, require
from opnorm.checkpoints.flat import Entry, flat_weights
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.torch_records import TENSORS, Global, Opaque, Storage, Table, Tensor
from opnorm.checkpoints.torch_tensors import Find, Run, dtype_of, entry

FORMAT = "torch"
_MAGIC = 0x1950A86A20F9469CFC6C  # of files from before PyTorch 1.6
_NAME = 1000  # characters of a key
_KEYS = 16  # items of a key that is a tuple


def read_torch(path: Path) -> Checkpoint:
    """Return the checkpoint of a zip archive of PyTorch's, or of TorchScript's, whose code is not run."""
    return _checkpoint(path, *held_tensors(path))


Held = tuple[str, Tensor, Find]  # a tensor, its name, and where its storages are


def held_tensors(path: Archive) -> tuple[list[Held], tuple[str, ...]]:
    """Return the tensors of a zip archive of PyTorch's, and notes on it."""
    found = members(path)
    pickles = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    require(len(pickles) == 1, "the archive holds no data.pkl, so it is none of PyTorch's")
    prefix = pickles[0].removesuffix("data.pkl")
    require(_order(path, found.get(f"{prefix}byteorder")) == b"little", "its numbers are big-endian")
    held = list(_members(path, found, prefix, "data", ()))
    constants = f"{prefix}constants.pkl" in found  # where a frozen module keeps its weights
    held += list(_members(path, found, prefix, "constants", ("constants",))) if constants else []
    scripted = any(name.startswith(f"{prefix}code/") for name in found)
    notes = ("the archive holds TorchScript code, which was not run",) if scripted else ()
    return held, notes


def _members(
    path: Archive, found: Mapping[str, ZipInfo], prefix: str, part: str, names: tuple[str, ...]
) -> Iterator[Held]:
    """Yield the tensors of one pickle of an archive; their storages lie in a folder of its name."""
    value = torch_pickle.load(io.BytesIO(read_member(path, found[f"{prefix}{part}.pkl"], JSON_BYTES)))
    for name, tensor in _tensors(value, names):
        yield name, tensor, lambda storage: _member(path, found, f"{prefix}{part}/{storage.key}")


def _order(path: Archive, info: ZipInfo | None) -> bytes:
    return b"little" if info is None else read_member(path, info, 64).strip()


def _member(path: Archive, found: Mapping[str, ZipInfo], name: str) -> Run:
    info = found.get(name)
    if info is None:
        raise CheckpointError(f"the archive holds no {name!r}")
    require(info.compress_type == ZIP_STORED, f"the member {name!r} is compressed, which PyTorch never does")
    return Run(searchable(path, info), 0, info.file_size)


def read_old_torch(path: Path) -> Checkpoint:
    """Return the checkpoint of a file from before PyTorch 1.6: five pickles, then the storages one after another."""
    return _checkpoint(path, _from_pickles(path), ())


def _from_pickles(path: Path) -> list[Held]:
    """Return what a file of five pickles holds, behind which the storages stand."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(JSON_BYTES))
        require(torch_pickle.load(start) == _MAGIC, "it is a pickle, but none of PyTorch's; nothing of it was run")
        torch_pickle.load(start)  # the protocol's version
        system = torch_pickle.load(start)
        (value, storages), keys = torch_pickle.load_with_storages(start), torch_pickle.load(start)
    require(isinstance(system, Table) and system.get("little_endian") is True, "its numbers are big-endian")
    tensors = list(_tensors(value, ()))
    runs = dict(_runs(path, start.tell(), keys, storages))
    return [(*held, lambda storage: _known(runs, storage.key)) for held in tensors]


def _known(runs: Mapping[str, Run], key: str) -> Run:
    require(key in runs, f"the storage {key!r} is missing")
    return runs[key]


def _runs(path: Path, at: int, keys: Any, storages: Mapping[str, Storage]) -> Iterator[tuple[str, Run]]:
    """Yield the places of storages: each is its count, then its numbers."""
    require(isinstance(keys, list), "its list of storages is missing")
    for key in map(_text, keys):
        require(key in storages, f"the storage {key!r} belongs to no tensor")
        dtype = dtype_of(storages[key].kind.name)
        if dtype is None:
            raise CheckpointError(f"it holds a storage of {storages[key].kind.name}, whose length is not known")
        size = storages[key].size * dtype.itemsize
        yield key, Run(lambda: path.open("rb"), at + 8, size)
        at += 8 + size
    require(at <= path.stat().st_size, "its storages are cut off")


def tensors_of(path: Path) -> dict[str, Entry]:
    """Return the tensors of a file of either kind, by name."""
    with path.open("rb") as file:
        held = held_tensors(path)[0] if file.read(4) == ARCHIVE else _from_pickles(path)
    return {found.named.name: found for found in _entries(path, held)}


def _checkpoint(path: Path, held: list[Held], notes: tuple[str, ...]) -> Checkpoint:
    return Checkpoint(FORMAT, flat_weights(path, _entries(path, held)), None, notes)


def _entries(path: Path, held: list[Held]) -> list[Entry]:
    taken: set[str] = set()
    return [entry(path, unique(name, taken), tensor, find) for name, tensor, find in held]


def _tensors(value: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with the dotted path of its keys, after `names`."""
    for count, found in enumerate(_walk(value, names, set())):
        check_count(count)
        yield found


def _walk(value: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with the path to it; a table that is held twice is met once."""
    if isinstance(value, TENSORS):
        yield ".".join(names) or "tensor", value
        return
    require(len(names) <= DEPTH, "its tables are nested too deeply")
    inner = value.state if isinstance(value, Opaque) else value
    inner = inner.pairs if isinstance(inner, Table) else inner
    if id(inner) in seen or not isinstance(inner, list | tuple) or isinstance(inner, Global | Storage):
        return
    seen.add(id(inner))
    table = isinstance(value, Table) or (isinstance(value, Opaque) and isinstance(value.state, Table))
    for key, item in inner if table else enumerate(inner):
        if isinstance(item, _CONTAINERS):
            yield from _walk(item, (*names, _text(key)), seen)


def _text(key: Any) -> str:
    """Return the text of a key: of a text, a number, or a few of them; of another kind its name."""
    several = type(key) is tuple and len(key) <= _KEYS
    text = f"({', '.join(map(_plain, key))})" if several else _plain(key)
    require(len(text) <= _NAME, f"it has a key of {len(text)} characters")
    return text


def _plain(key: Any) -> str:
    if isinstance(key, Global):
        return str(key)
    short = type(key) in (str, float, bool, type(None)) or (type(key) is int and abs(key) < 2**63)
    return str(key) if short else type(key).__name__


_CONTAINERS = (*TENSORS, Table, Opaque, list, tuple)
