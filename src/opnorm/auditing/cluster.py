"""An audit by many machines: each tensor is a task of `dask.distributed`, and every worker opens the file itself.

A geometry is a function of the reader that made it, and no other process can be sent it: a task is the path and
the tensor's place in the file. A worker that is killed takes nothing along: the scheduler has its tensors measured
anew.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib.metadata import version
from logging import CRITICAL
from math import prod
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from opnorm.auditing.measure import measure, reason_of, unmeasured
from opnorm.auditing.report import Row
from opnorm.auditing.settings import Settings
from opnorm.bounds.memory import machine_memory
from opnorm.bounds.threads import one_blas_thread
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Weight
from opnorm.checkpoints.remote import is_url
from opnorm.checks import Array

LOCAL = "local"  # the machine's processors, one worker each
RESOURCE = "memory"  # of workers, in bytes: `dask worker ADDRESS --resources "memory=64e9"`
_PATIENCE = 10.0  # seconds for a scheduler to answer, and for its first worker
_COPIES = 24  # bytes a number: its values, the Gram matrix and the factorization, each in float64
_BASE = 2**28  # bytes of a small tensor's task
_OPEN = 2  # tables of contents that a worker keeps

Measured = tuple[Row, Array]


class Place(NamedTuple):
    """A tensor, for another machine."""

    path: str
    audit: str  # one audit's mark: a file that was replaced since another is opened anew
    position: int
    name: str
    shape: tuple[int, ...]


@contextmanager
def measurer_on(
    address: str, path: str, checkpoint: Checkpoint, memory_limit: float | None = None
) -> Iterator["Measurer"]:
    """Yield what measures the tensors of a checkpoint on a cluster, in place of threads of this process.

    Args:
        address: Of a scheduler; "local": a cluster of this machine's processors, for this audit.
        path: The file, which every worker can open: on a file system that they share, or a URL.
        checkpoint: The same file, opened here.
        memory_limit: Bytes for a tensor; None: what its worker declares or has.

    Raises:
        ValueError: When dask.distributed is not installed.
        ConnectionError: When no scheduler answers, or it has no worker, or one that lacks this version of opnorm.
        CheckpointError: When a worker cannot open the file, or sees another one there.
    """
    distributed = _distributed()
    with ExitStack() as stack:
        if address == LOCAL:
            address = stack.enter_context(_local(distributed)).scheduler_address
        client = stack.enter_context(_client(distributed, address))
        _check_workers(client, address)
        yield Measurer(client, _places(client, path, checkpoint), memory_limit)


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        # Of an installed opnorm pip adds the extra's packages without looking for opnorm anywhere.
        remedy = "pip install 'opnorm[cluster]' adds it to the opnorm installed here"
        raise ValueError(f"Argument `cluster` needs dask.distributed: {remedy}") from error
    return distributed


def _local(distributed: Any) -> Any:
    """Return a cluster of this machine: a process for each of its processors, which share its memory."""
    workers = os.cpu_count() or 1
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=0,  # a tensor takes what it takes: dask would pause or kill a worker that is within its share
        silence_logs=CRITICAL,  # an end by Ctrl-C would be told by each process
        resources={RESOURCE: machine_memory() / workers},
        dashboard_address="127.0.0.1:0",  # any free port; None would mean one that may be taken
    )


def _client(distributed: Any, address: str) -> Any:
    try:
        distributed.comm.resolve_address(address)  # a client of an address that makes no sense is never closed
        return distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        text = f"no scheduler of dask.distributed answers at {address!r} ({reason_of(error)})"
        raise ConnectionError(text) from error


def _check_workers(client: Any, address: str) -> None:
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        raise ConnectionError(f"the scheduler at {address!r} has no workers") from error
    own = version("opnorm")
    for worker, found in client.run(version, "opnorm", on_error="return").items():
        if isinstance(found, Exception):
            raise ConnectionError(f"the worker {worker} has no opnorm ({reason_of(found)})")
        if found != own:
            raise ConnectionError(f"the worker {worker} has opnorm {found}, and this is {own}")


def _places(client: Any, path: str, checkpoint: Checkpoint) -> dict[str, Place]:
    """Return where workers find each tensor; all workers that are there have opened the file then."""
    path = path if is_url(path) else os.path.abspath(path)
    audit, count = uuid4().hex, len(checkpoint.weights)
    for worker, found in client.run(_count, path, audit, on_error="return").items():
        if isinstance(found, Exception):
            raise CheckpointError(f"the worker {worker} cannot open the file: {reason_of(found)}")
        if found != count:
            raise CheckpointError(f"the worker {worker} sees {found} tensors in {path!r}, and not {count}")
    return {one.name: Place(path, audit, i, one.name, one.shape) for i, one in enumerate(checkpoint.weights)}


class Measurer(NamedTuple):
    """Measures tensors on the workers of a client."""

    client: Any
    places: dict[str, Place]
    memory_limit: float | None = None

    def __call__(self, weights: Sequence[Weight], settings: Settings, done: Callable[[int], object]) -> list[Measured]:
        """Return the row of each weight, in their order; large ones begin first, so that none is left for the end."""
        from distributed import as_completed

        room = self._room()
        futures = {self._submit(weights[i], settings, room): i for i in _largest_first(weights)}
        found: dict[int, Measured] = {}
        for count, future in enumerate(as_completed(futures, loop=self.client.loop), 1):
            index = futures[future]
            found[index] = _result(future, weights[index])
            future.release()
            done(count)
        return [found[i] for i in range(len(weights))]

    def _submit(self, weight: Weight, settings: Settings, room: float) -> Any:
        needed = min(_BASE + _COPIES * prod(weight.shape), room)
        resources = {RESOURCE: needed} if room else None
        arguments = self.places[weight.name], settings, self.memory_limit
        return self.client.submit(_measure_there, *arguments, resources=resources, pure=False)

    def _room(self) -> float:
        """Return the memory that the roomiest worker declares; 0 where none declares any."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return max((float(worker["resources"].get(RESOURCE, 0)) for worker in workers), default=0.0)


def _largest_first(weights: Sequence[Weight]) -> list[int]:
    return sorted(range(len(weights)), key=lambda i: -prod(weights[i].shape))


def _result(future: Any, weight: Weight) -> Measured:
    from distributed.scheduler import KilledWorker

    try:
        row, spectrum = future.result()
    except KilledWorker as error:
        ended = f"{error.allowed_failures + 1} workers ended while they measured it, for want of memory perhaps"
        return unmeasured(weight, ended), np.zeros(0)
    return row, spectrum


def _count(path: str, audit: str) -> int:
    return len(_opened(path, audit).weights)


@lru_cache(maxsize=_OPEN)
def _opened(path: str, audit: str) -> Checkpoint:
    """Return the table of contents of a file, once for an audit and a worker."""
    return open_checkpoint(path)


def _measure_there(place: Place, settings: Settings, memory_limit: float | None) -> Measured:
    """Return the row of a tensor, on a worker."""
    weights = _opened(place.path, place.audit).weights
    same = place.position < len(weights) and weights[place.position][:2] == (place.name, place.shape)
    if not same:
        raise CheckpointError(f"a worker sees another file at {place.path!r}: it lacks {place.name!r}")
    with one_blas_thread():
        limit = _own_memory() if memory_limit is None else memory_limit
        return measure(weights[place.position], settings._replace(memory_limit=limit))


def _own_memory() -> float:
    """Return the bytes that this worker declares, or else those that each of its threads may take."""
    from distributed import get_worker

    state = get_worker().state
    return float(state.total_resources.get(RESOURCE, machine_memory() / state.nthreads))
