"""Saved and restored: what continues is what was interrupted, on the same backend or another."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from dense import array, norm

import opnorm
from opnorm.keras.slots import state_of

LIVING = {"power_iterations": 1, "warmup_iterations": 0}  # without warm-up a lost vector shows in every later step
SAME = 1e-6  # the design's: the same arithmetic in the same order
FIRST = 0.02  # the design's bound for a first update from a random vector, here one after new weights


def kernels(model):
    return [layer.kernel for layer in model.layers]


def states(model):
    return [array(state_of(model.optimizer, kernel)) for kernel in kernels(model)]


def compiled(model):
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def trained(model, data, steps=5):
    for _ in range(steps):
        model.train_on_batch(*data)
    return model


def test_a_saved_model_continues_as_if_never_interrupted(mlp, data, tmp_path):
    model = trained(compiled(mlp(opnorm.SpectralNorm(**LIVING))), data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(states(model), states(loaded), strict=True):
        assert np.array_equal(ours, theirs)
    for _ in range(5):
        trained(model, data, 1)
        trained(loaded, data, 1)
        for ours, theirs in zip(kernels(model), kernels(loaded), strict=True):
            assert array(theirs) == pytest.approx(array(ours), abs=SAME)


def test_a_loaded_model_is_constrained_by_fit(mlp, data, tmp_path):
    compiled(mlp(opnorm.SpectralNorm(**LIVING))).save(tmp_path / "model.keras")  # saved before its first step
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert min(norm(kernel) for kernel in kernels(loaded)) > 2
    loaded.fit(*data, batch_size=16, epochs=10, verbose=0)
    assert [norm(kernel) for kernel in kernels(loaded)] == pytest.approx([1, 1], abs=1e-3)  # as after any training


def load_a_weights_file(model, other, path):
    other.save_weights(path / "w.weights.h5")  # without optimizer variables, or with those of an unconstrained training
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):  # Keras's own, and true
        model.load_weights(path / "w.weights.h5")


def load_a_file_of_an_unconstrained_training(model, other, path):
    load_a_weights_file(model, compiled(other), path)


def set_the_weights(model, other, path):
    model.set_weights(other.get_weights())


@pytest.mark.parametrize("load", [load_a_weights_file, load_a_file_of_an_unconstrained_training, set_the_weights])
def test_weights_without_their_vectors_are_constrained_by_the_next_update(mlp, data, tmp_path, load):
    model = trained(compiled(mlp(width=128)), data)
    stale = states(model)
    other = mlp(constrained=False, width=128)
    other.set_weights([np.random.default_rng(7).standard_normal(v.shape) for v in other.weights])
    load(model, other, tmp_path)
    wide = array(kernels(model)[0])
    assert np.linalg.norm(wide @ stale[0][0]) < 0.7 * norm(wide)  # the old vector knows nothing of the new kernel
    trained(model, data, 1)
    for kernel in kernels(model):
        assert 1 - 1e-3 <= norm(kernel) <= 1 + FIRST


CONTINUE = """
import sys
import numpy as np
import opnorm
import keras

folder, source = sys.argv[1:]
data = np.load(folder + "/data.npz")
model = keras.models.load_model(folder + "/model.keras", compile=source != "torch")
if source == "torch":  # Keras 3.15 writes PyTorch's own optimizer class into the file, which no other backend can run
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder + "/model.weights.h5")
for _ in range(5):
    model.train_on_batch(data["x"], data["y"])
kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers]
np.savez(folder + "/continued.npz", *kernels, backend=keras.backend.backend())
"""
ELSEWHERE = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}[keras.backend.backend()]


@pytest.mark.skipif(find_spec(ELSEWHERE) is None, reason=f"needs {ELSEWHERE} installed beside this backend")
def test_a_file_continues_on_another_backend(mlp, data, tmp_path):
    model = trained(compiled(mlp(opnorm.SpectralNorm(**LIVING))), data)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    np.savez(tmp_path / "data.npz", x=data[0], y=data[1])
    source = str(Path(opnorm.__file__).parents[1])
    environment = {**os.environ, "KERAS_BACKEND": ELSEWHERE, "PYTHONPATH": source}
    command = [sys.executable, "-c", CONTINUE, str(tmp_path), keras.backend.backend()]
    subprocess.run(command, env=environment, check=True, timeout=300)
    continued = np.load(tmp_path / "continued.npz")
    assert continued["backend"] == ELSEWHERE
    trained(model, data)
    for index, kernel in enumerate(kernels(model)):
        # The design's 1e-4 for 20 steps on two backends. A fresh vector would be off by tens of percent here.
        assert continued[f"arr_{index}"] == pytest.approx(array(kernel), abs=1e-4)
