"""`opnorm.torch.constrain`: the rule holds after every step, against a float64 SVD, as the module's own operator."""

import copy

import numpy as np
import pytest
import torch
from modules import array, batches, mlp, norm, step_without_change, train, trained, weights
from torch import nn

from opnorm.torch import (
    MaxSpectralNorm,
    Orthogonal,
    SpectralClip,
    SpectralNorm,
    constrain,
    project,
)
from opnorm.torch.fitting import by_device

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.5),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "Adam, foreach": lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, 1e-2, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-2),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.5, max_iter=4, line_search_fn="strong_wolfe"),
}
RULES = {
    "normalize": (SpectralNorm(0.7), lambda s: 0.7 * s / s[0]),
    "cap": (MaxSpectralNorm(0.7), lambda s: s / max(1.0, s[0] / 0.7)),
    "clip": (SpectralClip(0.7), lambda s: np.minimum(s, 0.7)),
    "orthogonal": (Orthogonal(), np.ones_like),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_every_step_each_kernel_has_its_norm(name):
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    constrain(model, optimizer, SpectralNorm(0.8))
    before = [weight.detach().clone() for weight in weights(model)]
    for _ in train(model, optimizer, steps=8):
        assert [norm(weight) for weight in weights(model)] == pytest.approx([0.8] * 3, rel=1e-3)
    assert all(not torch.equal(*pair) for pair in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_makes_of_singular_values_what_it_says(name):
    rule, change = RULES[name]
    layer = nn.Linear(12, 7)
    u, s, vt = np.linalg.svd(array(layer.weight), full_matrices=False)
    optimizer = step_without_change(layer)
    constrain(layer, optimizer, rule)
    optimizer.step()
    np.testing.assert_allclose(array(layer.weight), u * change(s) @ vt, atol=2e-4)


def test_frozen_kernels_are_left_alone_until_they_train():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    rows = constrain(model, optimizer, SpectralNorm())
    trained(model, optimizer)
    assert torch.equal(model[0].weight, before)
    assert rows[0].note == "frozen: acts once trainable"
    model[0].requires_grad_(True)
    trained(model, optimizer)
    assert norm(model[0].weight) == pytest.approx(1.0, rel=1e-3)


def test_a_kernel_without_gradients_at_first_does_not_disturb_the_optimizer():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    constrain(model, optimizer, SpectralNorm())
    head = list(model[4].parameters())
    for parameter in head:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # the others have none
    assert [norm(weight) for weight in weights(model)] == pytest.approx([1.0] * 3, rel=1e-3)
    trained(model, optimizer)
    assert all({"exp_avg", "spectral_vectors"} <= set(optimizer.state[weight]) for weight in weights(model))


def test_several_groups_and_optimizers_share_a_module():
    model = mlp()
    first = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}], 0.1)
    second = torch.optim.Adam(model[4].parameters(), 1e-2)
    constrain(model, first, SpectralNorm(), exclude="4")
    constrain(model, second, MaxSpectralNorm(0.3), include="4.weight")
    for images, labels in batches(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        first.step()
        second.step()
    assert [norm(weight) for weight in weights(model)[:2]] == pytest.approx([1.0] * 2, rel=1e-3)
    assert norm(model[4].weight) <= 0.3 * (1 + 1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_changes_no_kernel_but_into_its_ball(fused):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, fused=fused)
    constrain(model, optimizer, SpectralNorm())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trained(model, optimizer)
    before = [weight.clone() for weight in weights(model)]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    for weight, one in zip(weights(model), before, strict=True):
        torch.testing.assert_close(weight.detach(), one, rtol=1e-3, atol=1e-5)
    assert scaler.get_scale() == 2.0**9


def test_accumulated_gradients_change_kernels_only_in_steps():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    constrain(model, optimizer, SpectralNorm())
    before = model[0].weight.clone()
    for images, labels in batches(4):
        nn.functional.cross_entropy(model(images), labels).backward()
        assert torch.equal(model[0].weight, before)
    optimizer.step()
    assert norm(model[0].weight) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_vectors_are_float32_whatever_the_kernels_are(dtype):
    model = mlp().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    constrain(model, optimizer, SpectralNorm())
    for images, labels in batches(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.to(dtype)).double(), labels).backward()
        optimizer.step()
    assert all(optimizer.state[weight]["spectral_vectors"].dtype == torch.float32 for weight in weights(model))
    slack = 1e-2 if dtype == torch.bfloat16 else 1e-3  # the kernel itself is rounded
    assert [norm(weight) for weight in weights(model)] == pytest.approx([1.0] * 3, rel=slack)


def test_a_zero_a_broken_and_an_empty_kernel_end_nothing():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight[0, 0] = float("nan")
    optimizer = step_without_change(model)
    constrain(model, optimizer, SpectralNorm())
    optimizer.step()
    assert torch.equal(model[0].weight, torch.zeros(4, 4))
    assert all(torch.isfinite(optimizer.state[one.weight]["spectral_vectors"]).all() for one in model)
    assert norm(model[2].weight) == pytest.approx(1.0, rel=1e-3)


def test_project_brings_an_averaged_copy_into_its_ball():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    constrain(model, optimizer, SpectralNorm(), exclude="4")
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in train(model, optimizer, steps=6):
        average.update_parameters(model)
    average.requires_grad_(False)
    head = average.module[4].weight.clone()
    project(average)
    assert [norm(weight) for weight in weights(average)[:2]] == pytest.approx([1.0] * 2, rel=1e-3)
    assert torch.equal(average.module[4].weight, head)
    project(average, SpectralNorm(3.0))
    assert [norm(weight) for weight in weights(average)] == pytest.approx([3.0] * 3, rel=1e-3)
    project(copy.deepcopy(model))


def test_a_rule_is_a_pure_function_with_state():
    kernel, state = torch.randn(6, 9), None
    rule = SpectralNorm(0.5, seed=3)
    for _ in range(4):
        before = kernel.clone()
        changed, state = rule.update(kernel, state)
        assert torch.equal(kernel, before)
        assert norm(changed) == pytest.approx(0.5, rel=1e-3)
    assert norm(rule.project(kernel)) == pytest.approx(0.5, rel=1e-4)
    assert rule == SpectralNorm(0.5, seed=3)
    assert repr(rule) == "SpectralNorm(value=0.5, seed=3)"


def test_the_table_shows_what_was_done():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
    rows = constrain(model, torch.optim.SGD(model.parameters(), 0.1), SpectralNorm(), exclude="2.weight")
    assert str(rows).splitlines() == [
        "path      shape          operator  constraint            note",
        "0.weight  8 x 3 x 3 x 3  matrix    SpectralNorm(axis=0)",
        "2.weight  2 x 8                                          not selected",
    ]
    assert "<td>0.weight</td>" in rows._repr_html_()
    assert rows[0].shape == (8, 3, 3, 3)
    assert len(rows[:1]) == 1


def test_remove_ends_the_constraint_and_allows_another():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-1)
    rows = constrain(model, optimizer, SpectralNorm())
    trained(model, optimizer)
    rows.remove()
    assert all("spectral_vectors" not in state for state in optimizer.state.values())
    trained(model, optimizer)
    assert norm(model[0].weight) > 1.01
    constrain(model, optimizer, SpectralNorm())
    trained(model, optimizer)
    assert norm(model[0].weight) == pytest.approx(1.0, rel=1e-3)


def test_kernels_of_several_devices_are_changed_device_by_device():
    kernels = [torch.empty(2, 2, device=device) for device in ("cpu", "meta", "cpu", "meta")]
    assert by_device(kernels) == [[0, 2], [1, 3]]
