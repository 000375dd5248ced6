"""Who uses the processors: BLAS, whose threads wait for each other on small matrices, or threads of our own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from opnorm.bounds.forks import blas_section


@contextmanager
def one_blas_thread(jobs: int = 1) -> Iterator[int]:
    """Let BLAS work in one thread inside; yield how many threads of one's own each of `jobs` may use instead.

    Together they are as many as BLAS had. Inside another thread's call nothing is set, and that call's number holds:
    the setting belongs to the process.
    """
    with blas_section():
        outermost = _state.enter(jobs)
    if not outermost:
        yield _state.share
        return
    try:
        yield _state.share
    finally:
        with blas_section():
            _state.leave()


class _State:
    """Whether somebody has set BLAS to one thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.limiter: Any = None
        self.share = 1  # what is yielded while it is held

    def enter(self, jobs: int) -> bool:
        """Set BLAS to one thread; return False where that was done already."""
        with self.lock:
            if self.limiter is not None:
                return False
            self.share = max(1, _blas_threads() // jobs)
            self.limiter = _controller().limit(limits=1, user_api="blas")
            return True

    def leave(self) -> None:
        """Give BLAS its threads again."""
        with self.lock:
            if self.limiter is not None:
                self.limiter.restore_original_limits()
                self.limiter = None

    def left_alone(self) -> None:
        """In the child of a fork: whoever had set BLAS is a thread that the child does not have."""
        self.lock = Lock()
        self.leave()


_state = _State()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.left_alone)


def _blas_threads() -> int:
    found = [library["num_threads"] for library in _controller().info() if library["user_api"] == "blas"]
    return min(found, default=1)
