"""Texts in the attributes of an open HDF5 file, each checked before the library takes memory for it."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from os import SEEK_END
from typing import Any, BinaryIO

import numpy as np

from opnorm.checkpoints.files import byte_size, extra, require
from opnorm.checkpoints.hdf5_texts import claimed_length

Source = Callable[[], BinaryIO]

# The file that `opened` has open: h5py does not hand it back.
_open_file: ContextVar[BinaryIO] = ContextVar("open_file")


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """Open the file for reading, and close it."""
    h5py = extra("h5py")
    with source() as raw, h5py.File(_Whole(raw), "r") as file:
        token = _open_file.set(raw)
        try:
            yield file
        finally:
            _open_file.reset(token)


class _Whole(io.RawIOBase):
    """A file of which a part is read whole or not at all: h5py does not look how many bytes came, and takes zeros."""

    def __init__(self, file: BinaryIO):
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = 0
        while count < len(view):
            more = self._file.readinto(view[count:])  # type: ignore[attr-defined]
            if not more:
                raise OSError("the file became shorter, or ends before its tables say")
            count += more
        return count


def raw_file() -> BinaryIO:
    """Return the file that `opened` has open, as bytes."""
    return _open_file.get()


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
    file = raw_file()
    claimed = claimed_length(file, extra("h5py").h5o.get_info(group.id).addr, name)
    require(claimed <= file.seek(0, SEEK_END), f"the attribute {name!r} claims {claimed} bytes, more than there are")


def text_attribute(group: Any, name: str) -> str:
    """Return an attribute that is one text, or ""."""
    return "".join(_texts(group, name)) if name in group.attrs else ""
