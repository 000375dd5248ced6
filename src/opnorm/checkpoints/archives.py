"""Zip archives: members of checked names and sizes, and a member as a file that can be searched without a copy."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipExtFile, ZipFile, ZipInfo

from opnorm.checkpoints.files import check_growth, is_plain, require
from opnorm.checkpoints.ranges import Ranged
from opnorm.checkpoints.records import CheckpointError

ARCHIVE = b"PK\3\4"  # how an archive begins
_LOCAL_HEADER = 30  # bytes before the name and the extra field of a member


class Part(NamedTuple):
    """A part of a file that is an archive of its own."""

    path: Path
    start: int  # in bytes
    size: int


Archive = Path | Part


def members(path: Archive) -> dict[str, ZipInfo]:
    """Return the members of an archive by name; one that could trick an unpacker spoils the whole archive."""
    try:
        with _window(path, 0, _size(path)) as file, ZipFile(file) as archive:
            found = archive.infolist()
    except BadZipFile as error:
        raise CheckpointError(f"it is no intact zip archive ({error})") from error
    names = [info.filename for info in found]
    require(len(set(names)) == len(names), "two members of the archive share a name")
    for info in found:
        require(is_plain(info.filename), f"the archive names a member {info.filename!r}, which leads out of it")
        require(not info.flag_bits & 1, f"the member {info.filename!r} is encrypted")
        known = info.compress_type in (ZIP_STORED, ZIP_DEFLATED)
        require(known, f"the member {info.filename!r} is compressed by a method that is not read")
    return {info.filename: info for info in found}


def read_member(path: Archive, info: ZipInfo, limit: int) -> bytes:
    """Return the bytes of a member of at most `limit`; what it unpacks to beyond its declared size is not unpacked."""
    require(info.file_size <= limit, f"the member {info.filename!r} is larger than {limit >> 20} MiB")
    with open_member(path, info) as member:
        data = member.read(info.file_size + 1)  # without a number everything is unpacked before it is cut
    require(len(data) == info.file_size, f"the member {info.filename!r} is cut off")
    return data


def open_member(path: Archive, info: ZipInfo) -> BinaryIO:
    """Return a member as a file that is read from its start, without reading the archive's directory again."""
    window: Any = _window(path, _data_offset(path, info), info.compress_size)
    return ZipExtFile(window, "r", info, None, True)  # type: ignore[return-value]


class Window(Ranged):
    """A part of a file, read-only, as a file of its own.

    Args:
        path: The file.
        start: Where the part begins, in bytes.
        size: Its length.
    """

    def __init__(self, path: Path, start: int, size: int):
        super().__init__(size)
        self._file: BinaryIO = path.open("rb")
        self._start = start

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on, up to the part's end."""
        view = memoryview(buffer).cast("B")
        self._file.seek(self._start + self.position)
        count = int(self._file.readinto(view[: self.room(view)]))  # type: ignore[attr-defined]
        self.position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _size(path: Archive) -> int:
    return path.size if isinstance(path, Part) else path.stat().st_size


def _window(path: Archive, start: int, size: int) -> BinaryIO:
    """Return a part of an archive as a file."""
    whole = path if isinstance(path, Part) else Part(path, 0, size)
    return Window(whole.path, whole.start + start, size)  # type: ignore[return-value]


def searchable(path: Archive, info: ZipInfo) -> Callable[[], BinaryIO]:
    """Return an opener of the member as a file with `seek`: a window on the archive where it is stored as it is."""
    if info.compress_type != ZIP_STORED:
        return _Unpacked(path, info).open
    start = _data_offset(path, info)
    require(info.compress_size == info.file_size, f"the sizes of the member {info.filename!r} do not agree")
    require(start + info.file_size <= _size(path), f"the member {info.filename!r} is cut off")
    return lambda: _window(path, start, info.file_size)


def _data_offset(path: Archive, info: ZipInfo) -> int:
    with _window(path, 0, _size(path)) as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    require(len(header) == _LOCAL_HEADER and header[:4] == ARCHIVE, f"the member {info.filename!r} has no header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + _LOCAL_HEADER + lengths


class _Unpacked:
    """A compressed member, unpacked into a temporary file that goes away with this object."""

    def __init__(self, path: Archive, info: ZipInfo):
        check_growth(info.filename, info.file_size, info.compress_size)
        handle, self.name = tempfile.mkstemp(prefix="opnorm-")
        weakref.finalize(self, os.unlink, self.name)
        with open_member(path, info) as member, os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(member, file)

    def open(self) -> BinaryIO:
        """Return the unpacked file."""
        return open(self.name, "rb")
