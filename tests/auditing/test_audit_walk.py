"""The walk through an audit, as a user runs it; the norms in its picture against NumPy's."""

import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import h5py
import numpy as np
import pytest

import opnorm

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    for package in ("cifar-10-model", "silero-vad"):
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")
    folder = tmp_path_factory.mktemp("walk") / "new" / "walk"
    command = [sys.executable, EXAMPLES / "audit_walk.py", "--output", folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, folder


def test_the_walk_prints_three_reports_and_what_the_command_answers_and_draws_them(walked):
    printed, folder = walked
    reports = [line.split("/")[-1] for line in printed.splitlines() if line.startswith("Report on ")]
    assert reports == ["cnn_model.h5 (h5)", "vad.safetensors (safetensors)", "vad.onnx (onnx)"]
    assert "$ opnorm check cnn_model.h5 --max-norm 10 --top 3\nbatch_normalization/gamma: violated: " in printed
    assert "[exit status 1]" in printed
    assert (folder / "norms.png").stat().st_size > 10_000  # axes alone are smaller


def test_the_picture_has_the_matrices_norms(walked, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    path = walked[1] / "cnn_model.h5"
    rows = {row.name: row for row in import_module("audit_walk").bounded(opnorm.audit(path))}
    with h5py.File(path) as file:
        kernel = file["model_weights/dense/dense/kernel:0"][()].astype("f8")
    true = np.linalg.svd(kernel, compute_uv=False)[0]
    assert rows["dense/kernel"].lower <= true <= rows["dense/kernel"].upper
    assert len(rows) == 15  # six convolutions, six normalizations, three dense layers
