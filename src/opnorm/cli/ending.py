"""How a run ends that is not left to itself: at Ctrl-C, at SIGTERM, at a full disk behind stdout."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class Stopped(BaseException):
    """A signal asked for the end; no handler of errors takes it for one."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def run(command: Callable[[], Any]) -> None:
    """Run `command`; a signal ends it at once: temporary files are removed, threads are not waited for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        command()
    except Stopped as stopped:
        _leave(128 + stopped.number)
    finally:
        _settle_stdout()


def _stop(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second one needs no answer
    raise Stopped(number)


def _leave(status: int) -> NoReturn:
    """End the process with its temporary files removed: a usual end would wait for threads at work."""
    sys.stderr.write("opnorm: stopped\n")
    sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(status)


def _settle_stdout() -> None:
    """Forget what could not be written to stdout: Python would try once more at its end, and change the status."""
    try:
        if sys.stdout is not None:  # it may have been closed: `opnorm ... >&-`
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
