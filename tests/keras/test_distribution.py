"""Replicas and shards: every device has the same kernels and vectors, those that one device would have."""

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
TENSORS = "wide_kernel", "wide_u", "last_kernel", "last_u"

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="Keras 3.15 distributes on TensorFlow and JAX")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that trains in a process of its own; what it has trained once it remembers."""
    folder, done = tmp_path_factory.mktemp("trained"), {}

    def trained(way):
        if way not in done:
            file = folder / f"{way}.npz"
            source = str(Path(opnorm.__file__).parents[1])
            devices = "" if way.startswith("single") else "--xla_force_host_platform_device_count=4"
            environment = {**os.environ, "PYTHONPATH": source, "XLA_FLAGS": devices}
            script = Path(__file__).with_name("replicas.py")
            subprocess.run([sys.executable, str(script), way, str(file)], env=environment, check=True, timeout=300)
            done[way] = np.load(file)
        return done[way]

    return trained


def copies(trained, name):
    return [trained[key] for key in trained.files if key.startswith(f"{name}_copy")]


def assert_equal_to_one_device(trained, alone, replicas):
    for name in TENSORS:
        assert len(copies(trained, name)) == replicas
        for copy in copies(trained, name):
            assert np.array_equal(copy, copies(trained, name)[0]), name
            assert copy == pytest.approx(alone[name], abs=SAME), name


def assert_constrained(trained):
    for layer in ("wide", "last"):
        kernel, u = trained[f"{layer}_kernel"], trained[f"{layer}_u"]
        assert norm(kernel) == pytest.approx(1, abs=EXACT)
        assert np.linalg.norm(kernel @ u[0]) == pytest.approx(1, abs=EXACT)  # the vector, too, was trained


@on_tensorflow
@pytest.mark.parametrize("suffix", ["", "_scaled"], ids=["plain", "with a loss scale"])
def test_mirrored_replicas_train_as_one_device(run, suffix):
    trained = run("mirrored" + suffix)
    assert_constrained(trained)
    assert_equal_to_one_device(trained, run("single" + suffix), replicas=2)


@on_tensorflow
def test_four_mirrored_replicas_train_as_one_device(run):
    trained = run("mirrored_four")
    assert_constrained(trained)
    assert_equal_to_one_device(trained, run("single"), replicas=4)


@on_jax
def test_data_parallel_replicas_train_as_one_device(run):
    trained = run("data_parallel")
    assert_constrained(trained)
    assert_equal_to_one_device(trained, run("single"), replicas=4)


@on_jax
@pytest.mark.parametrize(
    ("way", "shard"),
    [("model_parallel", (12, 4)), ("model_parallel_input", (3, 16)), ("model_parallel_both", (6, 8))],
    ids=["by outputs", "by inputs", "by both"],
)
def test_a_kernel_split_over_devices_has_the_same_norm(run, way, shard):
    trained, alone = run(way), run("single")
    assert [copy.shape for copy in copies(trained, "wide_kernel")] == [shard] * 4  # it is split
    assert [copy.shape for copy in copies(trained, "wide_u")] == [(2, 16)] * 4  # its vector is on every device
    assert_constrained(trained)
    for name in TENSORS:
        assert trained[name] == pytest.approx(alone[name], abs=SAME), name


@on_jax
def test_convolutions_split_over_devices_have_the_same_norms(run):
    trained, alone = run("model_parallel_convolutional"), run("single_convolutional")
    for layer, shape in (("wide", (3, 2, 4)), ("last", (3, 16, 1))):
        assert [copy.shape for copy in copies(trained, f"{layer}_kernel")] == [shape] * 4  # it is split
        vectors = copies(trained, f"{layer}_u")
        assert [copy.shape for copy in vectors] == [alone[f"{layer}_u"].shape] * 4  # its vectors are on every device
        bounds = opnorm.spectral_norm(opnorm.Convolution(trained[f"{layer}_kernel"]), tolerance=1e-3)
        assert bounds.lower <= 1 + 1e-2  # case T7
        assert bounds.upper >= (1 - EXACT if layer == "wide" else 0.95)  # clipped to 0.99, and steps may shrink it
        # The vectors may differ more: where singular values are equal, any mixture of theirs serves.
        assert trained[f"{layer}_kernel"] == pytest.approx(alone[f"{layer}_kernel"], abs=SAME), layer
