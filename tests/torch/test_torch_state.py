"""Where the vectors go: state dicts, copies, pickles, and what is loaded from elsewhere."""

import copy
import gc
import io
import pickle
import weakref
from inspect import signature

import pytest
import torch
from modules import mlp, norm, trained, weights

from opnorm.torch import SpectralNorm, constrain


def made(dtype=torch.float32, rule=SpectralNorm(), seed=0):  # noqa: B008 - rules are frozen
    model = mlp(seed).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    if rule is not None:
        constrain(model, optimizer, rule)
    return model, optimizer


def saved(*states):
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_run_goes_on_from_its_files_as_if_it_had_not_ended():
    model, optimizer = made()
    trained(model, optimizer)
    files = saved(model.state_dict(), optimizer.state_dict())
    trained(model, optimizer, seed=2)
    other, resumed = made(seed=7)
    other.load_state_dict(files[0])
    resumed.load_state_dict(files[1])
    trained(other, resumed, seed=2)
    for one, two in zip(weights(model), weights(other), strict=True):
        assert torch.equal(one, two)


def test_vectors_of_half_precision_kernels_are_loaded_unrounded():
    model, optimizer = made(torch.bfloat16)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    vectors = optimizer.state[model[0].weight]["spectral_vectors"].clone()
    other, resumed = made(torch.bfloat16)
    resumed.load_state_dict(saved(optimizer.state_dict())[0])
    assert torch.equal(resumed.state[other[0].weight]["spectral_vectors"], vectors)


def test_what_an_unconstrained_run_saved_loads_and_the_next_step_finds_the_norms():
    model, optimizer = made(rule=None)
    trained(model, optimizer)
    other, resumed = made(seed=3)
    trained(other, resumed)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    trained(other, resumed, steps=1)
    assert [norm(weight) for weight in weights(other)] == pytest.approx([1.0] * 3, rel=2e-3)


def test_what_a_constrained_run_saved_loads_without_a_constraint():
    model, optimizer = made()
    trained(model, optimizer)
    other, plain = made(rule=None)
    plain.load_state_dict(optimizer.state_dict())
    trained(other, plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_carry_the_vectors_and_are_constrained_anew(copied):
    model, optimizer = made()
    trained(model, optimizer)
    other, second = copied((model, optimizer))
    vectors = optimizer.state[model[0].weight]["spectral_vectors"]
    assert torch.equal(second.state[other[0].weight]["spectral_vectors"], vectors)
    constrain(other, second, SpectralNorm())  # PyTorch gives copies no hooks
    for pair in (model, optimizer), (other, second):
        trained(*pair, seed=2)
    assert all(torch.equal(*pair) for pair in zip(weights(model), weights(other), strict=True))


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # PyTorch 2.6 warns of itself
def test_distributed_checkpoints_hold_the_vectors(tmp_path):
    from torch.distributed.checkpoint import load, save
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = made()
    trained(model, optimizer)
    parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    alone = {"no_dist": True} if "no_dist" in signature(save).parameters else {}  # PyTorch 2.6 finds out by itself
    save(parts, checkpoint_id=tmp_path, **alone)
    trained(model, optimizer, seed=2)
    other, resumed = made(seed=7)
    parts = dict(zip(("model", "optimizer"), get_state_dict(other, resumed), strict=True))
    load(parts, checkpoint_id=tmp_path, **alone)
    set_state_dict(other, resumed, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
    trained(other, resumed, seed=2)
    for one, two in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_another_rule_than_the_file_s_starts_afresh():
    model, optimizer = made()
    trained(model, optimizer)
    other, resumed = made(rule=SpectralNorm(companion=False))
    resumed.load_state_dict(optimizer.state_dict())
    trained(other, resumed)
    assert resumed.state[other[0].weight]["spectral_vectors"].shape[0] == 1
    assert norm(other[0].weight) == pytest.approx(1.0, rel=2e-3)


def test_nothing_is_kept_alive():
    model, optimizer = made()
    trained(model, optimizer)
    left = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer
    gc.collect()
    assert [one() for one in left] == [None, None]


def test_seeds_decide_where_the_search_begins():
    starts = [SpectralNorm(seed=seed).initial_state(torch.ones(5, 4)) for seed in (None, 0, 1)]
    assert (starts[0] == starts[1]).all()
    assert (starts[0] != starts[2]).any()
    assert (SpectralNorm().initial_state(torch.ones(5, 4), index=1) != starts[0]).any()
