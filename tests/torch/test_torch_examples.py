"""The scripts in plain PyTorch, in short, as a user runs them; what they write, against PyTorch's own numbers."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import opnorm

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, folder):
    """Return what `script --short` prints, and the names of what it leaves in the folder."""
    command = [sys.executable, EXAMPLES / f"{script}.py", "--short", "--output", folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, {path.name for path in folder.iterdir()}


def test_the_critics_are_a_table_and_two_pictures(tmp_path):
    printed, files = run("wgan_torch", tmp_path / "new" / "wgan")
    assert files == {"critics.png", "distances.png"}
    for name in ("nothing", "opnorm.torch.SpectralNorm", "opnorm.torch.Orthogonal"):
        assert f" {name} " in printed


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    printed, files = run("lora_diff", folder)
    assert files == {"base.safetensors", "full.safetensors", "rank-2", "rank-8", "changes.png"}
    return printed, folder


def test_the_adapters_are_printed_with_the_norm_of_what_they_add(tuned):
    printed, folder = tuned
    assert "rank 8" in printed
    halves = load_file(folder / "rank-8" / "adapter_model.safetensors")
    rows = {row.name: row for row in opnorm.diff(folder / "base.safetensors", folder / "rank-8").rows}
    for name in ("0", "2", "4"):
        A, B = (halves[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
        true = torch.linalg.matrix_norm(8 / 8 * B @ A, 2).item()  # alpha over rank
        lower, upper = rows[f"{name}.weight"].difference
        assert lower * (1 - 1e-9) <= true <= upper * (1 + 1e-9)  # float64, 256 terms
        assert f"{rows[f'{name}.weight'].difference[1]:.6g}"[:5] in printed


def test_an_adapter_is_added_to_a_weight_that_stays(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = import_module("lora_diff")
    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10))
    before = base[0].weight.detach().clone()
    network = example.with_adapters(base, 2)
    images, labels = torch.rand(40, 6), torch.arange(40) % 10
    example.train(network, (images, labels), 1, 0)
    adapter = network[0].parametrizations["weight"][0]
    added = (network[0].weight - before).detach().numpy()
    np.testing.assert_allclose(added, 8 / 2 * (adapter.B @ adapter.A).detach().numpy(), atol=1e-6)  # float32
    assert np.linalg.matrix_rank(added, tol=1e-5) <= 2
    assert torch.equal(base[0].weight, before)
