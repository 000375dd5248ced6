"""The examples do what they say, and opnorm.tf1 says what is missing where it cannot work."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BLOCK = "import sys; sys.modules['tf_keras'] = None; "  # as if it were not installed


def run(code, legacy="1"):
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": legacy}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_the_recipe_in_circulation_fails_where_opnorm_reaches_the_target(capsys):
    rows = runpy.run_path(str(EXAMPLES / "failures" / "tf1_recipe.py"))["main"]()
    outcome = {(row.constraint, row.widths): row for row in rows}
    assert len(outcome) == 4
    assert max(outcome["the recipe", (32, 32, 32)].sigmas) > 1.1
    assert "Trying to share variable layer_2_u/layer_2_u" in outcome["the recipe", (32, 16, 8)].error
    for widths in [(32, 32, 32), (32, 16, 8)]:
        np.testing.assert_allclose(outcome["opnorm.tf1", widths].sigmas, 1, rtol=1e-2)  # C22
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_example_learns_the_digits_with_every_layer_at_its_target(capsys):
    sigmas, accuracy = runpy.run_path(str(EXAMPLES / "tf1_dense.py"))["main"]()
    np.testing.assert_allclose(sigmas, 2, rtol=1e-2)  # C22
    assert len(sigmas) == 4
    assert accuracy > 0.9
    assert "spectral norm 2.0" in capsys.readouterr().out


def test_training_with_tf1_layers_never_imports_keras_3():
    code = """
import sys
import tensorflow as tf, opnorm
with tf.Graph().as_default():
    layer = tf.compat.v1.layers.dense(tf.ones([2, 3]), 4, kernel_constraint=opnorm.tf1.SpectralNorm())
    tf.compat.v1.train.AdamOptimizer().minimize(tf.reduce_sum(layer))
assert "tf_keras" in sys.modules
assert "keras" not in sys.modules
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("before", "legacy"), [("", "0"), (BLOCK, "1")], ids=["the variable is not set", "tf_keras is not installed"]
)
def test_without_legacy_layers_the_error_says_what_to_install_and_set(before, legacy):
    result = run(f"{before}import opnorm; opnorm.tf1.SpectralNorm()", legacy)
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: `opnorm.tf1` found no legacy layers")
    assert "pip install tf_keras" in message
    assert "set the environment variable TF_USE_LEGACY_KERAS=1" in message


def test_tf_keras_by_its_own_name_needs_no_environment_variable():
    result = run("import opnorm, tf_keras; tf_keras.layers.Dense(3, kernel_constraint=opnorm.tf1.SpectralNorm())", "0")
    assert result.returncode == 0, result.stderr
