"""Two moons, plain JAX: a flax.nnx network that is unsure away from its data, its blocks capped by an optax chain.

Features keep apart what is apart in the inputs if they come from residual blocks x + f(x) in which f is a contraction:
`opnorm.jax.constrain(MaxSpectralNorm(0.95), geometry)` holds each block's kernel there, after every update. The output
layer is a Gaussian process, by random Fourier features and a Laplace approximation: SNGP.

Run: python examples/sngp_nnx.py

Reference:
    Liu et al., Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance Awareness,
    2020.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from flax import nnx
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import cdist
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score

import opnorm.jax

WIDTH, FEATURES, BLOCKS, BATCH = 128, 512, 6, 50
APART = 0.5  # five times the noise of the moons: points farther from all of them are of neither
CAP = 0.95
# Which rule the blocks have, none for the network to compare with.
VARIANTS = {"Gaussian process": None, "SNGP, cap 0.95": opnorm.jax.MaxSpectralNorm(CAP)}


class Network(nnx.Module):
    """Residual blocks on a fixed first layer; random features; a linear output layer."""

    def __init__(self, rngs):
        self.first = nnx.Linear(2, WIDTH, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(BLOCKS)])
        starts = {"kernel_init": nnx.initializers.normal(0.5), "bias_init": nnx.initializers.uniform(2 * np.pi)}
        self.waves = nnx.Linear(WIDTH, FEATURES, rngs=rngs, **starts)
        self.head = nnx.Linear(FEATURES, 1, use_bias=False, rngs=rngs)

    def features(self, x):
        """Return the features of points `(n, 2)`; the first layer and the waves are not trained."""
        x = jax.lax.stop_gradient(self.first(x))
        for block in self.blocks:
            x = x + nnx.relu(block(x))
        return (2 / FEATURES) ** 0.5 * jnp.cos(jax.lax.stop_gradient(self.waves)(x))

    def __call__(self, x):
        """Return the logits `(n,)`."""
        return self.head(self.features(x))[:, 0]


class Result(NamedTuple):
    """What a variant ended with; `auroc` tells far points from the moons by the uncertainty of 4 p (1 - p)."""

    accuracy: float
    auroc: float
    near: float
    far: float
    norm: float


def optimizer_of(network, rule):
    """Return Adam, and the rule for the blocks after it."""
    chain = [optax.adam(1e-3)]
    if rule is not None:
        chain.append(opnorm.jax.constrain(rule, opnorm.jax.geometry(network, include="blocks")))
    return nnx.Optimizer(network, optax.chain(*chain), wrt=nnx.Param)


@nnx.jit
def step(network, optimizer, points, labels):
    def loss(model):
        return optax.sigmoid_binary_cross_entropy(model(points), labels).mean()

    optimizer.update(network, nnx.grad(loss)(network))


def trained(rule, epochs, seed):
    """Return the network after so many passes over 1,000 points, and those points."""
    points, labels = make_moons(1000, noise=0.1, random_state=seed)
    points, labels = jnp.asarray(points, "float32"), jnp.asarray(labels, "float32")
    network = Network(nnx.Rngs(seed))
    optimizer = optimizer_of(network, rule)
    draw = np.random.default_rng(seed)
    for _ in range(epochs):
        order = draw.permutation(len(points))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            step(network, optimizer, points[batch], labels[batch])
    return network, np.asarray(points)


def chances(network, seen, points):
    """Return the probability of the second moon, averaged over the posterior of the output weights."""
    at_seen, at_points = (np.asarray(network.features(jnp.asarray(x, "float32")), "float64") for x in (seen, points))
    weights = np.asarray(network.head.kernel[...], "float64")
    chance = 1 / (1 + np.exp(-at_seen @ weights))
    covariance = np.linalg.inv(np.eye(FEATURES) + (at_seen * chance * (1 - chance)).T @ at_seen)
    variance = np.sum(at_points @ covariance * at_points, axis=1)
    return 1 / (1 + np.exp(-(at_points @ weights)[:, 0] / np.sqrt(1 + np.pi / 8 * variance)))


def measured(network, seen):
    """Return how the network does on new moons, and on points far from all that it has seen."""
    points, labels = make_moons(500, noise=0.1, random_state=1234)
    x, y = np.meshgrid(np.linspace(-2.5, 3.5, 40), np.linspace(-3.0, 3.0, 40))
    plane = np.stack([x.ravel(), y.ravel()], axis=1)
    away = plane[cdist(plane, seen).min(axis=1) > APART]
    near, far = (4 * p * (1 - p) for p in (chances(network, seen, points), chances(network, seen, away)))
    accuracy = np.mean((chances(network, seen, points) > 0.5) == labels)
    auroc = roc_auc_score(np.repeat([0, 1], [len(near), len(far)]), np.concatenate([near, far]))
    norms = [np.linalg.svd(np.asarray(block.kernel[...], "float64"), compute_uv=False)[0] for block in network.blocks]
    return Result(accuracy, auroc, near.mean(), far.mean(), max(norms))


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,000 training points.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the points.")] = 0,
) -> None:
    """Train both, and print how sure each is near its data and far from it."""
    table = Table("output layer", *Result._fields)
    for name, rule in VARIANTS.items():
        table.add_row(name, *(f"{number:.3f}" for number in measured(*trained(rule, epochs, seed))))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
