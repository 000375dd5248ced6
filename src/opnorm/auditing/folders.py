"""Temporary folders that do not outlast a process for long, even one that is killed. Imports no NumPy."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

_PREFIX = "opnorm-"
_HELD = ".held"  # a file that is locked as long as the folder's process lives


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Make a folder, which is gone at the end; those that killed processes of this user left are removed too."""
    if fcntl is not None:
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                _remove_if_left(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, open(f"{folder}/{_HELD}.new", "wb") as held:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: then nobody finds the folder left either
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(held.name, f"{folder}/{_HELD}")  # which nobody sees before it is locked
        yield folder


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of this user whose lock nobody holds; raise OSError where somebody does, or there is none."""
    if folder.lstat().st_uid != os.getuid():
        return
    lock = os.open(folder / _HELD, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
