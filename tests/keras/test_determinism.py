"""The same seed gives the same run, and the same run gives the same kernels on every backend."""

import dense
import keras
import numpy as np
from cases import built_optimizer, gaussian
from keras import layers

import opnorm
from opnorm.keras.slots import state_of


def seeded_run():
    """Return the kernels after a short `fit` in which everything random follows the global seed."""
    keras.utils.set_random_seed(7)
    hidden = layers.Dense(6, activation="tanh", kernel_constraint=opnorm.SpectralNorm())
    model = keras.Sequential(
        [keras.Input((5,)), hidden, layers.Dense(2, kernel_constraint=opnorm.MaxSpectralNorm(0.5))]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(gaussian(32, 5), gaussian(32, 2), batch_size=8, verbose=0)
    return [dense.array(v) for v in [*model.variables, *model.optimizer.variables]]


def test_same_seed_gives_identical_kernels_and_states():
    first, second = seeded_run(), seeded_run()
    assert len(first) == len(second)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seed_decides_on_u():
    kernel = gaussian(12, 8)
    starts = {s: opnorm.SpectralNorm(seed=s).initial_state(kernel) for s in (1, 2)}
    assert np.array_equal(starts[1], opnorm.SpectralNorm(seed=1).initial_state(kernel))
    assert not np.array_equal(starts[1], starts[2])


def starts_of(constraints):
    stack = [layers.Dense(10, kernel_constraint=constraint) for constraint in constraints]
    keras.Sequential([keras.Input((10,)), *stack])
    kernels = [layer.kernel for layer in stack]
    optimizer = built_optimizer(kernels)
    return [dense.array(state_of(optimizer, kernel))[0] for kernel in kernels]


def test_different_layers_get_different_u():
    shared = opnorm.SpectralNorm()
    for constraints in ([shared] * 3, [opnorm.SpectralNorm(seed=3) for _ in range(3)]):
        a, b, c = starts_of(constraints)
        assert max(abs(a @ b), abs(b @ c), abs(c @ a)) < 0.95  # isotropic in 10 dimensions: 1e-6 of draws are above


RATE, STEPS, TARGETS = 0.1, 20, (1.5, 0.8)


def data():
    x = gaussian(32, 6)
    return x, np.tanh(x @ gaussian(6, 3)) + 0.1 * gaussian(32, 3)


def start():
    """Return kernels and biases of a network 6 - 8 - 3 with `tanh` between, the kernels off their targets."""
    return [0.5 * gaussian(6, 8), 0.1 * gaussian(8), 0.5 * gaussian(8, 3), 0.1 * gaussian(3)]


def gradients_by_hand(weights, x, y):
    """Return the gradients of the mean squared error, worked out on paper."""
    a, a0, b, b0 = weights
    h = np.tanh(x @ a + a0)
    slope = 2 * (h @ b + b0 - y) / y.size
    back = slope @ b.T * (1 - h**2)
    return [x.T @ back, back.sum(0), h.T @ slope, slope.sum(0)]


def run_by_hand():
    """Return the weights after gradient descent in float64, each kernel divided by its norm from the SVD."""
    weights = [w.astype("float64") for w in start()]
    for _ in range(STEPS):
        steps = gradients_by_hand(weights, *data())
        weights = [w - RATE * g for w, g in zip(weights, steps, strict=True)]
        for i, target in zip((0, 2), TARGETS, strict=True):
            weights[i] = weights[i] * target / dense.norm(weights[i])
    return weights


def test_twenty_steps_of_gradient_descent_equal_exact_normalisation_in_float64():
    first, second = (opnorm.SpectralNorm(target, seed=5) for target in TARGETS)
    hidden = layers.Dense(8, activation="tanh", kernel_constraint=first)
    model = keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3, kernel_constraint=second)])
    model.set_weights(start())
    model.compile(keras.optimizers.SGD(RATE), "mse")
    model.fit(*data(), batch_size=32, epochs=STEPS, shuffle=False, verbose=0)
    for actual, expected, initial in zip(model.get_weights(), run_by_hand(), start(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)  # C17
        assert np.max(np.abs(expected - initial)) > 1e-2  # the run went somewhere
