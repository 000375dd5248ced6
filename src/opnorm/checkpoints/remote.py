"""Files behind URLs, by `fsspec`: what readers ask of a `Path`, in ranges of bytes and never as a whole file."""

import io
import re
from functools import cached_property
from os import fspath
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.request import url2pathname

from opnorm.checkpoints.files import extra, require
from opnorm.checkpoints.ranges import Ranged
from opnorm.checkpoints.records import CheckpointError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a drive
_WEB = ("http", "https")
_AHEAD = 2**16  # bytes that are asked for at least: tables of contents are read in small steps


def is_url(path: str) -> bool:
    """Return whether `path` is a URL."""
    return bool(_URL.match(path))


def shown(path: str) -> str:
    """Return what to call a file: its path as typed, a URL without what signs it."""
    return str(Remote(path)) if is_url(path) else path


def located(path: str | Path) -> Path:
    """Return what readers read: a path as it is, of a `file://` URL its path, of another a `Remote`."""
    text = fspath(path)
    if not is_url(text):
        return Path(path)
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "file":
        return Path(url2pathname(rest[rest.find("/") :]))
    return cast(Path, Remote(text))  # no Path, but all of one that readers of a run of bytes use


def require_whole(path: Path) -> None:
    """Raise CheckpointError unless the file is on this machine."""
    remote = isinstance(path, Remote)
    require(not remote, "files of this format are not read in parts, and so not from a URL: download it first")


class _Size(NamedTuple):
    """What `Path.stat` tells of a file, as far as it is known here."""

    st_size: int


class Remote:
    """A file behind a URL, with those methods of a `Path` that readers of one run of bytes use.

    Args:
        url: `s3://`, `gs://`, `https://`, `memory://`: what fsspec and the packages beside it know.
    """

    def __init__(self, url: str):
        self._url = url
        self._scheme = url.partition("://")[0].lower()
        # What follows a question mark signs or selects one file of the web, and none of its neighbours.
        self._plain = url.partition("#")[0].partition("?")[0] if self._scheme in _WEB else url
        self.name = self._plain.rpartition("/")[2]
        self.stem, self.suffix = Path(self.name).stem, Path(self.name).suffix

    def __str__(self) -> str:
        return self._plain

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self._plain.rstrip('/')}/{name}")

    @property
    def parent(self) -> "Remote":
        """The folder that the file lies in."""
        return Remote(self._plain.rpartition("/")[0])

    def resolve(self) -> "Remote":
        """Return the file: behind a URL no link is seen."""
        return self

    def is_symlink(self) -> bool:
        """Return False, as for `resolve`."""
        return False

    def is_relative_to(self, folder: "Remote") -> bool:
        """Return whether the file lies in a folder."""
        return str(self).startswith(f"{folder}/")

    def exists(self) -> bool:
        """Return whether there is such a file; CheckpointError where nobody answers."""
        try:
            return bool(self._info)
        except FileNotFoundError:
            return False

    def is_file(self) -> bool:
        """Return whether there is such a file, and no folder."""
        return self.exists() and self._info.get("type") == "file"

    def is_dir(self) -> bool:
        """Return False: of a folder behind a URL, name a file."""
        return False

    def stat(self) -> _Size:
        """Return the size of the file."""
        size = self._info.get("size")
        require(type(size) is int, "its server does not say how large it is: download it first")
        return _Size(cast(int, size))

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the file, open for reading; every part that is read is asked for by itself."""
        require(mode == "rb", f"it is read as bytes, not as {mode!r}")
        return io.BufferedReader(_Parts(self), _AHEAD)

    def read_bytes(self) -> bytes:
        """Return the whole file, which should be a small one."""
        return self.part(0, self.stat().st_size)

    def part(self, begin: int, end: int) -> bytes:
        """Return the bytes of a range, all of them."""
        files, place = self._place
        try:
            if self._scheme in _WEB:  # `cat_file` would take the whole file of a server that knows no ranges
                with files.open(place, "rb", size=self.stat().st_size, cache_type="none") as file:
                    file.seek(begin)
                    data = file.read(end - begin)
            else:
                data = files.cat_file(place, begin, end)
        except CheckpointError:
            raise
        except Exception as error:  # each kind of storage has its own
            raise CheckpointError(f"bytes {begin} to {end} could not be had ({_told(error)})") from error
        require(len(data) == end - begin, f"its server sent {len(data)} bytes for {begin} to {end}")
        return bytes(data)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        try:
            files, place = extra("fsspec.core", "remote").url_to_fs(self._url)
        except (ImportError, ValueError) as error:  # a scheme that is not known, or needs a package
            raise CheckpointError(_told(error)) from error
        return files, place

    @cached_property
    def _info(self) -> dict[str, Any]:
        files, place = self._place
        try:
            return dict(files.info(place))
        except FileNotFoundError as error:
            cause = error.__cause__  # of any failure on the web
            if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", 0) == 404:
                raise
            raise CheckpointError(f"it could not be reached ({_told(cause)})") from error
        except Exception as error:  # as above
            raise CheckpointError(f"it could not be reached ({_told(error)})") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _Parts(Ranged):
    """A remote file that is read where it is asked for."""

    def __init__(self, remote: Remote):
        super().__init__(remote.stat().st_size)
        self._remote = remote

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = self.room(view)
        if count:
            view[:count] = self._remote.part(self.position, self.position + count)
        self.position += count
        return count
