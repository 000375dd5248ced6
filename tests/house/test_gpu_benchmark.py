"""The benchmark for GPUs runs on a CPU too, without Keras, and counts what an update makes the host wait for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import opnorm

SOURCE = Path(opnorm.__file__).parents[1]
BENCHMARKS = SOURCE.parent / "benchmarks"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Return the rows of the table that it prints where nobody can import Keras, by framework."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "keras.py").write_text("raise ImportError('the benchmark for GPUs does without Keras')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(SOURCE)])}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick", "--sizes", "small"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines()]
    return {cells[0].split()[0]: dict(zip(head, cells, strict=True)) for cells in body}


def test_both_frameworks_train_with_and_without_a_constraint(rows):
    assert set(rows) == {"torch", "jax"}
    for row in rows.values():
        assert row["kernels"] == "3 of 64 x 64"
        assert float(row["constrained / none"]) > 0


def test_at_rest_an_update_makes_the_host_wait_once_at_most(rows):
    assert float(rows["torch"]["at rest"]) <= 1


def test_the_readme_has_the_place_for_its_table():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert text.index("<!-- gpu:begin -->\n") < text.index("<!-- gpu:end -->")
