"""Digits certified: from an unconstrained network to one whose answers are proved within a radius.

The same network, 64-64-10 with ReLU on scikit-learn's 8 x 8 digits (pixels from 0 to 1), is trained without a
constraint, with kernels of norm one and the logits times 1, 3, 10 and 30, with other constraints, without a bias, with
batch normalization, and with pairs sorted in place of ReLU (MaxMin). `opnorm.certify` then says how far each test
image may move.

Run: python examples/certified_digits.py --output certified-digits
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
from sklearn.datasets import load_digits

import opnorm

WIDTH, BATCH, TRAINED = 64, 50, 1200
SHORT = ("nothing", "norm 1, logits x 10")  # what a short run trains, with a quarter of the width
RADII = (0.1, 0.25, 0.5, 1.0)
PLAIN = 0.25  # the radius at which plainer bounds are shown


class Variant(NamedTuple):
    """How a network is built and constrained."""

    constraint: keras.constraints.Constraint | None = None
    scale: float = 1.0  # of the logits
    use_bias: bool = True
    normalized: bool = False  # by batch normalization before the activation
    is_sorted: bool = False  # pairs of entries are sorted (MaxMin), in place of ReLU


VARIANTS = {
    "nothing": Variant(),
    "norm 1, logits x 1": Variant(opnorm.SpectralNorm()),
    "norm 1, logits x 3": Variant(opnorm.SpectralNorm(), 3),
    "norm 1, logits x 10": Variant(opnorm.SpectralNorm(), 10),
    "norm 1, logits x 30": Variant(opnorm.SpectralNorm(), 30),
    "cap 1, logits x 10": Variant(opnorm.MaxSpectralNorm(), 10),
    "clip 1, logits x 10": Variant(opnorm.SpectralClip(), 10),
    "norm 1 without bias, x 10": Variant(opnorm.SpectralNorm(), 10, use_bias=False),
    "norm 1 and batch norm, x 10": Variant(opnorm.SpectralNorm(), 10, normalized=True),
    "norm 1 and MaxMin, x 10": Variant(opnorm.SpectralNorm(), 10, is_sorted=True),
    "orthogonal and MaxMin, x 10": Variant(opnorm.Orthogonal(), 10, is_sorted=True),
}


class Result(NamedTuple):
    """A network's certificate, and what two plainer bounds would certify."""

    accuracy: float
    certificate: opnorm.Certificate
    whole: np.ndarray  # radii by sqrt(2) times the bound of all logits together
    product: np.ndarray  # radii by sqrt(2) times the product of the kernels' norms


def digits(seed, count):
    """Return images and labels to train on, then those to certify."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = (images[order] / 16).astype("float32"), labels[order]
    end = TRAINED + count
    return images[:TRAINED], labels[:TRAINED], images[TRAINED:end], labels[TRAINED:end]


def network(variant, width):
    inputs = keras.Input((64,))
    x = layers.Dense(width, use_bias=variant.use_bias)(inputs)
    if variant.normalized:
        x = layers.BatchNormalization()(x)
    x = sorted_pairs(x) if variant.is_sorted else layers.ReLU()(x)
    logits = layers.Dense(10, use_bias=variant.use_bias)(x)
    return keras.Model(inputs, layers.Rescaling(variant.scale)(logits))


def sorted_pairs(x):
    """Return the larger and the smaller entry of each pair: nothing is lost, as it is where ReLU is zero."""
    a, b = keras.ops.split(x, 2, axis=-1)
    return keras.ops.concatenate([keras.ops.maximum(a, b), keras.ops.minimum(a, b)], axis=-1)


def train(variant, width, images, labels, epochs, seed, step):
    keras.utils.set_random_seed(seed)
    model = network(variant, width)
    if variant.constraint is not None:
        opnorm.constrain(model, variant.constraint)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    counted = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: step())
    model.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[counted])
    return model


def measure(model, images, labels):
    """Return the certificate of a network, and the radii of two plainer bounds."""
    certificate = opnorm.certify(model, images, labels)
    logits = np.sort(keras.ops.convert_to_numpy(model(images)).astype("float64"), axis=1)
    right = certificate.predictions == labels
    margins = np.where(right, logits[:, -1] - logits[:, -2], 0) / np.sqrt(2)
    return Result(np.mean(right), certificate, margins / certificate.lipschitz, margins / product_of_norms(model))


def product_of_norms(model):
    """Return the product of the layers' norms, each bounded by itself."""
    maps = [layer for layer in model.layers if isinstance(layer, layers.Dense | layers.BatchNormalization)]
    scales = [layer.scale for layer in model.layers if isinstance(layer, layers.Rescaling)]
    return np.prod([opnorm.spectral_norm(opnorm.linear_operator(layer)).upper for layer in maps]) * np.prod(scales)


def picture(results):
    """Return a figure of certified accuracy against radius."""
    figure = Figure((7.5, 4.5), layout="compressed")
    axes = figure.subplots()
    radii = np.linspace(0, 1.6, 321)
    for name, result in results.items():
        axes.plot(radii, [result.certificate.certified_accuracy(r) for r in radii], label=name)
    axes.set(xlabel="radius (2-norm, pixels from 0 to 1)", ylabel="certified accuracy", ylim=(0, 1), xlim=(0, 1.6))
    axes.legend(fontsize="small")
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("certified-digits"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,200 training images.")] = 60,
    count: Annotated[int, typer.Option("--images", min=1, max=597, help="Test images that are certified.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and the weights.")] = 0,
    short: Annotated[
        bool, typer.Option("--short", help="Two small networks, two passes, to see that it runs.")
    ] = False,
) -> None:
    """Train the variants; print the accuracy that each is certified to, and draw it."""
    output.mkdir(parents=True, exist_ok=True)
    epochs, width, names = (2, WIDTH // 4, SHORT) if short else (epochs, WIDTH, VARIANTS)
    images, labels, *test = digits(seed, count)
    results = {}
    with Progress(console=Console(stderr=True)) as progress:
        for name in names:
            bar = progress.add_task(name, total=epochs)
            model = train(VARIANTS[name], width, images, labels, epochs, seed, partial(progress.advance, bar))
            results[name] = measure(model, *test)
    print(
        f"{epochs} epochs on {keras.backend.backend()}; certified accuracy by radius; at {PLAIN} by plainer bounds too"
    )
    heads = ["accuracy", "bound", *map(str, RADII), "sqrt(2) L", "product"]
    print(f"{'network':<28}" + "".join(f"{head:>10}" for head in heads))
    for name, (accuracy, certificate, whole, product) in results.items():
        figures = [accuracy, certificate.lipschitz, *map(certificate.certified_accuracy, RADII)]
        figures += [np.mean(whole > PLAIN), np.mean(product > PLAIN)]
        print(f"{name:<28}" + "".join(f"{figure:>10.3f}" for figure in figures))
    save(picture(results).savefig, output / "certified.png")


if __name__ == "__main__":
    typer.run(main)
