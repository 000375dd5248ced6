"""Norms by shape and by the step, singular values with a lower end, Muon, and the logits of attentions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import opnorm.torch


def singular_values(weight):
    return torch.linalg.svdvals(weight.detach().double()).numpy()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))


def train(module, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.ones(4, 8) + torch.arange(4)[:, None]).square().mean().backward()
        optimizer.step()


def halving(step):
    return 2.0 * 0.5**step


def test_each_kernel_and_each_head_has_the_norm_of_its_own_shape():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)
    opnorm.torch.project(attention, opnorm.torch.SpectralNorm("2 rms", blockwise=True))
    heads = torch.linalg.matrix_norm(attention.in_proj_weight.double().view(6, 4, 8), 2)
    np.testing.assert_allclose(heads.detach(), 2 * (4 / 8) ** 0.5, rtol=1e-3)  # (in, out) = (8, 4)
    module = model()
    opnorm.torch.project(module, opnorm.torch.SpectralNorm("rms"))
    norms = [singular_values(module[i].weight)[0] for i in (0, 2)]
    np.testing.assert_allclose(norms, [2, 8**-0.5], rtol=1e-3)


@pytest.mark.parametrize("kind", [opnorm.torch.SpectralNorm, opnorm.torch.SpectralClip])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_norm_that_is_a_function_follows_the_steps_and_goes_on_in_a_saved_optimizer(kind, optimizer):
    module = model()
    opnorm.torch.project(module, opnorm.torch.SpectralNorm(4.0))  # above all that follows
    steps = optimizer(module.parameters(), 1e-5)
    opnorm.torch.constrain(module, steps, kind(halving))
    for step in range(3):
        train(module, steps)
        assert singular_values(module[0].weight)[0] == pytest.approx(halving(step), rel=1e-3)
    twin = model()
    twin.load_state_dict(module.state_dict())
    resumed = optimizer(twin.parameters(), 1e-5)
    opnorm.torch.constrain(twin, resumed, kind(halving))
    resumed.load_state_dict(copy.deepcopy(steps.state_dict()))
    train(twin, resumed)
    assert singular_values(twin[2].weight)[0] == pytest.approx(halving(3), rel=1e-3)
    logs = opnorm.torch.monitor(twin)
    assert logs["spectral/outside"] == 0
    with torch.no_grad():
        twin[0].weight.mul_(1.1)
    assert opnorm.torch.monitor(twin)["spectral/outside"] == 1  # the ball is that of the last step


def test_a_function_that_returns_no_positive_number_stops_the_step():
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    opnorm.torch.constrain(module, optimizer, opnorm.torch.SpectralNorm(lambda step: 1.0 - step))
    train(module, optimizer)
    with pytest.raises(ValueError, match=r"`value` must be a positive finite number. Received: value=0.0"):
        train(module, optimizer)


def test_projecting_at_once_wants_the_step_of_a_norm_that_needs_it():
    module = model()
    with pytest.raises(ValueError, match="`step` must be given"):
        opnorm.torch.project(module, opnorm.torch.SpectralNorm(halving))
    opnorm.torch.project(module, opnorm.torch.SpectralNorm(halving), step=2)
    assert singular_values(module[0].weight)[0] == pytest.approx(0.5, rel=1e-3)


def test_singular_values_stay_between_both_ends():
    module = model()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    opnorm.torch.constrain(module, optimizer, opnorm.torch.SpectralClip(1.0, min_value=0.5))
    train(module, optimizer, 10)
    for layer in (module[0], module[2]):
        values = singular_values(layer.weight)
        assert 0.5 * 0.999 <= values.min() <= values.max() <= 1.0001


@pytest.mark.parametrize("adjusted", [None, "match_rms_adamw"])
def test_a_cap_holds_after_each_step_of_muon(adjusted):
    module = model()
    matrices = [layer.weight for layer in (module[0], module[2])]
    muon = torch.optim.Muon(matrices, 0.3, adjust_lr_fn=adjusted)  # steps of the size of the cap
    opnorm.torch.constrain(module, muon, opnorm.torch.MaxSpectralNorm("rms"))
    norms = []
    for _ in range(10):
        train(module, muon)
        norms.append([singular_values(weight)[0] for weight in matrices])
    assert np.all(np.array(norms) <= np.array([2, 8**-0.5]) * 1.02)  # C5: of the first, cold update
    assert np.all(np.array(norms)[1:] <= np.array([2, 8**-0.5]) * 1.001)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 5}, {"dtype": torch.bfloat16}], ids=str)
def test_the_monitor_has_the_norm_of_query_times_key_of_the_largest_head(options):
    torch.manual_seed(0)
    module = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, **options)})
    attention = module["attention"]
    fused = attention.in_proj_weight
    several = (attention.q_proj_weight, attention.k_proj_weight) if fused is None else fused.chunk(3)
    query, key = (weight.detach() for weight in several[:2])
    pairs = zip(query.double().view(2, 4, -1), key.double().view(2, 4, -1), strict=True)
    truth = max(float(torch.linalg.matrix_norm(q.T @ k, 2)) for q, k in pairs)
    logs = opnorm.torch.monitor(module, proved=True)
    assert logs["spectral/attention.query_key"] == logs["spectral/query_key"]
    assert truth * (1 - 7e-3) <= logs["spectral/query_key"] <= truth * (1 + 1e-5)  # as of kernels; float32
    lower, upper = (logs[f"spectral_{end}/attention.query_key"] for end in ("lower", "upper"))
    assert lower <= truth * (1 + 1e-12)
    assert truth * (1 - 1e-12) <= upper <= lower * (1 + 1e-5)  # NumPy's rounding, and what a bracket leaves
    assert "spectral/query_key" not in opnorm.torch.monitor(module, include="*.out_proj")
    with torch.no_grad():
        query[0, 0] = torch.nan
    assert np.isnan(opnorm.torch.monitor(module)["spectral/query_key"])
