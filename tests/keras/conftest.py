"""Small models, data and a gradient for every backend, shared by the tests that train."""

import gc

import keras
import numpy as np
import pytest

import opnorm

INPUTS, OUTPUTS = 12, 4


@pytest.fixture(autouse=True)
def _reset():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_code():
    # JAX keeps every program it ever compiled: more than a thousand tests of them, in one process, ended in a
    # segmentation fault of the compiler.
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def data():
    """Return 64 inputs and their regression targets."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((64, INPUTS)).astype("float32"), rng.standard_normal((64, OUTPUTS)).astype("float32")


@pytest.fixture
def mlp():
    """Return a maker of two-layer networks whose kernels start far outside the ball, at norms near `7 * stddev`."""

    def make(constraint=None, stddev=1.0, width=16, constrained=True):
        constraint = constraint or opnorm.SpectralNorm()
        start = keras.initializers.RandomNormal(stddev=stddev, seed=1)
        layers = [
            keras.layers.Dense(n, activation, kernel_constraint=constraint if constrained else None)
            for n, activation in ((width, "tanh"), (OUTPUTS, None))
        ]
        for layer in layers:
            layer.kernel_initializer = start.clone()
        return keras.Sequential([keras.Input((INPUTS,)), *layers])

    return make


@pytest.fixture
def gradients():
    """Return a function `(loss, variables) -> gradients` of the backend; `loss` takes no arguments."""
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]


def _tensorflow(loss, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, [v.value for v in variables])


def _jax(loss, variables):
    import jax

    def stateless(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss()

    return jax.grad(stateless)([v.value for v in variables])


def _torch(loss, variables):
    import torch

    return list(torch.autograd.grad(loss(), [v.value for v in variables]))
