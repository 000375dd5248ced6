"""Other features of Keras on constrained models: what holds, and what is refused or told."""

import dense
import keras
import numpy as np
import pytest

import opnorm
from opnorm.keras.monitor import SpectralMonitor
from opnorm.keras.regularizers import SpectralRegularizer

BACKEND = keras.backend.backend()


def averaging():
    return keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)


@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_the_monitor_tells_that_swapped_averages_are_evaluated(mlp, data, swap_on_epoch):
    model = mlp()
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
    model.compile(averaging(), "mse")
    with pytest.warns(UserWarning, match="outside the ball of radius 1"):
        model.fit(*data, verbose=0, validation_data=data, callbacks=[swap, SpectralMonitor()])
    for layer in model.layers:  # the averages that `fit` leaves behind are projected
        assert dense.norm(layer.kernel) == pytest.approx(1.0, rel=1e-3)  # as in C16


def test_averaging_alone_is_evaluated_inside_the_ball(mlp, data):
    model = mlp()
    model.compile(averaging(), "mse")
    model.fit(*data, verbose=0, validation_data=data, callbacks=[SpectralMonitor()])  # a warning would be an error


def test_lora_is_refused_on_a_constrained_layer(mlp):
    with pytest.raises(ValueError, match="kernel constraints"):
        mlp().layers[0].enable_lora(2)


# rounding to 127 or 7 steps a column: an error of at most sqrt(entries / 12) steps of the largest entry in norm
@pytest.mark.parametrize(("mode", "excess"), [("int8", 0.01), ("int4", 0.15)])
def test_a_quantized_layer_applies_nearly_the_constrained_matrix(mlp, data, mode, excess):
    model = mlp()
    model.compile("adam", "mse")
    model.fit(*data, verbose=0)
    first, last = model.layers
    last.quantize(mode)  # the one without an activation
    applied = dense.matrix_of(last, (16,)) - dense.array(last.bias)
    assert abs(np.linalg.norm(applied, 2) - 1) <= excess
    opnorm.project(model)  # integers are no kernel: left alone
    np.testing.assert_array_equal(dense.matrix_of(last, (16,)) - dense.array(last.bias), applied)
    assert dense.norm(first.kernel) == pytest.approx(1.0, rel=1e-3)  # as in C2


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras 3.15: RematScope fails in a graph, constrained or not")
def test_rematerialized_layers_are_constrained(mlp, data):
    with keras.RematScope(mode="full"):
        model = mlp()
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.fit(*data, verbose=0)
    for layer in model.layers:
        assert dense.norm(layer.kernel) == pytest.approx(1.0, rel=1e-3)  # as in C2


@pytest.mark.parametrize("jit_compile", {"tensorflow": [False, True], "jax": [True], "torch": [False]}[BACKEND])
def test_a_penalty_a_constraint_and_a_monitor_go_together(data, jit_compile):
    penalty = SpectralRegularizer(0.1, power_iterations=100)  # enough to settle: the first two values are 1.6 % apart
    layer = keras.layers.Dense(4, kernel_regularizer=penalty, kernel_constraint=opnorm.MaxSpectralNorm(0.5))
    model = keras.Sequential([keras.Input((12,)), layer])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=jit_compile)
    model.fit(*data, batch_size=16, verbose=0, callbacks=[SpectralMonitor(every=1)])
    assert dense.norm(layer.kernel) <= 0.5 * (1 + 1e-3)  # as in C2
    assert dense.array(model.losses[0]) == pytest.approx(0.05 * dense.norm(layer.kernel) ** 2, rel=1e-3)  # sigma's 7e-4


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is PyTorch's")
def test_a_traced_training_step_is_constrained(mlp, data):
    import torch

    model = mlp()
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    forward = torch.compile(model, backend="eager")
    x, y = map(torch.tensor, data)
    for _ in range(3):
        model.zero_grad()
        torch.mean((forward(x) - y) ** 2).backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in model.trainable_weights], model.trainable_weights)
    for layer in model.layers:
        assert dense.norm(layer.kernel) == pytest.approx(1.0, rel=1e-3)  # as in C2
