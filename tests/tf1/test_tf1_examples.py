"""The examples do what they say, and opnorm.tf1 says what is missing where it cannot work."""

import doctest
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import opnorm

v1 = tf.compat.v1
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


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


def assert_says_what_to_do(message):
    assert message.startswith("`opnorm.tf1` found no legacy layers")
    assert "pip install tf_keras" in message
    assert "set the environment variable TF_USE_LEGACY_KERAS=1" in message


def test_without_tf_keras_the_error_says_what_to_install_and_set(monkeypatch):
    assert opnorm.tf1.SpectralNorm() is not v1.layers.dense  # both are loaded now, if this test runs first too
    monkeypatch.setitem(sys.modules, "tf_keras", None)  # an import of it fails, as if it were not installed
    monkeypatch.delitem(sys.modules, "opnorm.tf1")
    monkeypatch.delattr(opnorm, "tf1")
    with pytest.raises(ImportError) as raised:
        opnorm.tf1.SpectralNorm()
    assert_says_what_to_do(str(raised.value))


def test_without_the_environment_variable_so_it_does_and_importing_tf_keras_by_name_is_enough():
    code = """
import opnorm
try:
    opnorm.tf1.SpectralNorm()
except ImportError as error:
    print(error)
import tf_keras
tf_keras.layers.Dense(3, kernel_constraint=opnorm.tf1.SpectralNorm())
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "0"},
        capture_output=True,
        text=True,
        timeout=300,  # a busy machine takes its time to import TensorFlow
    )
    assert result.returncode == 0, result.stderr
    assert_says_what_to_do(result.stdout)


def test_where_keras_misses_its_backend_the_error_is_the_same():
    code = """
import sys
sys.modules["torch"] = None
import opnorm
try:
    opnorm.tf1.SpectralNorm()
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "0", "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert_says_what_to_do(result.stdout)


def test_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes checkpoints
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tf1.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    exec("".join(blocks), {})


def test_without_a_scaffold_the_old_checkpoint_fails_as_the_page_says(tmp_path):
    def graph(constraint):
        loss = tf.reduce_mean(v1.layers.dense(tf.ones([4, 20]), 8, kernel_constraint=constraint) ** 2)
        return v1.train.AdamOptimizer(1e-2).minimize(loss, global_step=v1.train.get_or_create_global_step())

    with tf.Graph().as_default():
        update = graph(None)
        with v1.train.MonitoredTrainingSession(checkpoint_dir=str(tmp_path)) as session:
            session.run(update)
    with tf.Graph().as_default():
        graph(opnorm.tf1.SpectralNorm())
        with pytest.raises(tf.errors.NotFoundError, match="Key dense/kernel/u not found in checkpoint"):
            v1.train.MonitoredTrainingSession(checkpoint_dir=str(tmp_path))


def test_the_lines_of_the_readme_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n([^`]*?opnorm\.tf1.*?)^```", text, re.DOTALL | re.MULTILINE)
    with tf.Graph().as_default():
        namespace = {"tf": tf, "x": tf.ones([4, 20])}
        exec(compile(block, "README.md", "exec"), namespace)
        update = v1.train.AdamOptimizer(1e-2).minimize(tf.reduce_mean(namespace["x"] ** 2))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(update)
            norms = [np.linalg.norm(kernel, 2) for kernel in session.run(v1.trainable_variables(".*kernel"))]
    np.testing.assert_allclose(norms, [1, 1, 1], rtol=2e-2)  # after a first update


def test_the_recipe_that_names_its_vector_fails_with_the_error_that_readme_and_docs_quote():
    def recipe(w):
        u = v1.get_variable("u", [1, w.shape[-1]], trainable=False)
        return w / tf.norm(tf.matmul(u, w, transpose_b=True))

    error = "Variable u already exists, disallowed. Did you mean to set reuse=True or reuse=tf.AUTO_REUSE in VarScope?"
    for page in ("README.md", "docs/what-you-may-have-tried.md"):
        assert error in " ".join((ROOT / page).read_text(encoding="utf-8").replace("\n> ", "\n").split())
    with tf.Graph().as_default():
        x = tf.ones([4, 20])
        for _ in range(2):
            x = v1.layers.dense(x, 20, kernel_constraint=recipe)
        with pytest.raises(ValueError, match=re.escape(error)):
            v1.train.AdamOptimizer(1e-2).minimize(tf.reduce_mean(x**2))


def test_the_example_of_the_docstring_runs():
    found = doctest.DocTestFinder(recurse=False).find(
        opnorm.tf1.SpectralNorm, "SpectralNorm", globs={"opnorm": opnorm, "tf": tf}
    )
    outcome = [doctest.DocTestRunner().run(test) for test in found]
    assert sum(o.attempted for o in outcome) == 2
    assert sum(o.failed for o in outcome) == 0
