"""`.npy` and `.npz` files: headers are read first, values on demand, and pickled objects never."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy

from opnorm.checkpoints.archives import members
from opnorm.checkpoints.files import byte_size, check_growth, guarded, require
from opnorm.checkpoints.guesses import Named, guess
from opnorm.checkpoints.records import Checkpoint, Weight

_HEADER_BYTES = 2**16


def read_npy(path: Path) -> Checkpoint:
    """Return the checkpoint of one array."""
    return _checkpoint([_tensor(path, path.stem, path.stat().st_size, lambda: path.open("rb"))])


def read_npz(path: Path) -> Checkpoint:
    """Return the checkpoint of an archive of arrays."""
    found = members(path)
    strange = sorted(name for name in found if not name.endswith(".npy"))
    require(not strange, f"the archive holds {strange[:3]}, which are no arrays")
    for name, info in found.items():
        check_growth(name, info.file_size, info.compress_size)
    arrays = [(name.removesuffix(".npy"), info.file_size, _opener(path, info)) for name, info in found.items()]
    return _checkpoint([_tensor(path, *array) for array in arrays])


def _opener(path: Path, info: ZipInfo) -> Callable[[], BinaryIO]:
    return lambda: _Member(path, info)  # type: ignore[return-value]


class _Member:
    """A member of an archive, opened with its archive and closed with it."""

    def __init__(self, path: Path, info: ZipInfo):
        self._archive = ZipFile(path)
        self._file = self._archive.open(info)
        self.read = self._file.read

    def __enter__(self) -> "_Member":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._archive.close()


def _checkpoint(tensors: list[Named]) -> Checkpoint:
    by_name = {tensor.name: tensor for tensor in tensors}
    return Checkpoint("npz", tuple(Weight(*tensor, guess(tensor, by_name)) for tensor in tensors))


def _tensor(path: Path, name: str, room: int, open_file: Callable[[], BinaryIO]) -> Named:
    with open_file() as file:
        shape, _, dtype = _header(file)
    require(dtype.kind in "biufc", f"{name!r} holds {dtype}, which are no numbers")
    size = byte_size(shape, dtype.itemsize)
    require(size <= room, f"{name!r} takes {size} bytes of {room}")
    return Named(name, shape, str(dtype.newbyteorder("=")), guarded(path, _read, open_file))


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    require(version in ((1, 0), (2, 0), (3, 0)), f"its version of the .npy format is {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(file, max_header_size=_HEADER_BYTES)


def _read(open_file: Callable[[], BinaryIO]) -> np.ndarray:
    with open_file() as file:
        shape, fortran, dtype = _header(file)
        data = file.read(byte_size(shape, dtype.itemsize))
    require(len(data) == math.prod(shape) * dtype.itemsize, "the values are cut off")
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)
