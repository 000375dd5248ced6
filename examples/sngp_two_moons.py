"""Uncertainty that grows away from the data: a classifier of two moons with a distance-aware output layer, SNGP.

The output layer is a Gaussian process, by random Fourier features and a Laplace approximation: it knows how far the
data is, in the features that it sees. Features keep apart what is apart in the inputs if they come from residual blocks
x + f(x) in which f is a contraction: `opnorm.SpectralNormalization(Dense, value=0.95, cap=True)`.

Run: python examples/sngp_two_moons.py --output sngp-two-moons

Reference:
    Liu et al., Simple and Principled Uncertainty Estimation with Deterministic Deep Learning via Distance Awareness,
    2020.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import keras
import numpy as np
import typer
from keras import layers
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from scipy.spatial.distance import cdist
from scipy.special import expit
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score

import opnorm

WIDTH, FEATURES, GRID = 128, 1024, 60
LEFT, RIGHT, BOTTOM, TOP = -2.5, 3.5, -3.0, 3.0
APART = 0.5  # five times the noise of the moons: points farther from all of them are of neither
capped = partial(opnorm.SpectralNormalization, value=0.95, cap=True)
VARIANTS = {  # what wraps the Dense layers, and whether the output layer is a Gaussian process
    "logistic": (lambda layer: layer, False),
    "Gaussian process": (lambda layer: layer, True),
    "SNGP, cap 0.95": (capped, True),
}


class Trained(NamedTuple):
    """A network from points `(n, 2)` to logits and features, and the posterior's covariance if it has one."""

    network: keras.Model
    covariance: np.ndarray | None


def networks(wrap, gaussian_process, blocks):
    """Return the network to train, from points to logits `(n, 1)`, and the same with its last features beside them."""
    points = keras.Input((2,))
    hidden = layers.Dense(WIDTH, trainable=False)(points)
    for _ in range(blocks):
        hidden = layers.add([hidden, wrap(layers.Dense(WIDTH, "relu"))(hidden)])
    if gaussian_process:
        hidden = random_features()(hidden)
    logits = layers.Dense(1, use_bias=not gaussian_process)(hidden)
    return keras.Model(points, logits), keras.Model(points, [logits, hidden])


def random_features(length=2.0):
    """Return the fixed layer sqrt(2 / n) cos(W x + b): its inner products approach exp(-|x - y|^2 / (2 length^2))."""
    waves = layers.Dense(
        FEATURES,
        keras.ops.cos,
        kernel_initializer=keras.initializers.RandomNormal(stddev=1 / length),
        bias_initializer=keras.initializers.RandomUniform(0.0, 2 * np.pi),
        trainable=False,
    )
    return keras.Sequential([waves, layers.Rescaling((2 / FEATURES) ** 0.5)])


def train(wrap, gaussian_process, blocks, points, labels, epochs, seed, on_epoch):
    """Return a trained network; `on_epoch` is called after each epoch."""
    keras.utils.set_random_seed(seed)
    model, with_features = networks(wrap, gaussian_process, blocks)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch())
    model.fit(points, labels[:, None], batch_size=50, epochs=epochs, verbose=0, callbacks=[callback])
    return Trained(with_features, covariance(*predict(with_features, points)) if gaussian_process else None)


def covariance(logits, features):
    """Return the posterior covariance of the output weights by Laplace's approximation, the prior standard normal."""
    chance = expit(logits)
    return np.linalg.inv(np.eye(features.shape[1]) + (features * chance * (1 - chance)).T @ features)


def chances(trained, points):
    """Return the probability of the second moon `(n,)`, averaged over the posterior where there is one."""
    logits, features = predict(trained.network, points)
    if trained.covariance is not None:
        variance = np.sum(features @ trained.covariance * features, axis=1, keepdims=True)
        logits = logits / np.sqrt(1 + np.pi / 8 * variance)
    return expit(logits[:, 0])


def uncertainty(trained, points):
    """Return 4 p (1 - p): 0 where the network is sure, 1 where it cannot tell."""
    chance = chances(trained, points)
    return 4 * chance * (1 - chance)


def predict(model, points):
    """Return the logits and features in float64."""
    return [outputs.astype("float64") for outputs in model.predict(points, batch_size=100, verbose=0)]


def moons(count, seed):
    points, labels = make_moons(count, noise=0.1, random_state=seed)
    return points.astype("float32"), labels


def grid():
    """Return the points `(GRID * GRID, 2)` of the picture, row by row from its bottom."""
    x, y = np.meshgrid(np.linspace(LEFT, RIGHT, GRID), np.linspace(BOTTOM, TOP, GRID))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype("float32")


def largest_norm(model):
    """Return the largest spectral norm of the matrices that the residual blocks apply, by SVD in float64."""
    kinds = layers.Dense, opnorm.SpectralNormalization
    blocks = [layer for layer in model.layers[2:] if isinstance(layer, kinds) and layer.output.shape[-1] == WIDTH]
    matrices = [opnorm.linear_operator(block) @ np.eye(WIDTH) for block in blocks]
    return max(np.linalg.svd(matrix, compute_uv=False)[0] for matrix in matrices)


def measure(trained, seen):
    """Return accuracy, AUROC of far points against new moons, mean uncertainty on both, and the largest norm."""
    points, labels = moons(500, seed=1)
    far = cdist(grid(), seen).min(axis=1) > APART
    near, away = uncertainty(trained, points), uncertainty(trained, grid())[far]
    is_far = np.repeat([0, 1], [len(near), len(away)])
    accuracy = np.mean((chances(trained, points) > 0.5) == labels)
    auroc = roc_auc_score(is_far, np.concatenate([near, away]))
    return accuracy, auroc, near.mean(), away.mean(), largest_norm(trained.network)


def picture(trained, points, labels):
    """Return a figure of each network's uncertainty around the training points."""
    figure = Figure((3.5 * len(trained) + 1, 3.6), layout="compressed")
    plots = figure.subplots(1, len(trained), sharey=True)
    for axes, (name, one) in zip(plots, trained.items(), strict=True):
        surface = uncertainty(one, grid()).reshape(GRID, GRID)
        image = axes.imshow(surface, origin="lower", extent=(LEFT, RIGHT, BOTTOM, TOP), vmin=0, vmax=1, cmap="viridis")
        axes.scatter(*points.T, c=np.where(labels, "red", "white"), s=1)
        axes.set(title=name)
    figure.colorbar(image, ax=plots, pad=0.01, label="uncertainty 4 p (1 - p)")
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("sngp-two-moons"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,000 training points.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights.")] = 0,
    short: Annotated[
        bool, typer.Option("--short", help="A small network and five passes, to see that it runs.")
    ] = False,
) -> None:
    """Train three classifiers of two moons; print how sure each is far from the data, and draw it."""
    output.mkdir(parents=True, exist_ok=True)
    epochs, blocks = (5, 2) if short else (epochs, 12)
    points, labels = moons(1000, seed=0)
    trained = {}
    with Progress(console=Console(stderr=True)) as progress:
        for name, (wrap, gaussian_process) in VARIANTS.items():
            bar = progress.add_task(name, total=epochs)
            trained[name] = train(
                wrap, gaussian_process, blocks, points, labels, epochs, seed, partial(progress.advance, bar)
            )
    print(f"{epochs} epochs on {keras.backend.backend()}")
    print(f"{'output layer':<20}{'accuracy':>10}{'AUROC':>10}{'near':>10}{'far':>10}{'norm':>10}")
    for name, one in trained.items():
        print(f"{name:<20}" + "".join(f"{figure:>10.3f}" for figure in measure(one, points)))
    save(picture(trained, points, labels).savefig, output / "uncertainty.png")


if __name__ == "__main__":
    typer.run(main)
