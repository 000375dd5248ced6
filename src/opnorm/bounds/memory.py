"""How much memory a proof may take, so that a wider bracket, just as true, is given where it would need more."""

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_SHARE = 0.5  # of the machine's memory: the rest is the tensors' and everybody else's
_UNKNOWN = 2**32  # where the machine does not tell
_GROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may take on Linux


class Memory:
    """Bytes that a bound may take at one time beside the numbers it is given.

    Args:
        limit: Bytes; None: half of the machine's memory.
    """

    def __init__(self, limit: int | None = None):
        self.limit = of_machine() if limit is None else limit
        self.refused = False

    def holds(self, size: float) -> bool:
        """Return whether `size` bytes are within the limit; `refused` remembers where they were not."""
        self.refused = self.refused or size > self.limit
        return size <= self.limit


@lru_cache(maxsize=1)
def of_machine() -> int:
    """Return half of the machine's memory, or of the container's, in bytes."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no POSIX system
        found = _UNKNOWN
    with suppress(OSError, ValueError):  # no container, or "max"
        found = min(found, int(_GROUP.read_text()))
    return int(_SHARE * found)
