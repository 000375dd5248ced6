"""Runs an example, as a user does; of several processes the second kills itself after a step, once: a host that dies.

Its environment says which step, `DIES_AFTER`, and `torchrun` there says which of them it is.
"""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
name, folder = sys.argv[1:3]
example, died = import_module(name), Path(folder) / "died"
report = example.report


def reported(step, *rest):
    report(step, *rest)
    due = str(step) == os.environ.get("DIES_AFTER") and os.environ.get("RANK", "1") == "1"
    if due and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


example.report = reported
sys.argv = [name, *sys.argv[2:]]
typer.run(example.main)
