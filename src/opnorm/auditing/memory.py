"""How much memory an audit may take, unless it is told: what the machine has to give."""

import os
from pathlib import Path

_SHARE = 0.8  # of what is free: the rest is for the program itself and for its neighbours
_CONTAINERS = ("memory.max", "memory/memory.limit_in_bytes")  # cgroups, version 2 and 1
_UNKNOWN = 4 * 2**30  # a machine that does not say what it has


def machine_memory() -> int:
    """Return the bytes that an audit may take on this machine."""
    found = [size for size in (_available(), _container(), _physical()) if size]
    return int(_SHARE * min(found, default=_UNKNOWN))


def _available() -> int:
    """Return what Linux says is free, caches included; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _container() -> int:
    """Return the limit of the container that this process lives in; 0 without one."""
    for name in _CONTAINERS:
        try:
            return int((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 0


def _physical() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return 0
