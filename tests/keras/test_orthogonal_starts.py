"""Kernels that start orthogonal or as the identity, all singular values equal: the hardest start there is."""

import keras
import numpy as np
import pytest
from cases import ALL
from dense import array, norm
from keras import layers
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def digits():
    """Return the first 512 digits as rows of pixels, eight a digit, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return images[:512].reshape(-1, 8, 8).astype("float32") / 16, labels[:512]


def recurrent(constraint, inputs):
    """Return outputs of layers whose recurrent kernels start orthogonal, as is the default, or as the identity."""
    yield layers.SimpleRNN(16, recurrent_constraint=constraint)(inputs)
    yield layers.SimpleRNN(12, recurrent_initializer="identity", recurrent_constraint=constraint)(inputs)
    yield layers.LSTM(8, recurrent_constraint=constraint)(inputs)


def dense_layers(constraint, inputs):
    hidden = layers.Flatten()(inputs)
    for units, start in ((64, "identity"), (64, "orthogonal"), (24, "orthogonal")):
        hidden = layers.Dense(units, "relu", kernel_initializer=start, kernel_constraint=constraint)(hidden)
    yield hidden


def model_of(build, constraint):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8))
    model = keras.Model(inputs, layers.Dense(10)(layers.Concatenate()(list(build(constraint, inputs)))))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


@pytest.mark.parametrize("build", [recurrent, dense_layers])
@pytest.mark.parametrize("constraint_name", ALL)
def test_from_the_first_of_fifty_updates_on_no_norm_is_above_its_target(constraint_name, build, digits):
    constraint = ALL[constraint_name].seeded(1.0)
    model = model_of(build, constraint)
    kernels = [v for v in model.trainable_variables if v.constraint is constraint]
    assert len(kernels) == 3
    for kernel in kernels:
        assert norm(kernel) == pytest.approx(1, abs=1e-5)  # it starts orthogonal, in float32
    start = [array(kernel) for kernel in kernels]
    norms = np.ones((51, 3))
    images, labels = digits
    for step in range(50):
        batch = slice(32 * step % 512, 32 * step % 512 + 32)
        model.train_on_batch(images[batch], labels[batch])
        norms[step + 1] = [norm(kernel) for kernel in kernels]
    assert norms.max() <= 1 + 1e-3, (np.argmax(norms, axis=0), norms.max(axis=0))  # C2, K11
    assert norms.min() >= 1 - 1e-3 or not ALL[constraint_name].fills  # C2
    # Adam moves each of 64 x 64 entries by about 1e-3, the norm by 0.064: nothing else may have shrunk it.
    assert np.diff(norms, axis=0).min() >= -0.1
    for kernel, before in zip(kernels, start, strict=True):
        assert np.abs(array(kernel) - before).max() > 1e-2  # it was trained: Adam walks up to 50 times 1e-3
