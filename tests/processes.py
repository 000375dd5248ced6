"""Processes that belong together, as the hosts of a training do: when one dies, the others are ended."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import opnorm

EXAMPLES = Path(__file__).parents[1] / "examples"
PATIENCE = 300  # seconds: a training takes 5 to 15 alone, and the machines that run the tests are shared
# `torchrun` has Python write a line and its end apart, so that the next may be that of another process.
LINE = re.compile(r"rank (\d) step (\d+) (norms [\d. ]+ state [0-9a-f]{16})")


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run(folder, commands, environments):
    """Return the exit statuses and outputs of commands that run side by side.

    As soon as one has failed, or `PATIENCE` has passed, all others are killed: nothing waits for the dead.
    """
    files = [Path(folder) / f"output{i}.txt" for i in range(len(commands))]
    started = [_start(*one) for one in zip(commands, environments, files, strict=True)]
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and _all_well(started):
            time.sleep(0.05)
    finally:
        for process in started:
            _end(process)
    return [process.returncode for process in started], [file.read_text() for file in files]


def dying(step):
    """Return the environment in which the second process kills itself after `step`, once; None: it never does."""
    environment = {**os.environ, "PYTHONPATH": str(Path(opnorm.__file__).parents[1])}
    return environment if step is None else {**environment, "DIES_AFTER": str(step)}


def example(name):
    """Return the command that runs an example, in which `dying` has its effect."""
    return [sys.executable, str(Path(__file__).with_name("killed.py")), name]


def random_step(steps, every):
    """Return a step between two checkpoints, after the first one."""
    return random.choice([step for step in range(every + 1, steps) if step % every])


def told(outputs):
    """Return what was printed of each step, by step: a set, of one if all processes and both runs agree."""
    found = {}
    for rank, step, what in LINE.findall("\n".join(outputs)):
        found.setdefault(int(step), {}).setdefault(what, []).append(int(rank))
    return found


def assert_as_if_nothing_had_died(outputs, died, steps, every):
    """Assert that each step left the same kernels and vectors on each process, before the death and after it.

    Steps since the checkpoint are made twice, so that they say whether the vectors came from it: found anew, they would
    have other digits.
    """
    found = told(outputs)
    assert sorted(found) == list(range(1, steps + 1))
    last = died - died % every
    for step, kinds in found.items():
        assert len(kinds) == 1, (died, step, kinds)
        ((what, ranks),) = kinds.items()
        twice = last < step <= died
        assert set(ranks) == {0, 1}
        assert ranks.count(1) == (2 if twice else 1), (died, step)  # lost are the steps since the checkpoint alone
        for norm in map(float, what.split(" state ")[0].split()[1:]):
            assert abs(norm - 1) < 1e-3, (died, step, what)


def assert_a_death_is_made_good(trained, folder, steps, every):
    """Assert that after a death of the second of two processes, both begun again go on from the checkpoint.

    `trained(folder, died)` returns codes and outputs of two processes, of which the second dies after the step `died`.
    """
    died = random_step(steps, every)
    codes, first = trained(folder, died)
    assert codes[1] == -9, first  # the other is ended by its own error, or by us
    codes, second = trained(folder, None)
    assert codes == [0, 0], second
    assert_as_if_nothing_had_died([*first, *second], died, steps, every)


def _start(command, environment, file):
    # A session of its own: the whole of it can be ended.
    with file.open("w") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _all_well(started):
    codes = [process.poll() for process in started]
    return None in codes and not any(codes)


def _end(process):
    for number in (signal.SIGTERM, signal.SIGKILL):  # torchrun ends its workers when it is asked to
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                continue
