"""PyTorch's distributed checkpoints: `.metadata` says which part of which tensor lies where in the `.distcp` files.

It is a pickle, read as all of PyTorch's are: no class that it names is imported, and nothing is called.

Reference:
    PyTorch, `torch/distributed/checkpoint/metadata.py`, `filesystem.py`.
"""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints import torch_pickle
from opnorm.checkpoints.archives import Part
from opnorm.checkpoints.boxes import Box, check_cover, joined
from opnorm.checkpoints.files import JSON_BYTES, check_count, guarded, inside, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.torch_file import held_tensors
from opnorm.checkpoints.torch_records import Global, Opaque, Table
from opnorm.checkpoints.torch_tensors import dtype_of, entry

_OPERATIONS = 2**22  # of the pickle: a part takes about 40
_METADATA = ".metadata"


class _Place(NamedTuple):
    """Where a part lies."""

    file: Path
    offset: int
    size: int
    changed: bool  # compressed, or otherwise transformed


Places = dict[tuple[str, tuple[int, ...] | None], _Place]  # by the tensor's name and the part's first entry


def read_distributed(path: Path) -> Checkpoint:
    """Return the checkpoint of a folder, or of the file `.metadata` in it."""
    file = path / _METADATA if path.is_dir() else path
    require(file.stat().st_size <= JSON_BYTES, f"its {_METADATA} is larger than {JSON_BYTES >> 20} MiB")
    metadata = _state(torch_pickle.load(io.BytesIO(file.read_bytes()), _OPERATIONS), "Metadata")
    places = _places(file.parent, metadata.get("storage_data"))
    taken: set[str] = set()
    entries = []
    for name, kind in _table(metadata.get("state_dict_metadata")):
        for found in _entries(path, name, kind, places):
            entries.append(found._replace(named=found.named._replace(name=unique(found.named.name, taken))))
            check_count(len(entries))
    return Checkpoint("torch distributed", flat_weights(path, entries))


def _state(value: Any, *kinds: str) -> Table:
    """Return the attributes of a record of one of the classes named."""
    known = isinstance(value, Opaque) and value.kind.name in kinds and isinstance(value.state, Table)
    require(known, f"its {_METADATA} is no pickle of PyTorch's distributed checkpoints; nothing of it was run")
    return value.state  # type: ignore[no-any-return]


def _table(value: Any) -> Iterator[tuple[str, Any]]:
    require(isinstance(value, Table), f"its {_METADATA} has no table of tensors")
    for name, item in value.pairs:
        require(type(name) is str, "a tensor of it has a name that is no text")
        yield name, item


def _places(folder: Path, value: Any) -> Places:
    require(isinstance(value, Table), f"its {_METADATA} does not say where the numbers are: another program wrote them")
    files: dict[str, Path] = {}
    found: Places = {}
    for key, item in value.pairs:
        index, info = _state(key, "MetadataIndex"), _state(item, "_StorageInfo")
        name, file = index.get("fqn"), info.get("relative_path")
        offset, size = info.get("offset"), info.get("length")
        proper = type(name) is type(file) is str and type(offset) is type(size) is int
        require(proper and offset >= 0 and size >= 0, "a part of it has a place that makes no sense")
        if file not in files:
            files[file] = inside(folder, file)
        first = index.get("offset")
        start = None if first is None else _sizes(first)
        found[name, start] = _Place(files[file], offset, size, bool(info.get("transform_descriptors")))
    return found


def _sizes(value: Any) -> tuple[int, ...]:
    proper = (
        isinstance(value, list | tuple) and len(value) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )
    require(proper, "a tensor of it has a shape that is none")
    return tuple(value)


def _entries(path: Path, name: str, kind: Any, places: Places) -> Iterator[Entry]:
    """Yield a tensor, or the tensors of a value that PyTorch stores as it is."""
    if isinstance(kind, Opaque) and kind.kind.name == "BytesStorageMetadata":
        yield from _of_value(path, name, places.get((name, None)))
        return
    state = _state(kind, "TensorStorageMetadata")
    shape, dtype = _sizes(state.get("size")), _dtype(state.get("properties"))
    if dtype is None:
        yield unread(path, name, shape, "unknown", "its dtype is not read")
        return
    boxes = [Box(_sizes(one.get("offsets")), _sizes(one.get("sizes"))) for one in _chunks(state.get("chunks"))]
    check_cover(name, shape, boxes)
    found = [places.get((name, box.starts)) for box in boxes]
    if any(place is not None and place.changed for place in found):
        yield unread(path, name, shape, str(dtype), "its parts are compressed or transformed, which is not undone here")
        return
    parts = [(box, partial(_part, path, name, box, dtype, place)) for box, place in zip(boxes, found, strict=True)]
    yield Entry(Named(name, shape, str(dtype), guarded(path, joined, shape, dtype, parts)))


def _chunks(value: Any) -> Iterator[Table]:
    require(isinstance(value, list), "a tensor of it has no list of parts")
    return (_state(one, "ChunkStorageMetadata") for one in value)


def _dtype(properties: Any) -> np.dtype[Any] | None:
    """Return the dtype that the record of a tensor's properties begins with."""
    state = properties.state if isinstance(properties, Opaque) else None
    first = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, Table) else None
    return dtype_of(first.name) if isinstance(first, Global) else None


def _part(path: Path, name: str, box: Box, dtype: np.dtype[Any], place: _Place | None) -> np.ndarray:
    """Return the numbers of a part: a tensor that was saved by itself, amid a file."""
    if place is None:
        raise CheckpointError(f"a part of {name!r} has no place")
    if 0 in box.shape:
        return np.zeros(box.shape, dtype)
    held, _ = held_tensors(_archive(place))
    require(len(held) == 1, f"a part of {name!r} is no tensor")
    _, tensor, find = held[0]
    found = entry(path, name, tensor, find).named
    require((found.shape, found.dtype) == (box.shape, str(dtype)), f"a part of {name!r} has another shape or dtype")
    return found.read()


def _archive(place: _Place) -> Part:
    within = place.offset + place.size <= place.file.stat().st_size
    require(within, f"a part of it lies beyond the end of {place.file.name!r}")
    return Part(place.file, place.offset, place.size)


def _of_value(path: Path, name: str, place: _Place | None) -> Iterator[Entry]:
    """Yield the tensors of a value, of which most have none; one that cannot be read may have some."""
    try:
        require(place is not None and not place.changed, "it has no place, or is compressed")
        held, _ = held_tensors(_archive(place))  # type: ignore[arg-type]
        for key, tensor, find in held:
            yield entry(path, name if key == "tensor" else f"{name}.{key}", tensor, find)
    except CheckpointError as error:
        yield unread(path, name, (), "object", f"a value that is not understood: {error}")
