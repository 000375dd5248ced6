"""HDF5 files as trees of tensors that can be read one by one; links and storage that lead elsewhere are refused."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from opnorm.checkpoints.files import DEPTH, byte_size, check_growth, extra, guarded, require
from opnorm.checkpoints.hdf5_heaps import check_heaps
from opnorm.checkpoints.hdf5_texts import claimed_length
from opnorm.checkpoints.records import CheckpointError

Source = Callable[[], BinaryIO]

_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # HDF5's own and LZF: any other would be looked for among plugins


class Tensor(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class Group(NamedTuple):
    """A group; `name` is its own or its `vars`' attribute of that name, by which Keras remembers a layer."""

    name: str
    tensors: Mapping[str, Tensor]
    groups: Mapping[str, "Group"]


# The file that `opened` has open: h5py does not hand it back.
_open_file: ContextVar[BinaryIO] = ContextVar("open_file")


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """Open the file for reading, and close it."""
    h5py = extra("h5py")
    with source() as raw, h5py.File(raw, "r") as file:
        token = _open_file.set(raw)
        try:
            yield file
        finally:
            _open_file.reset(token)


def read_tree(path: Path, source: Source) -> Group:
    """Return the tree of a whole file; reading a tensor opens the file again."""
    with source() as raw:
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
            item = _item(group, key)
            if isinstance(item, h5py.Group):
                groups[key] = self.group(item, depth + 1)
            elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiubcV" and item.shape is not None:
                tensors[key] = self.tensor(item)
        return Group(_text(group, "name"), tensors, groups)

    def tensor(self, dataset: Any) -> Tensor:
        check_dataset(dataset)
        read = guarded(self.path, read_dataset, self.source, dataset.name)
        return Tensor(dataset.shape, _dtype(dataset), read)


def _item(group: Any, key: str) -> Any:
    h5py = extra("h5py")
    link = group.get(key, getlink=True)
    require(isinstance(link, h5py.HardLink), f"{group.name}/{key} is a link to another place")
    return group[key]


def check_dataset(dataset: Any) -> None:
    """Raise unless the dataset's values lie in the file, take about the space they say, and need no plugin."""
    name = dataset.name
    require(not dataset.external, f"the values of {name!r} lie in another file")
    require(not dataset.is_virtual, f"the values of {name!r} lie in other datasets")
    declared, stored = byte_size(dataset.shape or (), dataset.dtype.itemsize), dataset.id.get_storage_size()
    check_growth(name, declared, stored)
    check_growth(f"a chunk of {name}", byte_size(dataset.chunks or (), dataset.dtype.itemsize), stored)
    plan = dataset.id.get_create_plist()
    filters = {plan.get_filter(i)[0] for i in range(plan.get_nfilters())}
    require(filters <= _FILTERS, f"{name!r} is stored by a filter that is not read: {sorted(filters - _FILTERS)}")


def read_dataset(source: Source, name: str) -> np.ndarray:
    """Return the values of one dataset."""
    with opened(source) as file:
        dataset = file[name]
        check_dataset(dataset)
        values = np.asarray(dataset[()])
        return values.view(extra("ml_dtypes").bfloat16) if _dtype(dataset) == "bfloat16" else values


def _dtype(dataset: Any) -> str:
    """Return the dtype; Keras stores bfloat16 as two opaque bytes and says so in an attribute."""
    if _text(dataset, "dtype") == "bfloat16" and dataset.dtype.itemsize == 2:
        return "bfloat16"
    return str(dataset.dtype.newbyteorder("="))


def attribute_texts(group: Any, name: str) -> list[str] | None:
    """Return an attribute of one or more texts, which Keras splits into name0, name1, ... when it is long."""
    if name in group.attrs:
        return _texts(group, name)
    parts: list[str] = []
    for i in range(len(group.attrs)):
        if f"{name}{i}" not in group.attrs:
            break
        parts += _texts(group, f"{name}{i}")
    return parts or None


def _texts(group: Any, name: str) -> list[str]:
    """Return the texts of an attribute; of any other type none, since the library reads damaged ones at its peril."""
    attribute = group.attrs.get_id(name)
    kind = attribute.get_type()
    if not isinstance(kind, extra("h5py").h5t.TypeStringID) or len(attribute.shape or ()) > 1:
        return []
    size = byte_size(attribute.shape or (), kind.get_size())
    require(size <= max(attribute.get_storage_size(), kind.get_size()), f"the attribute {name!r} is cut off")
    if kind.is_variable_str():
        _check_length(group, name)
    values = np.ravel(group.attrs[name])
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in values]


def _check_length(group: Any, name: str) -> None:
    file = _open_file.get()
    claimed = claimed_length(file, extra("h5py").h5o.get_info(group.id).addr, name)
    require(claimed <= file.seek(0, SEEK_END), f"the attribute {name!r} claims {claimed} bytes, more than there are")


def _text(group: Any, name: str) -> str:
    """Return an attribute that is one text, or ""."""
    return "".join(_texts(group, name)) if name in group.attrs else ""


def _natural(key: Any) -> tuple[str, int, str]:
    """Sort "2" before "10", and "dense_2" before "dense_10": Keras numbers variables and layers."""
    if not isinstance(key, str):
        raise CheckpointError("a group holds a name that is not text")
    start, digits = re.fullmatch(r"(.*?)([0-9]{0,9})", key, re.DOTALL).groups()  # type: ignore[union-attr]
    return start, int(digits or -1), key
