"""A moment after which proofs stop, so that a wider bracket, just as true, is given instead."""

from functools import lru_cache
from math import inf
from time import monotonic, perf_counter
from typing import NamedTuple

import numpy as np

_MEASURED = 3  # products


class OutOfTimeError(Exception):
    """The deadline has passed; whoever catches it gives the wider bracket."""


class Deadline(NamedTuple):
    """A moment on the clock of `time.monotonic`; the default never comes."""

    at: float = inf

    @classmethod
    def after(cls, seconds: float | None) -> "Deadline":
        """Return the deadline that many seconds from now; None: never."""
        return cls() if seconds is None else cls(monotonic() + seconds)

    @property
    def passed(self) -> bool:
        """Whether the moment is over."""
        return self.at < inf and monotonic() > self.at

    @property
    def left(self) -> float:
        """The seconds until then, never negative."""
        return max(0.0, self.at - monotonic())

    def check(self) -> None:
        """Raise OutOfTimeError when the moment is over."""
        if self.passed:
            raise OutOfTimeError

    def share(self, count: int) -> "Deadline":
        """Return the deadline of one of `count` tasks that share the time until this one."""
        return self if self.at == inf else Deadline(monotonic() + self.left / count)

    def affords(self, multiplications: float) -> bool:
        """Return whether matrix products of that many multiplications should end in time; one cannot be stopped."""
        return self.at == inf or monotonic() + multiplications / _speed() <= self.at


NEVER = Deadline()


@lru_cache(maxsize=1)
def _speed() -> float:
    """Return the multiplications a second of a matrix product, measured once in a few milliseconds."""
    matrix = np.ones((384, 384))
    matrix @ matrix  # the first product wakes the threads
    times = []
    for _ in range(_MEASURED):  # the best: others may have had the processor meanwhile
        begin = perf_counter()
        matrix @ matrix
        times.append(perf_counter() - begin)
    return float(matrix.size * len(matrix) / min(times))
