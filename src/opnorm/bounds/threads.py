"""Who uses the processors: BLAS, whose threads wait for each other on small matrices, or threads of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]


@contextmanager
def one_blas_thread(jobs: int = 1) -> Iterator[int]:
    """Let BLAS work in one thread inside; yield how many threads of one's own each of `jobs` may use instead.

    Together they are as many as BLAS had. Inside another thread's call nothing is set, and that call's number holds:
    the setting belongs to the process.
    """
    state = _state()
    with state.lock:
        outermost = not state.held
        if outermost:
            state.held, state.share = True, max(1, _blas_threads() // jobs)
    if not outermost:
        yield state.share
        return
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield state.share
    finally:
        state.held = False


class _State:
    """Whether somebody has set BLAS to one thread."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.held = False
        self.share = 1  # what is yielded while it is held


@cache
def _state() -> _State:
    return _State()


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def _blas_threads() -> int:
    found = [library["num_threads"] for library in _controller().info() if library["user_api"] == "blas"]
    return min(found, default=1)
