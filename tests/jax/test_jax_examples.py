"""The residual flow, in short, as a user runs it; its determinant and its inverse against those of the whole map."""

import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("mlxtend")
    sys.path.insert(0, str(EXAMPLES))
    yield import_module("residual_flow")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def flow(example):
    rule = example.VARIANTS["opnorm.jax.SpectralClip(0.97)"]
    return example.train(rule, example.ink(0), 4, 3, 0, "")


def test_the_flow_is_a_table_and_a_picture(tmp_path):
    pytest.importorskip("mlxtend")
    command = [sys.executable, EXAMPLES / "residual_flow.py", "--short", "--output", tmp_path / "new" / "flow"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in (tmp_path / "new" / "flow").iterdir()} == {"flow.png"}
    *_, free, capped = ran.stdout.splitlines()
    assert free.startswith("nothing ")
    assert float(capped.split()[-1]) <= 0.97**2 * 1.002  # what an update may leave of two
    assert float(capped.split()[-2]) == 1


def test_the_points_lie_where_the_ink_is(example):
    source = example.ink(0)
    points = source.points(np.random.default_rng(0), 20_000)
    assert np.abs(points.mean(0)).max() < 0.03  # four standard errors
    assert np.abs(points.std(0) - 1).max() < 0.03  # as above
    counted = np.bincount(np.flatnonzero(source.chances), minlength=784)
    assert 0 < source.entropy < np.log(counted.sum() / np.prod(source.deviation))  # that of equal ink on its pixels


def test_the_determinant_is_that_of_the_whole_map(example, flow):
    for x in example.ink(0).points(np.random.default_rng(1), 5):
        whole = jax.jacfwd(lambda x: example.forward(flow, x)[0])(x)
        sign, logarithm = np.linalg.slogdet(np.asarray(whole, "float64"))
        assert sign == 1
        assert example.forward(flow, x)[1] == pytest.approx(logarithm, abs=1e-4)  # float32, four factors


def test_the_inverse_brings_points_back(example, flow):
    points = example.ink(0).points(np.random.default_rng(2), 50)
    there = jax.vmap(lambda x: example.forward(flow, x)[0])(points)
    np.testing.assert_allclose(jax.vmap(partial(example.inverse, flow))(there), points, atol=1e-4)  # float32
