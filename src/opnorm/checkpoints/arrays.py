"""`.npy` and `.npz` files: headers are read first, values on demand, and pickled objects never."""

import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from opnorm.checkpoints.archives import members, open_member
from opnorm.checkpoints.files import byte_size, check_count, check_growth, guarded, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import Checkpoint

_HEADER_BYTES = 2**16
_SHOWN = 3  # names in a note


def read_npy(path: Path) -> Checkpoint:
    """Return the checkpoint of one array."""
    size = path.stat().st_size
    found, more = _tensor(path, path.stem, size, lambda: path.open("rb"))
    return Checkpoint("npz", flat_weights(path, [found]), notes=_notes({found.named.name: more}))


def read_npz(path: Path) -> Checkpoint:
    """Return the checkpoint of an archive of arrays."""
    found = members(path)
    check_count(len(found))
    strange = sorted(name for name in found if not name.endswith(".npy"))
    require(not strange, f"the archive holds {strange[:3]}, which are no arrays")
    for name, info in found.items():
        check_growth(name, info.file_size, info.compress_size)
    tensors = [
        _tensor(path, name.removesuffix(".npy"), info.file_size, partial(open_member, path, info))
        for name, info in found.items()
    ]
    more = {entry.named.name: count for entry, count in tensors}
    return Checkpoint("npz", flat_weights(path, [entry for entry, _ in tensors]), notes=_notes(more))


def _notes(more: Mapping[str, int]) -> tuple[str, ...]:
    """Return a note on what follows arrays, which no reader of NumPy's would show."""
    longer = [name for name, count in more.items() if count > 0]
    shown = ", ".join(map(repr, longer[:_SHOWN])) + (" and others" if len(longer) > _SHOWN else "")
    count = sum(more[name] for name in longer)
    text = f"{count} bytes follow the array, and were not read: another array, perhaps, behind {shown}"
    return (text,) if longer else ()


def _tensor(path: Path, name: str, room: int, open_file: Callable[[], BinaryIO]) -> tuple[Entry, int]:
    """Return an array, and how many bytes follow it."""
    with open_file() as file:
        shape, _, dtype = _header(file)
        begin = file.tell()
    if dtype.kind not in "biufc":
        what = "Python objects" if dtype.hasobject else str(dtype)
        reason = f"it holds {what}, which are no numbers"
        found = unread(path, name, shape, str(dtype)[:40], reason)
        found = found._replace(reason="") if dtype.kind in "SUmM" else found  # texts and dates are no kernels
        return found, 0 if dtype.hasobject else room - begin - byte_size(shape, dtype.itemsize)
    size = byte_size(shape, dtype.itemsize)
    require(size <= room, f"{name!r} takes {size} bytes of {room}")
    entry = Entry(Named(name, shape, str(dtype.newbyteorder("=")), guarded(path, _read, open_file)))
    return entry, room - begin - size


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and dtype; the file then stands at the values."""
    version = npy.read_magic(file)
    require(version in ((1, 0), (2, 0), (3, 0)), f"its version of the .npy format is {version}")
    length = file.read(2 if version == (1, 0) else 4)
    size = int.from_bytes(length, "little")
    require(size <= _HEADER_BYTES, f"its header would take {size} bytes")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(io.BytesIO(length + file.read(size)), max_header_size=_HEADER_BYTES)


def _read(open_file: Callable[[], BinaryIO]) -> np.ndarray:
    with open_file() as file:
        shape, fortran, dtype = _header(file)
        data = file.read(byte_size(shape, dtype.itemsize))
    require(len(data) == math.prod(shape) * dtype.itemsize, "the values are cut off")
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)
