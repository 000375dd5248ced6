"""`params + updates` satisfies the rule, in whatever optax and JAX put around the transformation."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pytrees import gradient, norms, stepped, two_layers, values

import opnorm.jax as oj

RULES = {
    "SpectralNorm": (oj.SpectralNorm(2.0), lambda s, raw: abs(s[0] - 2) < 2e-3),
    "MaxSpectralNorm": (oj.MaxSpectralNorm(2.0), lambda s, raw: abs(s[0] - min(raw[0], 2)) < 2e-3),
    "SpectralClip": (oj.SpectralClip(2.0), lambda s, raw: np.allclose(s, np.minimum(raw, 2), atol=1e-5)),
    "Orthogonal": (oj.Orthogonal(), lambda s, raw: np.allclose(s, 1, atol=1e-5)),
}


def sgd(rule=None, **kwargs):
    return optax.chain(optax.sgd(0.1), oj.constrain(rule or oj.SpectralNorm(), **kwargs))


@pytest.mark.parametrize("name", RULES)
def test_parameters_plus_updates_satisfy_the_rule_in_the_first_step(name):
    rule, holds = RULES[name]
    params = two_layers()
    optimizer = sgd(rule)
    updates, _ = optimizer.update(gradient(params), optimizer.init(params), params)
    new, raw = optax.apply_updates(params, updates), stepped(optax.sgd(0.1), params, optax.sgd(0.1).init(params))[0]
    for layer in params:
        assert holds(values(new[layer]["kernel"]), values(raw[layer]["kernel"]))
        np.testing.assert_array_equal(new[layer]["bias"], raw[layer]["bias"])


def test_twenty_steps_in_one_scan_keep_every_kernel_at_its_norm_and_move_the_vectors():
    optimizer = optax.chain(optax.adam(1e-2), oj.constrain(oj.SpectralNorm(0.9)))
    params = two_layers()
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state):
        def body(carry, _):
            new = stepped(optimizer, *carry)
            return new, (new[0]["first"]["kernel"], new[0]["second"]["kernel"])

        return jax.lax.scan(body, (params, state), None, 20)

    before = jax.tree.map(np.asarray, state[-1].vectors)
    (_, state), kernels = train(params, state)
    for several in kernels:
        for kernel in several:
            assert abs(values(kernel)[0] - 0.9) < 1e-3
    assert not np.allclose(before["first.kernel"], state[-1].vectors["first.kernel"], atol=1e-2)


def test_models_under_vmap_are_constrained_each_by_itself():
    optimizer = sgd()
    models = jax.vmap(two_layers)(jnp.arange(3))
    states = jax.vmap(optimizer.init)(models)
    several, _ = jax.jit(jax.vmap(partial(stepped, optimizer)))(models, states)
    for i in range(3):
        np.testing.assert_allclose(norms(jax.tree.map(lambda x, i=i: x[i], several)), 1, atol=1e-3)
    assert len({float(x) for x in several["first"]["kernel"][:, 0, 0]}) == 3


def test_accumulated_gradients_change_kernels_in_real_updates_only():
    optimizer = optax.MultiSteps(sgd(), every_k_schedule=2)
    params = two_layers()
    step = jax.jit(partial(stepped, optimizer))
    half, state = step(params, optimizer.init(params))
    np.testing.assert_array_equal(half["first"]["kernel"], params["first"]["kernel"])
    whole, _ = step(half, state)
    np.testing.assert_allclose(norms(whole), 1, atol=1e-3)


def test_a_step_that_is_not_finite_is_skipped_whole():
    optimizer = optax.apply_if_finite(sgd(), 5)
    params = two_layers()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    updates, skipped = update(jax.tree.map(lambda x: x + jnp.nan, params), state, params)
    assert all(not np.any(x) for x in jax.tree.leaves(updates))
    for old, new in zip(*map(jax.tree.leaves, (state.inner_state, skipped.inner_state)), strict=True):
        np.testing.assert_array_equal(old, new)
    updates, _ = update(gradient(params), skipped, params)
    np.testing.assert_allclose(norms(optax.apply_updates(params, updates)), 1, atol=1e-3)


def test_parts_of_a_model_have_rules_of_their_own():
    inner = {"norm": sgd(oj.SpectralNorm(0.5)), "free": optax.sgd(0.1)}
    optimizer = optax.multi_transform(inner, {"first": "norm", "second": "free"})
    params = two_layers()
    new, _ = stepped(optimizer, params, optimizer.init(params))
    free, _ = stepped(optax.sgd(0.1), params, optax.sgd(0.1).init(params))
    assert abs(norms(new)[0] - 0.5) < 1e-3
    np.testing.assert_array_equal(new["second"]["kernel"], free["second"]["kernel"])


def test_a_table_of_the_whole_model_serves_a_part_of_it():
    table = oj.geometry(two_layers())
    inner = {"norm": sgd(geometry=table), "free": optax.sgd(0.1)}
    optimizer = optax.multi_transform(inner, {"first": "norm", "second": "free"})
    new, _ = stepped(optimizer, two_layers(), optimizer.init(two_layers()))
    assert abs(norms(new)[0] - 1) < 1e-3


def test_a_learning_rate_may_be_injected():
    def made(rate):
        return optax.chain(optax.sgd(rate), oj.constrain(oj.SpectralNorm()))

    optimizer = optax.inject_hyperparams(made)(0.1)
    params = two_layers()
    state = optimizer.init(params)
    state.hyperparams["rate"] = jnp.asarray(0.5)
    np.testing.assert_allclose(norms(stepped(optimizer, params, state)[0]), 1, atol=1e-3)


def test_a_kernel_in_the_ball_gets_its_update_bit_for_bit():
    params = two_layers()
    new, _ = stepped(sgd(oj.MaxSpectralNorm(100.0)), params, sgd(oj.MaxSpectralNorm(100.0)).init(params))
    raw, _ = stepped(optax.sgd(0.1), params, optax.sgd(0.1).init(params))
    jax.tree.map(np.testing.assert_array_equal, new, raw)


def test_training_goes_on_from_saved_leaves_as_if_nothing_had_been():
    optimizer = sgd()
    once = stepped(optimizer, two_layers(), optimizer.init(two_layers()))
    leaves, structure = jax.tree.flatten(once)
    loaded = structure.unflatten(pickle.loads(pickle.dumps([np.asarray(leaf) for leaf in leaves])))
    jax.tree.map(np.testing.assert_array_equal, stepped(optimizer, *once), stepped(optimizer, *loaded))


def test_fresh_vectors_for_trained_kernels_are_warmed_up_in_their_first_update():
    optimizer = sgd()
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((40, 40)), "float32")}
    updates, _ = optimizer.update({"w": 0 * params["w"]}, optimizer.init(params), params)
    assert values(optax.apply_updates(params, updates)["w"])[0] < 1.001


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_half_precision_kernels_keep_float32_vectors(kind):
    params = jax.tree.map(lambda x: x.astype(kind), two_layers())
    optimizer = sgd()
    new, state = stepped(optimizer, params, optimizer.init(params))
    assert {x.dtype.name for x in jax.tree.leaves(new)} == {kind}
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"float32"}
    np.testing.assert_allclose(norms(jax.tree.map(lambda x: x.astype("float32"), new)), 1, atol=1e-2)


def test_kernels_without_an_update_are_frozen():
    params = two_layers()
    optimizer = oj.constrain(oj.SpectralNorm())
    updates = {"first": {"kernel": None, "bias": None}, "second": jax.tree.map(jnp.zeros_like, params["second"])}
    updates, state = optimizer.update(updates, optimizer.init(params), params)
    assert updates["first"]["kernel"] is None
    assert abs(values(params["second"]["kernel"] + updates["second"]["kernel"])[0] - 1) < 1e-3
    assert set(state.vectors) == {"first.kernel", "second.kernel"}


def test_zero_kernels_stay_zero_and_are_constrained_once_they_are_not():
    optimizer = oj.constrain(oj.SpectralNorm())
    params = {"w": jnp.zeros((6, 10))}
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert not np.any(updates["w"])
    updates, _ = optimizer.update({"w": two_layers()["first"]["kernel"]}, state, params)
    assert abs(values(updates["w"])[0] - 1) < 1e-3


@pytest.mark.parametrize("name", RULES)
def test_a_kernel_far_outside_its_ball_comes_into_it_in_a_few_updates_and_does_not_vanish(name):
    rule, _ = RULES[name]
    params = {"w": 1e30 * two_layers()["first"]["kernel"]}
    optimizer = oj.constrain(rule)
    state, update, still = optimizer.init(params), jax.jit(optimizer.update), {"w": jnp.zeros((6, 10))}
    for _ in range(7):
        updates, state = update(still, state, params)
        params = optax.apply_updates(params, updates)
    assert values(params["w"])[0] == pytest.approx(rule.ball((6, 10)), rel=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_a_kernel_without_entries_is_passed_over(name):
    params = {"none": jnp.zeros((0, 5)), "some": two_layers()["first"]["kernel"]}
    optimizer = oj.constrain(RULES[name][0])
    updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    assert new["none"].shape == (0, 5)
    assert RULES[name][1](values(new["some"]), values(params["some"]))
    assert "none" not in state.vectors


def test_stacked_layers_have_a_norm_each():
    table = oj.geometry({"w": jnp.ones((3, 4, 5))}, kernels={"w": oj.KernelGeometry(rank=2)})
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4, 5))}
    np.testing.assert_allclose(
        [values(one)[0] for one in oj.project(params, oj.SpectralNorm(), geometry=table)["w"]], 1, atol=1e-3
    )


def test_the_rule_of_a_convolution_is_that_of_what_slides():
    from opnorm import Convolution, spectral_norm

    params = {"conv": {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 4))}}
    optimizer = oj.constrain(oj.SpectralNorm(operator="convolution"), oj.geometry(params))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    new = np.asarray(optax.apply_updates(params, updates)["conv"]["kernel"])
    bounds = spectral_norm(Convolution(new))
    assert bounds.lower <= 1 + 1e-2
    assert bounds.upper >= 1 - 1e-2
