"""Training-step time with every kernel constrained over none, on a GPU, without Keras: eager PyTorch and jitted JAX.

    python benchmarks/gpu.py [--framework torch] [--sizes large] [--device cpu] [--quick] [--write]

A stack of residual linear layers learns to roll its input by one place: 24 kernels of 4096 x 4096, or 200 of 512 x 512,
Adam, the precision of products that the framework takes by itself. The constraint is the rule behind
`opnorm.SpectralNorm()`. Both variants stand in one process and train in turn, with the device waited for around each
timed run; a ratio is taken within its repeat, the table shows the median and the quartiles. Of PyTorch's update,
`opnorm.rules.find` and `overwrite`, the profiler counts the kernels launched (on CPUs the operations called) and the
waits for the device, each time after a step of Adam (in training), and with the kernels left as they are (at rest).

Each case has a process of its own; what is not done `LIMIT` seconds after the start is given up. The table goes between
the markers of `benchmarks/README.md` where it was measured in full on a GPU, and with `--write`. `PYTHONPATH=src` is
enough where opnorm is not installed.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tables import read_rows, write_rows, write_table

from opnorm.iterations.power import Search
from opnorm.rules import Operator, Scale, find, overwrite, updated

RULE = Scale(1.0, False, Operator(), Search(1, 100, 1e-4, 1e-3))
RATE, POOL = 1e-4, 4  # Adam's; batches that training goes round
LIMIT = 570  # seconds for all cases; JAX compiles 200 kernels for minutes, and comes last
HEADER = (
    *("framework", "device", "kernels", "ms a step: none", "constrained", "constrained / none", "quartiles", "goal"),
    *("an update", "waits: in training", "at rest", "goal"),
)


class Size(NamedTuple):
    """A stack of layers, and how it is timed."""

    kernels: int
    width: int
    rows: int  # of a batch
    steps: int  # in each timed run
    repeats: int
    goal: float  # of the ratio


SIZES = {"large": Size(24, 4096, 4096, 5, 15, 1.02), "small": Size(200, 512, 1024, 20, 15, 1.05)}
QUICK = {"large": Size(2, 96, 16, 2, 2, 1.02), "small": Size(3, 64, 16, 2, 2, 1.05)}


def random_arrays(count, shape, scale, seed):
    generator = np.random.default_rng(seed)
    return [np.float32(scale) * generator.standard_normal(shape, "float32") for _ in range(count)]


def first_arrays(size):
    """Return the kernels, He's choice, the states of their rules, and the batches."""
    kernels = random_arrays(size.kernels, (size.width, size.width), (2 / size.width) ** 0.5, 0)
    states = [RULE.start(kernel.shape, (0, place)) for place, kernel in enumerate(kernels)]
    return kernels, states, random_arrays(POOL, (size.rows, size.width), 1.0, 1)


class TorchTraining:
    """Training in eager PyTorch."""

    def __init__(self, size, constrained, device):
        import torch

        arrays = [[torch.tensor(one, device=device) for one in several] for several in first_arrays(size)]
        self.kernels, self.states, self.batches = arrays
        self.rules = [RULE] * size.kernels if constrained else []
        self.optimizer = torch.optim.Adam([kernel.requires_grad_() for kernel in self.kernels], RATE, fused=True)
        self.done, self.on_gpu = 0, device == "cuda"
        self.wait = torch.cuda.synchronize if self.on_gpu else lambda: None

    def step(self):
        """Train with one batch."""
        self.learn()
        if self.rules:
            self.update()

    def learn(self):
        """Do what is done without a constraint."""
        batch = hidden = self.batches[self.done % POOL]
        for kernel in self.kernels:
            hidden = hidden + (hidden @ kernel).relu() / len(self.kernels)
        self.optimizer.zero_grad()
        (hidden - batch.roll(1, 1)).square().sum(1).mean().backward()
        self.optimizer.step()
        self.done += 1

    def update(self):
        """Constrain the kernels."""
        import torch

        with torch.no_grad():
            found, self.states = find(self.rules, self.kernels, self.states)
            for rule, kernel, what in zip(self.rules, self.kernels, found, strict=True):
                overwrite(rule, kernel, what)

    def counts(self, updates, trains):
        """Return the launches, or on a CPU the operations, and the waits of an update, on average."""
        totals = np.zeros(2)
        for _ in range(updates):
            if trains:
                self.learn()
            self.wait()
            totals += self.counted_update()
        return totals / updates

    def counted_update(self):
        """Do what `update` does, and return its launches, or on a CPU its operations, and its waits."""
        from torch.profiler import profile

        with profile() as profiler:
            self.update()
        names = Counter(event.name for event in profiler.events())
        launches = sum(count for name, count in names.items() if "LaunchKernel" in name)
        calls = sum(e.cpu_parent is None and e.name.startswith("aten::") for e in profiler.events())
        # The first is a number read by the host; the second also a copy that the host waits for.
        waits = max(names["aten::_local_scalar_dense"], names["cudaStreamSynchronize"])
        return launches if self.on_gpu else calls, waits


class JaxTraining:
    """Training in JAX, a jitted step with donated buffers."""

    def __init__(self, size, constrained):
        import jax

        kernels, states, batches = [[jax.numpy.asarray(one) for one in several] for several in first_arrays(size)]
        zeros = [[jax.numpy.zeros_like(kernel) for kernel in kernels] for _ in range(2)]
        self.batches, self.carry, self.done = batches, (kernels, *zeros, states), 0
        self.jitted = jax.jit(jax_step([RULE] * size.kernels if constrained else []), donate_argnums=0)
        self.wait = lambda: jax.block_until_ready(self.carry)

    def step(self):
        """Train with one batch."""
        self.done += 1
        self.carry = self.jitted(self.carry, self.batches[self.done % POOL], float(self.done))


def jax_step(rules):
    """Return the step `(kernels, means, squares, states), batch, count -> ...`, Adam written out."""
    import jax
    from jax import numpy as jnp

    def loss(kernels, batch):
        hidden = batch
        for kernel in kernels:
            hidden = hidden + jax.nn.relu(hidden @ kernel) / len(kernels)
        return jnp.mean(jnp.sum((hidden - jnp.roll(batch, 1, 1)) ** 2, 1))

    def adam(kernel, mean, square, count):
        correction = jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        return kernel - RATE * correction * mean / (jnp.sqrt(square) + 1e-8)

    def step(carry, batch, count):
        kernels, means, squares, states = carry
        gradients = jax.grad(loss)(kernels, batch)
        means = [0.9 * m + 0.1 * g for m, g in zip(means, gradients, strict=True)]
        squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, gradients, strict=True)]
        kernels = [adam(*one, count) for one in zip(kernels, means, squares, strict=True)]
        kernels, states = updated(rules, kernels, states) if rules else (kernels, states)
        return kernels, means, squares, states

    return step


def seconds(training, steps):
    """Return the seconds a step, from a device at rest to a device at rest."""
    training.wait()
    start = time.perf_counter()
    for _ in range(steps):
        training.step()
    training.wait()
    return (time.perf_counter() - start) / steps


def trained_in_turn(variants, size):
    """Return the seconds a step: `(repeats, variants)`. The first round, cold and with compilation, is not timed."""
    for name, training in zip(("none", "constrained"), variants, strict=True):
        print(f"first step, {name}: {seconds(training, 1):.1f} s", file=sys.stderr, flush=True)
        seconds(training, size.steps)
    return np.array([[seconds(training, size.steps) for training in variants] for _ in range(size.repeats)])


def made(framework, size, device):
    """Return the device's name and both variants, or leave with one line where there is no such device."""
    if framework == "jax":
        import jax

        try:
            name = jax.devices()[0].device_kind
        except (RuntimeError, AssertionError):  # the second where jaxlib was built without GPUs
            sys.exit(f"JAX finds no {device}.")
        return name, [JaxTraining(size, constrained) for constrained in (False, True)]
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no cuda.")
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return name, [TorchTraining(size, constrained, device) for constrained in (False, True)]


def judged(goal, met):
    return goal if met else f"{goal}: missed"


def measure(framework, size, device):
    """Return the table's row."""
    name, variants = made(framework, size, device)
    times = trained_in_turn(variants, size)
    low, middle, high = np.percentile(times[:, 1] / times[:, 0], (25, 50, 75))
    milliseconds = [f"{1e3 * one:.2f}" for one in np.median(times, axis=0)]
    ratios = [f"{middle:.3f}", f"{low:.3f} to {high:.3f}", judged(f"<= {size.goal}", middle <= size.goal)]
    kernels = f"{size.kernels} of {size.width} x {size.width}"
    row = [f"{framework} {sys.modules[framework].__version__}", name, kernels, *milliseconds, *ratios]
    if framework == "jax":
        return [*row, "", "", "", ""]
    counts = [variants[1].counts(size.steps, trains) for trains in (True, False)]
    work = f"{counts[0][0]:.0f} {'launches' if variants[1].on_gpu else 'operations'}"
    waits = [found for _, found in counts]
    return [*row, work, *(f"{found:.1f}" for found in waits), judged("<= 1", max(waits) <= 1)]


def in_own_process(framework, name, arguments, left):
    """Return the row measured in a fresh process, in a list; it is empty where a line says why there is none."""
    if importlib.util.find_spec(framework) is None:
        print(f"{framework} is not installed: left out.", flush=True)
        return []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        options = ["--device", arguments.device, "--framework", framework, "--sizes", name, "--rows", str(rows)]
        command = [sys.executable, __file__, *options, *(["--quick"] if arguments.quick else [])]
        try:
            subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": arguments.device}, check=True, timeout=left)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            why = "not done in time" if isinstance(error, subprocess.TimeoutExpired) else "failed, as told above"
            print(f"{framework}, {name}: {why}.", flush=True)
            return []
        return read_rows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("torch", "jax"), action="append", help="default: both")
    parser.add_argument("--sizes", choices=SIZES, action="append", help="default: both")
    found = "cuda" if shutil.which("nvidia-smi") else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found, help="default: cuda if there is nvidia-smi")
    parser.add_argument("--quick", action="store_true", help="tiny kernels, to see that it runs")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md in any case")
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    frameworks, names = arguments.framework or ("torch", "jax"), arguments.sizes or tuple(SIZES)
    if arguments.rows:
        size = (QUICK if arguments.quick else SIZES)[names[0]]
        return write_rows(arguments.rows, [measure(frameworks[0], size, arguments.device)])
    rows, start = [], time.monotonic()
    for framework, name in product(frameworks, names):
        rows += in_own_process(framework, name, arguments, max(1.0, LIMIT + start - time.monotonic()))
    if rows and (arguments.write or (arguments.device == "cuda" and not arguments.quick)):
        return write_table("gpu", HEADER, rows)
    return print(*("| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *rows)), sep="\n")


if __name__ == "__main__":
    main()
