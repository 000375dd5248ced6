"""Orbax's folders: arrays that TensorStore stores, one tensor read at a time; of a manager's folder the newest step.

Reference:
    orbax-checkpoint, "Checkpoint format"; TensorStore, drivers `ocdbt`, `zarr`, `zarr3`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints.files import byte_size, check_count, check_growth, extra, guarded, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.records import Checkpoint

MARKERS = ("manifest.ocdbt", "*/.zarray", "*/zarr.json", "*/_METADATA", "*/*/_METADATA")  # of one of Orbax's folders

_MANIFEST = "manifest.ocdbt"  # of a key-value store in files; without it an array is a folder
_ARRAYS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}  # the last key of an array, by the driver
_STEP = re.compile(r"^(?:[A-Za-z_-]+_)?(\d{1,18})$")
_UNFINISHED = "orbax-checkpoint-tmp"
_KEYS = 2**20  # of a store: one for each chunk


def read_orbax(path: Path) -> Checkpoint:
    """Return the checkpoint of a folder that Orbax wrote."""
    folder, notes = _newest(path)
    items = [folder] if _is_item(folder) else sorted(one for one in folder.iterdir() if one.is_dir() and _is_item(one))
    require(bool(items), f"the folder {folder.name!r} holds no arrays of Orbax's")
    room = _size(folder)
    taken: set[str] = set()
    entries = []
    for item in items:
        prefix = f"{item.name}." if len(items) > 1 else ""
        for name, spec in _arrays(item):
            entries.append(_entry(path, unique(prefix + name.removesuffix(".value"), taken), spec, room))
            check_count(len(entries))
    return Checkpoint("orbax", flat_weights(path, entries), None, notes)


def _newest(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of the last step that was saved, and that it was chosen; `path` where it has no steps."""
    steps = {} if _is_item(path) else {int(found[1]): one for one in path.iterdir() if (found := _STEP.match(one.name))}
    whole = {number: one for number, one in steps.items() if one.is_dir() and _UNFINISHED not in one.name}
    if not whole:
        return path, ()
    last = max(whole)
    notes = (f"of the {len(whole)} steps in the folder the last is read: {whole[last].name}",)
    return whole[last], notes if len(whole) > 1 else ()


def _is_item(folder: Path) -> bool:
    """Return whether a folder holds arrays itself."""
    return (folder / _MANIFEST).is_file() or any(any(folder.glob(f"*{last}")) for last in _ARRAYS)


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def _arrays(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names of a folder's arrays, and how TensorStore opens each."""
    base = f"{folder.resolve()}{os.sep}"
    packed = (folder / _MANIFEST).is_file()
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": base}}
    keys = (
        _keys(store) if packed else [f"{one.parent.name}{last}" for last in _ARRAYS for one in folder.glob(f"*{last}")]
    )
    for key in sorted(keys):
        for last, driver in _ARRAYS.items():
            if key.endswith(last):
                name = key.removesuffix(last)
                place = {**store, "path": f"{name}/"} if packed else {"driver": "file", "path": f"{base}{name}/"}
                yield name, {"driver": driver, "kvstore": place}


def _keys(store: dict[str, Any]) -> list[str]:
    """Return the keys of a store."""
    found = extra("tensorstore", "orbax").KvStore.open(store).result().list().result()
    require(len(found) <= _KEYS, f"it has more than {_KEYS} keys")
    return [key.decode("utf-8") for key in found]


def _entry(path: Path, name: str, spec: dict[str, Any], room: int) -> Entry:
    """Return an array whose shape and chunks are in proportion to what the folder stores."""
    array = _opened(spec)
    kind = array.dtype.name
    if not re.match(r"b?float|u?int|bool|complex", kind):
        return unread(path, name, tuple(array.shape), kind, f"it holds {kind}, which is not read")
    dtype = np.dtype(array.dtype.numpy_dtype)
    chunk = array.chunk_layout.read_chunk.shape or array.shape
    for shape in (tuple(array.shape), tuple(chunk)):
        check_growth(name, byte_size(shape, dtype.itemsize), room)
    return Entry(Named(name, tuple(array.shape), str(dtype), guarded(path, _read, spec)))


def _opened(spec: dict[str, Any]) -> Any:
    tensorstore = extra("tensorstore", "orbax")
    alone = {"cache_pool": {"total_bytes_limit": 0}}  # nothing is kept of what was read
    return tensorstore.open(spec, open=True, read=True, context=tensorstore.Context(alone)).result()


def _read(spec: dict[str, Any]) -> np.ndarray:
    return np.asarray(_opened(spec).read().result())
