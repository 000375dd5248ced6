"""Spectral and weight normalization, and pruning, in PyTorch files: the norm of what the layer applies."""

import numpy as np
import pytest
import torch
from bracketed import brackets, status, weights
from explicit import norm
from safetensors.torch import save_file
from torch.nn.utils import parametrizations, parametrize, prune

from opnorm.auditing.audits import audit
from opnorm.auditing.differences import diff

OLD = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated", "ignore:.*is deprecated in favor of")


def linear():
    return torch.nn.Linear(20, 16)


def square():
    return torch.nn.Linear(16, 16)


def convolution():
    return torch.nn.Conv2d(6, 6, 3, padding=1)


def transposed():
    return torch.nn.ConvTranspose2d(6, 5, 3, padding=1)


def square_transposed():
    return torch.nn.ConvTranspose2d(6, 6, 3, padding=1)


def applied(layer, shape):
    """Return the matrix that a layer applies in evaluation mode, from its own calls."""
    layer.eval()
    basis = torch.eye(int(np.prod(shape))).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros(1, *shape))).reshape(len(basis), -1).double().numpy()


def saved(layer, path, save=torch.save):
    save(layer.state_dict(), path)
    return weights(path)


def trained(layer, wrap, shape, steps):
    with torch.no_grad():
        layer.weight *= 5
    wrap(layer)
    for _ in range(steps):
        layer(torch.randn(3, *shape))
    return layer


@OLD
@pytest.mark.parametrize("wrap", [torch.nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("make", [linear, square])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_spectrally_normalized_layer_has_the_norm_that_it_applies(tmp_path, wrap, make, save):
    layer = trained(make(), wrap, (make().in_features,), 200)
    found = saved(layer, tmp_path / ("a.pt" if save is torch.save else "a.safetensors"), save)
    (row,) = (one for one in found.values() if status(one) == "bounded")
    truth = norm(applied(layer, (layer.in_features,)))
    assert truth == pytest.approx(1, rel=5e-3)
    assert brackets(row)[0].lower == pytest.approx(truth, rel=1e-5)  # PyTorch's float32
    assert {status(one) for one in found.values()} == {"bounded", "skipped"}
    assert all("part of" in one.geometry.reason for key, one in found.items() if key.endswith(("_u", "_v")))


@OLD
@pytest.mark.parametrize("wrap", [torch.nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("make", [convolution, transposed, square_transposed])
def test_the_axis_of_a_normalized_convolution_is_found(tmp_path, wrap, make):
    layer = trained(make(), wrap, (6, 8, 8), 30)
    (row,) = (one for one in saved(layer, tmp_path / "a.pt").values() if status(one) == "bounded")
    layer.eval()
    np.testing.assert_allclose(row.read(), layer.weight.detach().numpy(), rtol=1e-4, atol=1e-6)  # PyTorch's float32
    assert norm(applied(layer, (6, 8, 8))) <= brackets(row)[0].upper


@OLD
def test_an_axis_that_nothing_tells_is_a_reason(tmp_path):
    """The vectors fit both axes and are those of neither."""
    state = {"weight_orig": torch.randn(30, 30), "weight_u": torch.randn(30), "weight_v": torch.randn(30)}
    torch.save(state, tmp_path / "a.pt")
    row = audit(tmp_path / "a.pt").rows[0]
    assert (row.status, row.lower) == ("failed", None)
    assert "which axis" in row.reason


@OLD
@pytest.mark.parametrize("wrap", [torch.nn.utils.weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("make", [linear, convolution])
def test_a_weight_normalized_layer_has_the_norm_that_it_applies(tmp_path, wrap, dim, make):
    layer = wrap(make(), dim=dim)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= 3 * torch.rand(parameter.shape) + 0.5
    found = saved(layer, tmp_path / "a.pt")
    (row,) = (one for one in found.values() if status(one) == "bounded")
    layer(torch.zeros(1, 20) if make is linear else torch.zeros(1, 6, 3, 3))  # the old one computes it in a call
    weight = layer.weight.detach().double().numpy()
    np.testing.assert_allclose(row.read(), weight, rtol=1e-5, atol=1e-7)  # PyTorch's float32
    if make is linear:
        assert brackets(row)[0].lower == pytest.approx(norm(weight), rel=1e-5)
    assert {status(one) for one in found.values()} == {"bounded", "skipped"}


def test_a_pruned_layer_has_the_norm_of_what_is_left(tmp_path):
    layer = linear()
    prune.l1_unstructured(layer, "weight", amount=0.5)
    found = saved(layer, tmp_path / "a.pt")
    truth = norm(layer.weight.detach().double().numpy())
    assert brackets(found["weight_orig"])[0].lower == pytest.approx(truth, rel=1e-6)
    assert status(found["weight_mask"]) == "skipped"


def _normalized_then_pruned(layer):
    prune.l1_unstructured(torch.nn.utils.weight_norm(layer), "weight_v", amount=0.5)


def _pruned_then(wrap):
    def apply(layer):
        prune.l1_unstructured(layer, "weight", amount=0.5)
        wrap(layer, "weight_orig")

    return apply


def _parametrized_then_pruned(layer):
    parametrizations.weight_norm(layer)
    prune.l1_unstructured(layer.parametrizations.weight, "original1", amount=0.5)


@OLD
@pytest.mark.parametrize(
    "twice",
    [
        _normalized_then_pruned,
        _pruned_then(torch.nn.utils.weight_norm),
        _pruned_then(torch.nn.utils.spectral_norm),
        _pruned_then(parametrizations.weight_norm),
        _parametrized_then_pruned,
    ],
)
def test_a_weight_that_is_reparametrized_twice_is_unknown(tmp_path, twice):
    layer = linear()
    twice(layer)
    found = saved(layer, tmp_path / "a.pt")
    assert {status(one) for name, one in found.items() if name != "bias"} == {"unknown"}


class Symmetric(torch.nn.Module):
    def forward(self, weight):
        return weight + weight.T


def test_what_is_parametrized_by_other_code_is_unknown(tmp_path):
    layer = square()
    parametrize.register_parametrization(layer, "weight", Symmetric())
    found = saved(layer, tmp_path / "a.pt")
    assert status(found["parametrizations.weight.original"]) == "unknown"
    orthogonal = saved(parametrizations.orthogonal(square()), tmp_path / "b.pt")
    assert {status(one) for key, one in orthogonal.items() if key != "bias"} == {"unknown"}


@pytest.mark.parametrize("missing", ["weight_g", "weight_v", "weight_u"])
def test_a_part_that_is_missing_makes_the_rest_unknown(tmp_path, missing):
    whole = {"weight_orig": (8, 4), "weight_u": (8,), "weight_v": (4,)}
    whole = whole if missing == "weight_u" else {"weight_v": (8, 4), "weight_g": (8, 1)}
    torch.save({key: torch.randn(shape) for key, shape in whole.items() if key != missing}, tmp_path / "a.pt")
    assert {status(one) for one in weights(tmp_path / "a.pt").values()} == {"unknown"}


@OLD
def test_a_difference_is_of_what_the_layers_apply(tmp_path):
    layers = [trained(linear(), torch.nn.utils.spectral_norm, (20,), 100) for _ in range(2)]
    for i, layer in enumerate(layers):
        torch.save(layer.state_dict(), tmp_path / f"{i}.pt")
    row = next(row for row in diff(tmp_path / "0.pt", tmp_path / "1.pt").rows if row.name == "weight_orig")
    first, second = (applied(layer, (20,)) for layer in layers)
    assert row.difference[0] == pytest.approx(norm(second - first), rel=1e-4)  # PyTorch's float32
