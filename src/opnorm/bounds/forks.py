"""Processes that fork while another thread multiplies: the fork waits until no thread is inside BLAS.

OpenBLAS ends its threads before a fork, which hangs when one of them is given work meanwhile, and a child inherits for
ever the locks that other threads held. So work with BLAS is done in short sections, and a fork waits for their end.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident

_PATIENCE = 30.0  # seconds after which a fork waits no more: a matrix of tens of thousands of rows


class _Gate:
    """Which threads are inside a section, and whether a fork waits."""

    def __init__(self) -> None:
        self.condition = Condition()
        self.inside: Counter[int] = Counter()
        self.closed = False

    def enter(self) -> None:
        with self.condition:
            self.condition.wait_for(lambda: not self.closed or get_ident() in self.inside)
            self.inside[get_ident()] += 1

    def leave(self) -> None:
        with self.condition:
            self.inside -= Counter([get_ident()])
            self.condition.notify_all()

    def close(self) -> None:
        """Wait until no other thread is inside, and let none in until `open`."""
        self.condition.acquire()
        self.closed = True
        self.condition.wait_for(lambda: not self.inside.keys() - {get_ident()}, _PATIENCE)

    def open(self) -> None:
        self.closed = False
        self.condition.notify_all()
        self.condition.release()


_gate = _Gate()


@contextmanager
def blas_section() -> Iterator[None]:
    """Let no fork happen inside; what is done there waits for no other thread."""
    gate = _gate
    gate.enter()
    try:
        yield
    finally:
        gate.leave()


def _before() -> None:
    _gate.close()


def _in_parent() -> None:
    _gate.open()


def _in_child() -> None:
    global _gate  # the locks of threads that the child does not have
    own = _gate.inside[get_ident()]
    _gate = _Gate()
    _gate.inside += Counter({get_ident(): own})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
