"""Wrapped layers on several devices: each has the same kernels and vectors, and calls with what one device would."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from dense import norm

import opnorm

BACKEND = keras.backend.backend()
EXACT = 1e-3  # the design's tolerance
SAME = 1e-5  # the design's: sums over the batch come in another order
LAYERS = "wide", "last"

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="Keras 3.15 distributes on TensorFlow and JAX")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that trains in a process of its own; what it has trained once it remembers."""
    folder, done = tmp_path_factory.mktemp("trained"), {}

    def trained(way):
        if way not in done:
            file = folder / f"{way}.npz"
            source = str(Path(opnorm.__file__).parents[1])
            devices = "" if way == "single" else "--xla_force_host_platform_device_count=4"
            environment = {**os.environ, "PYTHONPATH": source, "XLA_FLAGS": devices}
            script = Path(__file__).with_name("wrapped_replicas.py")
            subprocess.run([sys.executable, str(script), way, str(file)], env=environment, check=True, timeout=300)
            done[way] = np.load(file)
        return done[way]

    return trained


def copies(trained, name):
    return [trained[key] for key in trained.files if key.startswith(f"{name}_copy")]


def assert_normalized(trained):
    for layer in LAYERS:
        applied, vectors = trained[f"{layer}_applied"], trained[f"{layer}_vectors"]
        assert norm(trained[f"{layer}_kernel"]) > 1.1  # what is stored is not what is applied
        assert norm(applied) == pytest.approx(1, abs=EXACT)
        # One iteration in each step, from a random start: only vectors that every step hands on find the norm.
        reached = np.linalg.norm(applied.reshape(-1, applied.shape[-1]) @ vectors[0])
        assert reached == pytest.approx(1, abs=EXACT)


def assert_as_on_one_device(trained, alone):
    for layer in LAYERS:
        for kind in ("kernel", "applied"):
            np.testing.assert_allclose(trained[f"{layer}_{kind}"], alone[f"{layer}_{kind}"], atol=SAME)


def assert_replicated(trained, kinds, devices):
    for name in [f"{layer}_{kind}" for layer in LAYERS for kind in kinds]:
        assert len(copies(trained, name)) == devices
        for copy in copies(trained, name):
            np.testing.assert_array_equal(copy, trained[name])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
def test_mirrored_replicas_of_wrapped_layers_train_as_one_device(run):
    trained = run("mirrored")
    assert_normalized(trained)
    assert_as_on_one_device(trained, run("single"))
    assert_replicated(trained, ("kernel", "vectors"), devices=2)


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution")
def test_data_parallel_replicas_of_wrapped_layers_train_as_one_device(run):
    trained = run("data_parallel")
    assert_normalized(trained)
    assert_as_on_one_device(trained, run("single"))
    assert_replicated(trained, ("kernel", "vectors"), devices=4)


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution")
def test_wrapped_kernels_split_over_devices_are_normalized_as_a_whole(run):
    trained = run("model_parallel")
    assert [copy.shape for copy in copies(trained, "wide_kernel")] == [(3, 4, 4)] * 4  # it is split
    assert_normalized(trained)
    assert_as_on_one_device(trained, run("single"))
    assert_replicated(trained, ("vectors",), devices=4)  # though the kernel's pattern in the layout map fits them too
