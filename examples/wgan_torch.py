"""A Wasserstein GAN in plain PyTorch, on eight clusters in the plane, its critic free, of norm 1, or orthogonal.

A critic whose layers have norm 1 is 1-Lipschitz, so that what it finds between real and generated points is never more
than their Wasserstein distance; a critic without a constraint says anything. Samples have an exact distance, by optimal
assignment, to compare with. The product of the proved norms of its layers bounds the critic's constant.

Run: python examples/wgan_torch.py --output wgan
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from torch import nn

import opnorm
import opnorm.torch

torch.set_num_threads(1)  # the networks are small
BATCH, CRITIC_STEPS, NOISE, WIDTH, WATCH = 128, 5, 8, 64, 20
VARIANTS = {
    "nothing": lambda critic, optimizer: None,
    "opnorm.torch.SpectralNorm": lambda critic, optimizer: opnorm.torch.constrain(
        critic, optimizer, opnorm.torch.SpectralNorm()
    ),
    "opnorm.torch.Orthogonal": lambda critic, optimizer: opnorm.torch.constrain(
        critic, optimizer, opnorm.torch.Orthogonal()
    ),
}


class Result(NamedTuple):
    """What a training ended with."""

    before: float  # Wasserstein distance of 512 generated points from as many real ones, at the start
    after: float  # and at the end
    found: float  # what the critic finds between these real and generated points
    lipschitz: float  # of the critic, proved from above
    curve: list[tuple[int, float, float]]  # the step, the distance and what the critic finds, on the way
    networks: tuple[nn.Module, nn.Module]  # the generator and the critic


class MaxMin(nn.Module):
    """Sorts pairs of neurons: 1-Lipschitz, and unlike ReLU it keeps the length of gradients."""

    def forward(self, x):
        """Return `x` with its pairs sorted."""
        first, second = x.chunk(2, -1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], -1)


def clusters(count, generator):
    """Return points around eight places on a circle of radius 2."""
    angles = torch.randint(8, (count,), generator=generator) * (torch.pi / 4)
    centres = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return centres + 0.1 * torch.randn(count, 2, generator=generator)


def networks():
    """Return a generator and a critic."""
    generator = nn.Sequential(
        nn.Linear(NOISE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)
    )
    critic = nn.Sequential(
        nn.Linear(2, WIDTH), MaxMin(), nn.Linear(WIDTH, WIDTH), MaxMin(), nn.Linear(WIDTH, WIDTH), MaxMin(),
        nn.Linear(WIDTH, 1),
    )  # fmt: skip
    return generator, critic


def distance(real, fake):
    """Return the Wasserstein distance of two samples of equal size, exactly: the best assignment's mean length."""
    costs = torch.cdist(real, fake).numpy()
    rows, columns = linear_sum_assignment(costs)
    return float(costs[rows, columns].mean())


def trained(attach, steps, seed):
    """Return the result of `steps` steps of the generator."""
    torch.manual_seed(seed)
    draw, watch = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    generator, critic = networks()
    slow = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.9))
    fast = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9))
    attach(critic, fast)

    def gap(count):
        noise = torch.randn(count, NOISE, generator=draw)
        return critic(clusters(count, draw)).mean() - critic(generator(noise)).mean()

    before, _ = measured(generator, critic, draw)
    curve = []
    for step in range(steps):
        for _ in range(CRITIC_STEPS):
            fast.zero_grad()
            (-gap(BATCH)).backward()
            fast.step()
        slow.zero_grad()
        gap(BATCH).backward()
        slow.step()
        if step % WATCH == 0:
            curve.append((step, *measured(generator, critic, watch)))
    bounds = [opnorm.spectral_norm(layer).upper for layer in critic if isinstance(layer, nn.Linear)]
    after = measured(generator, critic, draw)
    return Result(before, *after, float(np.prod(bounds)), curve, (generator, critic))


def measured(generator, critic, draw):
    """Return the distance of 512 generated points from as many real ones, and what the critic finds between them."""
    with torch.no_grad():
        real, fake = clusters(512, draw), generator(torch.randn(512, NOISE, generator=draw))
        return distance(real, fake), float(critic(real).mean() - critic(fake).mean())


def draw_critics(results, seed):
    """Return a figure of each critic's level curves, real points and generated ones."""
    figure = Figure((4 * len(results), 4.4), layout="constrained")
    draw = torch.Generator().manual_seed(seed + 2)
    ticks = torch.linspace(-3, 3, 121)
    x, y = torch.meshgrid(ticks, ticks, indexing="xy")
    for axes, (name, result) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        generator, critic = result.networks
        with torch.no_grad():
            surface = critic(torch.stack([x, y], -1))[..., 0]
            fake = generator(torch.randn(512, NOISE, generator=draw))
        axes.contourf(x, y, surface, 16, cmap="Greys", alpha=0.5)
        axes.scatter(*clusters(512, draw).T, s=6, label="real")
        axes.scatter(*fake.T, s=6, label="generated")
        axes.set(title=f"critic with {name}", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=2.5)
    return figure


def draw_distances(results):
    """Return a figure of the true distance and of what each critic finds, over the steps."""
    figure = Figure((4 * len(results), 3.4), layout="constrained")
    for axes, (name, result) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        steps, distances, found = zip(*result.curve, strict=True)
        axes.plot(steps, distances, color="black", label="Wasserstein distance")
        axes.plot(steps, found, color="C1", label="found by the critic")
        if max(map(abs, found)) > 10:  # of a free critic, and below 0 now and then
            axes.set_yscale("symlog", linthresh=1)
        axes.set(title=f"critic with {name}", xlabel="step of the generator")
    axes.legend()
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("wgan"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the generator.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the noise and the points.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="A few steps, to see that it runs.")] = False,
) -> None:
    """Train all three, print what each ended with, and draw it."""
    output.mkdir(parents=True, exist_ok=True)
    steps = 30 if short else steps
    table = Table("critic with", "before", "after", "critic finds", "constant <=", title="Distance before and after")
    results = {name: trained(attach, steps, seed) for name, attach in VARIANTS.items()}
    for name, result in results.items():
        table.add_row(name, *(f"{number:.3f}" for number in result[:4]))
    Console().print(table)
    save(draw_critics(results, seed).savefig, output / "critics.png")
    save(draw_distances(results).savefig, output / "distances.png")


if __name__ == "__main__":
    typer.run(main)
