"""The examples in the docstrings of what needs no Keras run: truth, plain PyTorch, plain JAX."""

import functools
from importlib import import_module
from types import SimpleNamespace

import docstrings
import numpy as np
import pytest

import opnorm

TRUTH = ["BlockDiagonal", "Convolution", "audit", "diff", "spectral_norm"]


@pytest.mark.parametrize("name", TRUTH)
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert docstrings.examples(getattr(opnorm, name))
    docstrings.run(getattr(opnorm, name), {"opnorm": opnorm, "np": np})


def test_every_function_of_plain_pytorch_has_an_example_that_runs(capsys):
    torch = pytest.importorskip("torch")
    front = import_module("opnorm.torch")

    class MyExperts(torch.nn.Module):
        weight = torch.nn.Parameter(torch.ones(4, 3, 2))

    critic = torch.nn.Linear(3, 2)
    names = {"opnorm": opnorm, "torch": torch, "critic": critic, "MyExperts": MyExperts}
    for name in ("constrain", "kernels", "monitor", "project", "spectral_normalization"):
        assert docstrings.examples(getattr(front, name))
        docstrings.run(getattr(front, name), names | {"wandb": SimpleNamespace(log=dict)})


def test_every_function_of_plain_jax_has_an_example_that_runs():
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    front = import_module("opnorm.jax")

    class MyExperts: ...

    params = {"body": {"kernel": jax.numpy.ones((3, 2))}, "head": {"kernel": jax.numpy.ones((2, 1))}}
    names = {"opnorm": opnorm, "jax": jax, "optax": optax, "params": params, "model": params, "MyExperts": MyExperts}
    names["functools"] = functools
    for name in ("constrain", "dimension_numbers", "geometry", "kernels", "normalized", "project"):
        assert docstrings.examples(getattr(front, name))
        docstrings.run(getattr(front, name), names | {"kernel": params["body"]["kernel"]})


@pytest.mark.parametrize("package", ["lightning", "transformers"])
def test_the_callbacks_have_an_example_that_runs(package):
    pytest.importorskip("torch")
    callback = pytest.importorskip(f"opnorm.torch.{package}").SpectralMonitor
    library = SimpleNamespace(
        Trainer=lambda *model, callbacks: callbacks
    )  # a real one: tests/torch/test_torch_callbacks
    docstrings.run(callback, {"opnorm": opnorm, package: library, "model": None})
