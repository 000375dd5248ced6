"""The constraint acts in every step of `fit`, however the step is compiled, and `u` lives."""

import dense
import keras
import numpy as np
import pytest
from cases import CONSTRAINTS, EVERY, gaussian
from keras import layers

from opnorm.keras.slots import state_of

TARGET = 0.9
COMPILED = {"tensorflow": [False, True], "jax": [True], "torch": [False, True]}[keras.backend.backend()]


def branch(image, constraint):
    """Return two-dimensional outputs of `image` through kernels of several shapes, one constraint for all."""
    features = layers.Conv2D(6, 3, strides=2, activation="relu", kernel_constraint=constraint)(image)
    features = layers.Dense(12, activation="relu", kernel_constraint=constraint)(layers.Flatten()(features))
    return layers.Dense(3, kernel_constraint=constraint)(features)


def model_of(constraints):
    """Return a model with a branch for each constraint: one compilation serves them all."""
    keras.utils.set_random_seed(1)
    image = keras.Input((9, 9, 2))
    model = keras.Model(image, layers.Concatenate()([branch(image, constraint) for constraint in constraints]))
    for constraint in constraints:
        for kernel in kernels_of(model, constraint):
            kernel.assign(3 * kernel.value)  # far outside the ball, so that every constraint has something to do
    return model


def kernels_of(model, constraint):
    return [v for v in model.trainable_variables if v.constraint is constraint]


@pytest.mark.parametrize("jit_compile", COMPILED)
def test_forty_steps_of_fit_hold_every_norm_and_move_every_u(jit_compile):
    constraints = {name: case.build(TARGET) for name, case in EVERY.items()}
    model = model_of(constraints.values())
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=jit_compile)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    kernels = [(case, k) for name, case in EVERY.items() for k in kernels_of(model, constraints[name])]
    states = [state_of(optimizer, kernel) for _, kernel in kernels]
    before = [None if state is None else dense.array(state).copy() for state in states]
    model.fit(gaussian(640, 9, 9, 2), gaussian(640, *model.output_shape[1:]), batch_size=16, verbose=0)
    assert int(optimizer.iterations) == 40
    assert len(kernels) == 3 * len(EVERY)
    assert sum(state is not None for state in states) == 3 * len(CONSTRAINTS)
    for (case, kernel), state, u in zip(kernels, states, before, strict=True):
        assert dense.norm(kernel) <= TARGET * (1 + 1e-3)  # C2
        assert dense.norm(kernel) >= TARGET * (1 - 1e-3) or not case.fills  # C2
        assert state is None or np.max(np.abs(dense.array(state) - u)) >= 0.01  # it was drawn at random


@pytest.mark.parametrize("constraint_name", CONSTRAINTS)
def test_embedding_trains_on_integers_to_floats(constraint_name):
    keras.utils.set_random_seed(1)
    words = layers.Embedding(30, 6, embeddings_constraint=CONSTRAINTS[constraint_name].build(TARGET))
    model = keras.Sequential([keras.Input((4,), dtype="int32"), words, layers.Flatten(), layers.Dense(1)])
    words.embeddings.assign(gaussian(30, 6))
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=COMPILED[0])
    tokens = np.random.default_rng(0).integers(0, 20, (64, 4))
    model.fit(tokens, np.ones((64, 1)), batch_size=8, verbose=0)
    assert abs(dense.norm(words.embeddings) - TARGET) <= 1e-3  # C2
    seen, unseen = np.arange(20), np.arange(20, 30)
    start, end = gaussian(30, 6), dense.array(words.embeddings)
    shrink = dense.norm(start) / TARGET
    assert np.max(np.abs(end - start / shrink)[seen]) >= 0.01  # trained: eight steps of 1e-2
    assert np.max(np.abs(end - start / shrink)[unseen]) < np.max(np.abs(end - start / shrink)[seen])
    assert "float" in keras.backend.standardize_dtype(words(tokens).dtype)
