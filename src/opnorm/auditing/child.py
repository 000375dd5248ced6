"""The process that a sandboxed audit runs in: limits first, then the audit, told in lines of JSON (`sandbox.py`)."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from math import prod
from threading import Lock, Thread
from time import process_time
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from opnorm.auditing.audits import opened, report_on
from opnorm.auditing.differences import compare
from opnorm.auditing.measure import reason_of
from opnorm.auditing.settings import Options
from opnorm.bounds.memory import machine_memory
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Weight

try:
    import resource
except ImportError:  # Windows: the clock on the other side remains
    resource = None  # type: ignore[assignment]

_PDEATHSIG = 1  # of prctl(2)
_BYTES_A_SECOND = 20e6  # that any disk reads, and any reader unpacks
_OPENING = 2 * 2**30  # bytes that a table of contents may take
_SLACK = 2 * 2**30 + 2**28 * (os.cpu_count() or 1)  # of address space: each thread's stack and pool reserve far more


def main() -> None:
    """Answer the request on stdin, on what was stdout: libraries may print what they like."""
    _end_with_the_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    Thread(target=_end_with_the_other_side, daemon=True).start()
    tell = _Teller(answers)
    try:
        tell(_answer(request, tell))
    except Exception as error:
        tell(_error(error))
    os._exit(0)  # nothing to tidy up: the other side removes the temporary folder


def _end_with_the_parent() -> None:
    """Have Linux kill this process with its parent: a reader in C++ lets no thread of Python's notice that."""
    with suppress(Exception):  # where there is no such thing, the end of stdin remains
        import ctypes

        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_with_the_other_side() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _answer(request: Mapping[str, Any], tell: "_Teller") -> dict[str, Any]:
    options, patience = Options(**request["options"]), float(request["patience"])
    memory_limit = int(options.memory_limit or machine_memory())
    options.checked()
    _limit("RLIMIT_CORE", 0)
    before = _address_space()
    files = []
    hurry = patience if options.time_limit is None else min(patience, 10 + 10 * options.time_limit)
    for path in request["paths"]:
        with _opening(path, hurry, before + min(_OPENING, memory_limit + _SLACK), tell):
            file, checkpoint = opened(path)
        files.append((file, _Watch(tell, patience).checkpoint(checkpoint)))
    _limit("RLIMIT_AS", before + memory_limit + _SLACK)
    if request["call"] == "diff":
        return {"event": "result", "report": compare(files[0], files[1], options, tell.progress).to_dict()}
    report = report_on(*files[0], options, tell.progress)
    return {"event": "result", "report": report.to_dict(), "spectra": report.spectra}


def _error(error: Exception) -> dict[str, Any]:
    kind = type(error).__name__
    known = isinstance(error, CheckpointError) or type(error) in (ValueError, TypeError)
    return {"event": "error", "type": kind, "message": str(error) if known else reason_of(error)}


class _Teller:
    """Writes one message at a time, from any thread."""

    def __init__(self, file: BinaryIO):
        self.file, self.lock, self.keys = file, Lock(), count()

    def __call__(self, message: Mapping[str, Any]) -> None:
        with self.lock:
            self.file.write(json.dumps(message).encode() + b"\n")
            self.file.flush()

    def progress(self, done: int, total: int) -> None:
        """Say how far the audit is."""
        self({"event": "progress", "done": done, "all": total})

    @contextmanager
    def during(self, what: str, seconds: float) -> Iterator[None]:
        """Say when a reader begins and ends what it may take `seconds` for."""
        key = next(self.keys)
        self({"event": "begin", "key": key, "what": what, "seconds": seconds})
        try:
            yield
        finally:
            self({"event": "end", "key": key})


@contextmanager
def _opening(path: str, patience: float, room: int, tell: _Teller) -> Iterator[None]:
    """Limit time and address space to what a table of contents may take."""
    seconds = patience + (os.path.getsize(path) / _BYTES_A_SECOND if os.path.isfile(path) else 0)
    _limit("RLIMIT_CPU", int(process_time() + seconds) + 1)
    _limit("RLIMIT_AS", room)
    with tell.during("opening it", seconds):
        yield
    _limit("RLIMIT_CPU", None)


def _limit(name: str, value: int | None) -> None:
    """Set a soft limit, as far as the hard one lets; None: as high as it lets."""
    if resource is None:
        return
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    wanted = hard if value is None else value
    within = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(ValueError, OSError):  # macOS does not know every limit
        resource.setrlimit(kind, (within, hard))


def _address_space() -> int:
    """Return the bytes of address space that this process has by now, libraries and threads included."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 2**40  # not Linux: where the limit is kept at all, it would count what is not known here


class _Watch(NamedTuple):
    """Tells what the readers of a checkpoint's tensors are at."""

    tell: _Teller
    patience: float

    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        weights = tuple(self.weight(weight) for weight in checkpoint.weights)
        graph = checkpoint.graph
        if graph is not None:
            nodes = [
                node._replace(weights={role: self.weight(one) for role, one in node.weights.items()})
                for node in graph.nodes
            ]
            graph = graph._replace(nodes=tuple(nodes))
        return checkpoint._replace(weights=weights, graph=graph)

    def weight(self, weight: Weight) -> Weight:
        read: Callable[[], np.ndarray] = weight.read
        seconds = self.patience + 8 * prod(weight.shape) / _BYTES_A_SECOND

        def watched() -> np.ndarray:
            with self.tell.during(f"reading {weight.name!r}", seconds):
                return read()

        return weight._replace(read=watched)
