"""Untrusted files in a process of their own: what crashes or hangs there is one line here. Imports no NumPy.

The child (`child.py`) opens, measures, and says in lines of JSON what it is at; this side keeps the clock of the
readers, which rest on C++ where nothing else could stop them, and believes nothing that is no JSON.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, NoReturn

from opnorm.auditing.comparison import DiffReport
from opnorm.auditing.folders import temporary_folder
from opnorm.auditing.report import Report

Progress = Callable[[int, int], None]
Message = Mapping[str, Any]

_PROGRAM = (  # with this process's path of modules, and not the folder that it happens to stand in
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from opnorm.auditing.child import main; main()"
)
_TICK = 0.25  # seconds between looks at the clock
_PYTHON = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt", ".jit", ".npz")  # endings of other archives
_NATIVE = (".h5", ".hdf5", ".keras", ".weights.json", ".onnx")  # endings of what libhdf5 and onnx read
_STORES = ("manifest.ocdbt", ".zarray", "zarr.json")  # in folders that TensorStore reads, at most three levels down
PATIENCE = 60.0  # seconds for a reader, and one more for every 20 MB


def is_native(path: str) -> bool:
    """Return whether code in C++ reads a file, or one in a folder, which no exception stops."""
    if os.path.isdir(path):
        return any(name.lower().endswith(_NATIVE) for name in os.listdir(path)) or _is_store(Path(path))
    return path.lower().endswith(_NATIVE) or (not path.lower().endswith(_PYTHON) and _starts_native(path))


def _starts_native(path: str) -> bool:
    """Return whether a file whose name tells nothing is HDF5, or an archive, in which HDF5 may be."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4) in (b"\x89HDF", b"PK\3\4")
    return False


def _is_store(folder: Path) -> bool:
    levels = ("", "*/", "*/*/", "*/*/*/")
    return any(any(folder.glob(f"{above}{name}")) for name in _STORES for above in levels)


def audit_in_child(
    path: str, options: Mapping[str, Any], progress: Progress | None = None, patience: float = PATIENCE
) -> Report:
    """Return what `audit` does, from a child process.

    Args:
        path: A file.
        options: Arguments of `audit` that are neither a model nor a function.
        progress: As for `audit`.
        patience: Seconds that opening the file, or reading a tensor, may take beside the time for its bytes.

    Raises:
        CheckpointError: When the file cannot be read, or its reader crashes, hangs or takes more than the memory limit.
        ValueError: When an argument does not make sense.
    """
    result = _ask({"call": "audit", "paths": [path], "options": dict(options), "patience": patience}, progress)
    return Report.from_dict(result["report"], result["spectra"])


def diff_in_child(
    base: str, tuned: str, options: Mapping[str, Any], progress: Progress | None = None, patience: float = PATIENCE
) -> DiffReport:
    """Return what `diff` does, from a child process; arguments and errors as for `audit_in_child`."""
    request = {"call": "diff", "paths": [base, tuned], "options": dict(options), "patience": patience}
    return DiffReport.from_dict(_ask(request, progress)["report"])


def _ask(request: Message, progress: Progress | None) -> Message:
    path = " and ".join(map(repr, request["paths"]))
    with _child(request) as (child, lines):
        running: dict[int, tuple[float, str]] = {}  # what its readers are at: until when, and what
        while True:
            try:
                line = lines.get(timeout=_TICK)
            except Empty:
                line = b""
            if line is None:
                _died(path, child.wait(), running)
            message = _message(line)
            if message.get("event") == "result":
                return message
            if message.get("event") == "error":
                _raise(message)
            _follow(message, running, progress)
            late = [what for until, what in running.values() if monotonic() > until]
            if late:
                _refuse(path, f"{late[0]} took too long; it was stopped")


@contextmanager
def _child(request: Message) -> Iterator[tuple["subprocess.Popen[bytes]", "SimpleQueue[bytes | None]"]]:
    """Start a child with a folder for its temporary files, and hand out its lines; all is gone at the end."""
    with temporary_folder() as folder:
        arguments = [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)]
        environment = {**os.environ, "TMPDIR": folder, "TEMP": folder, "TMP": folder}
        child = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        lines: SimpleQueue[bytes | None] = SimpleQueue()
        copying = Thread(target=_copy, args=(child.stdout, lines), daemon=True)
        copying.start()
        try:
            with suppress(OSError):  # it may have ended already, which its status tells
                _write(child.stdin, request)
            yield child, lines
        finally:
            child.kill()
            child.wait()
            copying.join(timeout=5)
            with suppress(OSError):
                child.stdin.close()  # type: ignore[union-attr]


def _write(stdin: Any, request: Message) -> None:
    """Send the request; the pipe stays open, for its end tells the child that nobody waits any more."""
    stdin.write(json.dumps(request, default=_plain).encode() + b"\n")
    stdin.flush()


def _plain(number: Any) -> Any:
    return number.item()  # of NumPy's, which are numbers as well


def _copy(stdout: Any, lines: "SimpleQueue[bytes | None]") -> None:
    """Put the child's lines into the queue, and None after the last."""
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)


def _message(line: bytes) -> Message:
    try:
        message = json.loads(line) if line else {}
    except ValueError:
        message = {}
    return message if isinstance(message, dict) else {}


def _follow(message: Message, running: dict[int, tuple[float, str]], progress: Progress | None) -> None:
    """Note what the child's readers are at, and hand its progress on."""
    match message:
        case {"event": "begin", "key": int(key), "what": str(what), "seconds": float(seconds)}:
            running[key] = (monotonic() + seconds, what)
        case {"event": "end", "key": int(key)}:
            running.pop(key, None)
        case {"event": "progress", "done": int(done), "all": int(total)} if progress is not None:
            progress(done, total)
        case _:
            pass


def _died(path: str, status: int, running: Mapping[int, tuple[float, str]]) -> NoReturn:
    """Raise what a child without an answer stands for."""
    at = next((what for _, what in running.values()), "measuring it")
    if -status == getattr(signal, "SIGXCPU", None):
        _refuse(path, f"{at} took too long; it was stopped")
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    _refuse(path, f"its reader crashed ({name}) while {at}" if running else f"the process that read it ended ({name})")


def _raise(message: Message) -> NoReturn:
    from opnorm.checkpoints.records import CheckpointError

    kinds: dict[Any, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError, "MemoryError": MemoryError}
    raise kinds.get(message.get("type"), CheckpointError)(str(message.get("message")))


def _refuse(path: str, what: str) -> NoReturn:
    from opnorm.checkpoints.records import CheckpointError  # brings NumPy, which a good file does without here

    raise CheckpointError(f"Cannot read {path}: {what}")
