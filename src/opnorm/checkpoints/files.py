"""The border to files that nobody vouches for: every failure is one CheckpointError, every size is checked first."""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, TypeVar

from opnorm.checkpoints.records import CheckpointError

T = TypeVar("T")

JSON_BYTES = 64 * 2**20  # a table of contents: the largest real ones are a few MiB
_FREE = 256 * 2**20  # what a tensor may take in memory whatever the file stores of it: all zeros compress to nothing
_RATIO = 100  # weights hardly compress; deflate's best is 1032
_TENSORS = 2**16  # of a file: each takes 3 KiB and 50 us before it is read; shards of 2026 have a few thousand
_CANNOT = "Cannot read "
DEPTH = 100  # of groups in groups: real models stay under 20


@contextmanager
def border(path: Path) -> Iterator[None]:
    """Let nothing but a CheckpointError of one line, which names the file, escape."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(_one_line(path, error)) from error
    except RecursionError as error:
        raise CheckpointError(_one_line(path, "it is nested too deeply")) from error
    except MemoryError as error:
        raise CheckpointError(_one_line(path, "a tensor of it does not fit into memory")) from error
    except Exception as error:  # libraries raise anything at a broken file
        raise CheckpointError(_one_line(path, f"it is damaged ({type(error).__name__}: {error})")) from error


def _one_line(path: Path, error: Any) -> str:
    text = " ".join(str(error).split())
    if text.startswith(_CANNOT):  # of this file, or of one in this folder
        return text
    return f"{_CANNOT}{str(path)!r}: {text if len(text) < 400 else text[:400] + ' ...'}"


def guarded(path: Path, read: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """Return a reader that fails with CheckpointError alone."""
    return partial(_read, path, read, arguments)


def _read(path: Path, read: Callable[..., T], arguments: Sequence[Any]) -> T:
    with border(path):
        return read(*arguments)


def require(condition: bool, message: str) -> None:
    """Raise CheckpointError unless `condition` holds."""
    if not condition:
        raise CheckpointError(message)


def extra(module: str, group: str = "audit") -> ModuleType:
    """Return the imported module; the error for a missing one says which extra of opnorm's to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        # Of an installed opnorm pip adds the extra's packages without looking for opnorm anywhere.
        raise CheckpointError(
            f"reading it needs {package}: pip install 'opnorm[{group}]' adds it to the opnorm installed here"
        ) from error


def parse_json(data: bytes | str, what: str) -> Any:
    """Return the JSON value of `data`, as large as a table of contents at most, and without a key that stands twice."""
    require(len(data) <= JSON_BYTES, f"{what} is larger than {JSON_BYTES >> 20} MiB")
    try:
        return json.loads(data, object_pairs_hook=partial(_table, what))
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON ({error})") from error


def _table(what: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    require(len(table) == len(pairs), f"{what} has a key twice")
    return table


def check_count(tensors: int) -> None:
    """Raise when a file has more tensors than any real one: each takes memory before it is read."""
    require(tensors <= _TENSORS, f"it has more than {_TENSORS} tensors")


def check_growth(name: str, declared: int, stored: int) -> None:
    """Raise when something stored in a few bytes says that it unpacks to very many."""
    bomb = declared > max(_FREE, _RATIO * stored)
    require(not bomb, f"{name!r} says that it takes {declared} bytes and stores {stored}")


def byte_size(shape: Sequence[Any], itemsize: int) -> int:
    """Return the bytes of a tensor; its shape must hold integers that are not negative."""
    proper = len(shape) <= 32 and all(isinstance(n, int) and 0 <= n < 2**63 for n in shape)
    require(proper, f"a tensor has the shape {tuple(shape[:8])}")
    return int(prod(shape) * itemsize)


def inside(folder: Path, name: str) -> Path:
    """Return the file of that name in `folder`, or raise when it leads out of it."""
    require(is_plain(name), f"it names the file {name!r}, which lies outside its folder")
    found, home = (folder / name).resolve(), folder.resolve()
    within = found.is_relative_to(home) or any(map(found.is_relative_to, _cached(home)))
    require(within, f"it names the file {name!r}, which lies outside its folder")
    require(found.is_file(), f"it names the file {name!r}, which is missing")
    return found


def _cached(folder: Path) -> list[Path]:
    """Return where the links of a folder in Hugging Face's cache lead: `snapshots/<commit>/...` to `blobs`."""
    return [up.parent.parent / "blobs" for up in (folder, *folder.parents) if up.parent.name == "snapshots"]


def is_plain(name: str) -> bool:
    """Return whether a relative path leads downwards only, on every system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    rooted = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    return bool(parts) and not rooted and ".." not in parts and "\0" not in name
