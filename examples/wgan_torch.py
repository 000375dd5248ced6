"""A Wasserstein GAN in plain PyTorch, its critic with and without a spectral norm, on eight clusters in the plane.

A critic whose layers have norm 1 is 1-Lipschitz, so that what it finds between real and generated points is never more
than their Wasserstein distance; a critic without a constraint says anything. Samples have an exact distance, by optimal
assignment, to compare with. The product of the proved norms of its layers bounds the critic's constant.

Run: python examples/wgan_torch.py
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from torch import nn

import opnorm
import opnorm.torch

torch.set_num_threads(1)  # the networks are small
BATCH, CRITIC_STEPS, NOISE, WIDTH = 128, 5, 8, 64
VARIANTS = {
    "nothing": lambda critic, optimizer: None,
    "opnorm.torch.SpectralNorm": lambda critic, optimizer: opnorm.torch.constrain(
        critic, optimizer, opnorm.torch.SpectralNorm()
    ),
}


class Result(NamedTuple):
    """What a training ended with."""

    before: float  # Wasserstein distance of 512 generated points from as many real ones, at the start
    after: float  # and at the end
    found: float  # what the critic finds between these real and generated points
    lipschitz: float  # of the critic, proved from above


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
    draw = torch.Generator().manual_seed(seed)
    generator, critic = networks()
    slow = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.9))
    fast = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9))
    attach(critic, fast)

    def gap(count):
        noise = torch.randn(count, NOISE, generator=draw)
        return critic(clusters(count, draw)).mean() - critic(generator(noise)).mean()

    before = measured(generator, draw)
    for _ in range(steps):
        for _ in range(CRITIC_STEPS):
            fast.zero_grad()
            (-gap(BATCH)).backward()
            fast.step()
        slow.zero_grad()
        gap(BATCH).backward()
        slow.step()
    with torch.no_grad():
        real, fake = clusters(512, draw), generator(torch.randn(512, NOISE, generator=draw))
        found = float(critic(real).mean() - critic(fake).mean())
    bounds = [opnorm.spectral_norm(layer).upper for layer in critic if isinstance(layer, nn.Linear)]
    return Result(before, distance(real, fake), found, float(np.prod(bounds)))


def measured(generator, draw):
    """Return the distance of 512 generated points from as many real ones."""
    with torch.no_grad():
        return distance(clusters(512, draw), generator(torch.randn(512, NOISE, generator=draw)))


def main(
    steps: Annotated[int, typer.Option(help="Steps of the generator.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the weights, the noise and the points.")] = 0,
) -> None:
    """Train both, and print what each ended with."""
    table = Table("critic with", "distance before", "after", "the critic finds", "its Lipschitz constant <=")
    for name, attach in VARIANTS.items():
        result = trained(attach, steps, seed)
        table.add_row(name, *(f"{number:.3f}" for number in result))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
