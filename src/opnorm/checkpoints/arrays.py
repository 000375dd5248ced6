"""`.npy`, `.npz` and Equinox's `.eqx` files: headers are read first, values on demand, and pickled objects never."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.archives import members, open_member
from opnorm.checkpoints.files import byte_size, check_count, check_growth, extra, guarded, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.records import Checkpoint

_HEADER_BYTES = 2**16
_MAGIC = b"\x93NUMPY"
_BFLOAT16 = np.dtype("V2")  # two bytes without a type: so NumPy writes bfloat16, and `jax.numpy.load` reads it
_SHOWN = 3  # names in a note


def read_npy(path: Path) -> Checkpoint:
    """Return the checkpoint of one array, or of several one after another, which `numpy.load` reads call by call."""
    entries, rest = _sequence(path, 0)
    return Checkpoint("npz", flat_weights(path, entries), notes=_notes({entries[-1].named.name: rest}))


def read_equinox(path: Path) -> Checkpoint:
    """Return the checkpoint of what `equinox.tree_serialise_leaves` wrote: the leaves of a tree, in its order, unnamed.

    A line of JSON may stand before them, as Equinox's own examples write a model's settings.
    """
    with path.open("rb") as file:
        first = file.read(_HEADER_BYTES)
    begin = 0 if first.startswith(_MAGIC) else first.find(b"\n") + 1
    require(begin > 0 or first.startswith(_MAGIC), f"its first line does not end within {_HEADER_BYTES} bytes")
    entries, rest = _sequence(path, begin)
    weights = list(flat_weights(path, entries))
    for i in _biases([entry.named.shape for entry in entries]):
        weights[i] = weights[i]._replace(geometry=g.nothing("unknown", g.BIAS, assumed=True))
    notes = ("its file has no names: tensors are counted in the order of the tree", *_notes({weights[-1].name: rest}))
    return Checkpoint("equinox", tuple(weights), notes=notes)


def _biases(shapes: Sequence[tuple[int, ...]]) -> Iterator[int]:
    """Yield where the bias of a convolution stands, (out, 1, ...), behind its kernel (out, in, *spatial)."""
    for i, (kernel, bias) in enumerate(pairwise(shapes), 1):
        if len(bias) > 1 and len(kernel) == len(bias) + 1 and bias == (kernel[0], *[1] * (len(bias) - 1)):
            yield i


def _sequence(path: Path, begin: int) -> tuple[list[Entry], int]:
    """Return the arrays that stand one after another from a byte on, and how many bytes follow the last."""
    entries: list[Entry] = []
    taken: set[str] = set()
    size, left = path.stat().st_size, 1
    while left > 0 and _begins(path, begin):
        check_count(len(entries))
        name = unique(path.stem, taken)
        entry, left = _tensor(path, name, size - begin, partial(_opened, path, begin))
        entries.append(entry)
        begin = size - left
    require(bool(entries), "no NumPy array stands where one should")
    return entries, size - begin if left else 0


def _begins(path: Path, begin: int) -> bool:
    """Return whether an array begins at a byte; another than the first one may be cut off."""
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(len(_MAGIC)) == _MAGIC


def _opened(path: Path, begin: int) -> BinaryIO:
    file = path.open("rb")
    file.seek(begin)
    return file


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
        begin = -file.tell()
        shape, _, dtype = _header(file)
        begin += file.tell()
    dtype = np.dtype(extra("ml_dtypes").bfloat16) if dtype == _BFLOAT16 else dtype
    if dtype.kind not in "biufc" and dtype.name != "bfloat16":
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
    values = values.view(extra("ml_dtypes").bfloat16) if dtype == _BFLOAT16 else values
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)
