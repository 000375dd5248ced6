"""HDF5 files as trees of tensors that can be read one by one; links and storage that lead elsewhere are not followed.

Every dataset is a tensor of the tree, also one whose values are not read: then its geometry says why.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import DEPTH, extra, guarded, require
from opnorm.checkpoints.hdf5_attributes import Source, opened, raw_file, text_attribute
from opnorm.checkpoints.hdf5_heaps import check_heaps
from opnorm.checkpoints.hdf5_storage import check_contents, check_storage, read_values
from opnorm.checkpoints.hdf5_types import is_bfloat16, typed_geometry
from opnorm.checkpoints.records import CheckpointError, Geometry

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Tensor(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    geometry: Geometry | None = None  # where its type or its storage leaves nothing to ask: text, a compound type


class Group(NamedTuple):
    """A group; `name` is its own or its `vars`' attribute of that name, by which Keras remembers a layer."""

    name: str
    tensors: Mapping[str, Tensor]
    groups: Mapping[str, "Group"]


def read_tree(path: Path, source: Source) -> Group:
    """Return the tree of a whole file; reading a tensor opens the file again."""
    with source() as raw:
        require(raw.read(len(_SIGNATURE)) == _SIGNATURE, "its weights are no HDF5 file")
        check_heaps(raw)
    with opened(source) as file:
        return _Walk(path, source).group(file, 0)


def read_file(path: Path) -> Group:
    """Return the tree of an HDF5 file that stands by itself."""
    return read_tree(path, lambda: path.open("rb"))


class _Walk:
    """One pass over a file, which meets each group once."""

    def __init__(self, path: Path, source: Source):
        self.path, self.source, self.seen = path, source, set[Any]()

    def group(self, group: Any, depth: int) -> Group:
        h5py = extra("h5py")
        require(depth <= DEPTH, "its groups are nested too deeply")
        address = h5py.h5o.get_info(group.id).addr
        require(address not in self.seen, f"the group {group.name!r} is linked twice")
        self.seen.add(address)
        tensors, groups = {}, {}
        for key in sorted(group, key=_natural):
            found = self.member(group, key, depth)
            if isinstance(found, Group):
                groups[key] = found
            elif found is not None:
                tensors[key] = found
        return Group(text_attribute(group, "name"), tensors, groups)

    def member(self, group: Any, key: str, depth: int) -> Group | Tensor | None:
        """Return what a group holds under a key: None for a named type, a tensor with the reason for what fails."""
        h5py = extra("h5py")
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            return self.failed(f"{group.name.rstrip('/')}/{key} is a link to another place, which is not followed")
        try:
            item = group[key]
            if isinstance(item, h5py.Group):
                return self.group(item, depth + 1)
            return self.tensor(item) if isinstance(item, h5py.Dataset) else None
        except (CheckpointError, MemoryError, RecursionError):
            raise
        except Exception as error:  # the library raises anything at a damaged member, a type that it does not know
            return self.failed(f"it cannot be read ({type(error).__name__}: {error})")

    def tensor(self, dataset: Any) -> Tensor:
        shape, dtype = (0,) if dataset.shape is None else dataset.shape, "unknown"
        try:
            dtype, geometry = _dtype(dataset), typed_geometry(dataset)
            if geometry is None:
                check_storage(dataset, raw_file())
        except CheckpointError as error:
            geometry = g.unknown("unknown", str(error))
        return Tensor(shape, dtype, guarded(self.path, read_dataset, self.source, dataset.name), geometry)

    def failed(self, reason: str) -> Tensor:
        reason = " ".join(reason.split())[:400]
        return Tensor((), "unknown", guarded(self.path, _fail, reason), g.unknown("unknown", reason))


def _fail(reason: str) -> np.ndarray:
    raise CheckpointError(reason)


def read_dataset(source: Source, name: str) -> np.ndarray:
    """Return the values of one dataset."""
    with opened(source) as file:
        dataset = file[name]
        geometry = typed_geometry(dataset)
        if dataset.shape is None:
            return np.zeros(0, dataset.dtype)
        require(geometry is None or dataset.dtype.kind == "c" or 0 in dataset.shape, getattr(geometry, "reason", ""))
        check_storage(dataset, raw_file())
        check_contents(dataset)
        values = read_values(dataset)
        return values.view(extra("ml_dtypes").bfloat16) if _dtype(dataset) == "bfloat16" else values


def _dtype(dataset: Any) -> str:
    return "bfloat16" if is_bfloat16(dataset) else str(dataset.dtype.newbyteorder("="))[:80]


def _natural(key: Any) -> tuple[str, int, str]:
    """Sort "2" before "10", and "dense_2" before "dense_10": Keras numbers variables and layers."""
    if not isinstance(key, str):
        raise CheckpointError("a group holds a name that is not text")
    start, digits = re.fullmatch(r"(.*?)([0-9]{0,9})", key, re.DOTALL).groups()  # type: ignore[union-attr]
    return start, int(digits or -1), key
