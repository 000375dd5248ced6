"""How much memory a proof may take, so that a wider bracket, just as true, is given where it would need more."""

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_SHARE = 0.5  # of what is free: the rest is for the numbers themselves, and for everybody else
_UNKNOWN = 4 * 2**30  # a machine that does not say what it has
_CONTAINERS = "memory.max", "memory/memory.limit_in_bytes"  # control groups, version 2 and 1


class Memory:
    """Bytes that a bound may take at one time beside the numbers it is given.

    Args:
        limit: Bytes; None: half of what the machine had free when it was first asked.
    """

    def __init__(self, limit: float | None = None):
        self.limit = machine_memory() if limit is None else limit
        self.refused = False

    def holds(self, size: float) -> bool:
        """Return whether `size` bytes are within the limit; `refused` remembers that some were not."""
        self.refused = self.refused or size > self.limit
        return size <= self.limit

    def require(self, size: float, what: str) -> None:
        """Raise MemoryError unless `size` bytes are within the limit.

        Args:
            size: Bytes.
            what: What takes them, for the error.
        """
        if not self.holds(size):
            raise MemoryError(f"{what} takes {size:.3g} bytes, more than the limit of {self.limit:.3g}")


@lru_cache(maxsize=1)
def machine_memory() -> float:
    """Return half of the memory that is free on this machine or in this container, in bytes."""
    return _SHARE * min((size for size in (_available(), _container(), _physical()) if size), default=_UNKNOWN)


def _available() -> int:
    """Return what Linux says is free, caches included; 0 elsewhere."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_bytes().splitlines()  # text would import a codec, and a fork then never end
        found = (1024 * int(line.split()[1]) for line in lines if line.startswith(b"MemAvailable:"))
        return next(found, 0)
    return 0


def _container() -> int:
    for name in _CONTAINERS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            return int((Path("/sys/fs/cgroup") / name).read_bytes())
    return 0


def _physical() -> int:
    with suppress(AttributeError, OSError, ValueError):  # Windows
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
