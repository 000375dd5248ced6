"""`opnorm.torch.spectral_normalization`: W / sigma in the forward pass, the gradient through sigma, files of others."""

import copy

import numpy as np
import pytest
import torch
from modules import MODULES, SEPARATE, SLIDING, array, batches, explicit_norm, mlp, norm, weights
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from opnorm.torch import kernels, monitor, spectral_normalization

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")


def normalized(**options):
    model = mlp()
    for part in model:
        if isinstance(part, nn.Linear):
            spectral_normalization(part, **options)
    return model


def original(module):
    return module.parametrizations.weight.original


def vectors(module):
    return module.parametrizations.weight[0].vectors


@pytest.mark.parametrize("name", [*MODULES, "attention"])
def test_each_module_multiplies_with_a_kernel_of_the_norm_that_was_asked_for(name):
    torch.manual_seed(0)
    build, blocks = MODULES[name] if name in MODULES else SEPARATE[name][:2]
    module = build()
    for geometry in kernels(module):
        if isinstance(module, nn.LSTM):
            continue  # PyTorch's own forward of an LSTM knows no parametrizations
        spectral_normalization(module, geometry.name, value=2.0)
        norms = [norm(part) for part in blocks[geometry.name](getattr(module, geometry.name))]
        assert max(norms) == pytest.approx(2.0, rel=1e-3)
        assert min(norms) == pytest.approx(2.0, rel=1e-3) or not geometry.blockwise


@pytest.mark.parametrize("name", SLIDING)
def test_a_convolution_is_normalized_as_what_slides(name):
    torch.manual_seed(0)
    build, shape = SLIDING[name]
    module = spectral_normalization(build(), operator="convolution")
    parametrize.remove_parametrizations(module, "weight")
    assert explicit_norm(module, shape) <= 1.01


def test_the_gradient_is_that_of_the_quotient():
    torch.manual_seed(0)
    layer = spectral_normalization(nn.Linear(6, 5, bias=False), value=1.5).eval()
    direction, x = torch.randn(5, 6, dtype=torch.float64), torch.randn(3, 6)
    layer(x).square().sum().backward()
    step = 1e-6 * direction

    def loss(weight):
        weight = array(weight)
        return np.square(array(x) @ (1.5 * weight / np.linalg.norm(weight, 2)).T).sum()

    weight = original(layer).detach().double()
    wanted = (loss(weight + step) - loss(weight - step)) / 2e-6
    assert float((original(layer).grad.double() * direction).sum()) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("operator", ["matrix", "convolution"])
def test_a_gradient_penalty_and_two_calls_before_one_backward_work(operator):
    critic = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(144, 1))
    for part in (critic[0], critic[3]):
        spectral_normalization(part, operator=operator)
    real, fake = torch.randn(4, 1, 8, 8, requires_grad=True), torch.randn(4, 1, 8, 8)
    score = critic(real).mean() - critic(fake).mean()
    (slope,) = torch.autograd.grad(critic(real).sum(), real, create_graph=True)
    (score + (slope.flatten(1).norm(dim=1) - 1).square().mean()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in critic.parameters())


@pytest.mark.parametrize("rate", [1e-2, 3e-2])
def test_in_training_the_norm_stays_within_two_percent(rate):
    model = normalized()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    off = []
    for images, labels in batches(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        with torch.no_grad():
            off += [abs(norm(part.weight) - 1) for part in model if hasattr(part, "weight")]
        optimizer.step()
    assert max(off) <= 0.02


def test_the_stored_kernel_is_not_written_and_evaluation_writes_nothing():
    model = normalized()
    stored = [original(part).clone() for part in model if hasattr(part, "weight")]
    model(torch.randn(3, 16))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(3, 16))
    monitor(model)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(stored, map(original, model[::2]), strict=True))


def test_reading_the_norms_of_a_model_in_training_moves_nothing():
    model = normalized()
    with torch.no_grad():
        original(model[0]).mul_(torch.rand(24, 16))
    before = vectors(model[0]).clone()
    assert monitor(model)["spectral/0.weight"] == pytest.approx(1.0, rel=1e-3)
    assert torch.equal(vectors(model[0]), before)
    assert model[0].parametrizations.weight[0].training


def test_frozen_kernels_keep_their_vectors():
    layer = spectral_normalization(nn.Linear(6, 5)).requires_grad_(False)
    with torch.no_grad():
        original(layer).mul_(torch.rand(5, 6))
    before = vectors(layer).clone()
    layer(torch.randn(2, 6))
    assert torch.equal(vectors(layer), before)


def test_removing_the_parametrization_bakes_the_normalized_kernel():
    model = normalized(value=0.7).eval()
    x = torch.randn(3, 16)
    wanted = model(x)
    for part in model[::2]:
        parametrize.remove_parametrizations(part, "weight")
    torch.testing.assert_close(model(x), wanted)
    assert type(model[0]) is nn.Linear
    assert [norm(weight) for weight in weights(model)] == pytest.approx([0.7] * 3, rel=1e-3)


def older(module):
    return torch.nn.utils.spectral_norm(module)


FOREIGN = {"parametrization": parametrizations.spectral_norm, "hook": older, "plain": lambda module: module}


@pytest.mark.parametrize("name", FOREIGN)
def test_state_dicts_of_others_load_as_they_are(name):
    torch.manual_seed(1)
    theirs = nn.Sequential(FOREIGN[name](nn.Linear(9, 6)), nn.ReLU())
    ours = nn.Sequential(spectral_normalization(nn.Linear(9, 6)), nn.ReLU()).eval()
    state = theirs.state_dict()
    kernel = next(value for key, value in state.items() if value.shape == (6, 9))
    ours.load_state_dict(state)
    assert torch.equal(original(ours[0]), kernel)
    np.testing.assert_allclose(array(ours[0].weight), array(kernel) / norm(kernel), rtol=1e-3, atol=1e-4)
    layer = spectral_normalization(nn.Linear(9, 6))
    layer.load_state_dict({key.removeprefix("0."): value for key, value in state.items()})  # itself the whole module
    assert torch.equal(original(layer), kernel)
    again = nn.Sequential(spectral_normalization(nn.Linear(9, 6)), nn.ReLU())
    again.load_state_dict(ours.state_dict())
    assert torch.equal(vectors(again[0]), vectors(ours[0]))


def test_a_weight_that_was_replaced_is_normalized_in_evaluation_too():
    layer = spectral_normalization(nn.Linear(40, 30)).eval()
    with torch.no_grad():
        original(layer).copy_(torch.randn(30, 40))
    assert norm(layer.weight) == pytest.approx(1.0, rel=2e-3)
    layer.weight = torch.randn(30, 40)
    assert norm(layer.weight) == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e30])
def test_kernels_of_any_size_are_normalized_and_zero_stays_zero(factor):
    layer = nn.Linear(8, 6)
    with torch.no_grad():
        layer.weight.mul_(factor)
    spectral_normalization(layer)
    layer(torch.randn(2, 8)).sum().backward()
    assert norm(layer.weight) == pytest.approx(1.0 if factor else 0.0, rel=1e-3)
    assert torch.isfinite(original(layer).grad).all()


def test_a_cap_leaves_smaller_kernels_alone():
    layer = nn.Linear(8, 6)
    before = layer.weight.detach().clone()
    spectral_normalization(layer, value=50.0, cap=True)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_keep_theirs(dtype):
    layer = spectral_normalization(nn.Linear(30, 20, dtype=dtype))
    assert layer.weight.dtype == layer(torch.randn(2, 30, dtype=dtype)).dtype == dtype
    assert norm(layer.weight) == pytest.approx(1.0, rel=1e-2 if dtype == torch.bfloat16 else 1e-3)
    half = spectral_normalization(nn.Linear(30, 20)).bfloat16()
    assert norm(half.weight) == pytest.approx(1.0, rel=1e-2)


def test_autocast_leaves_the_search_in_single_precision():
    layer = spectral_normalization(nn.Linear(30, 20))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 30)).dtype == torch.bfloat16
        assert norm(layer.weight) == pytest.approx(1.0, rel=1e-3)
