"""Norms by shape, by schedules and from `inject_hyperparams`, singular values with a lower end, and Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import opnorm.jax as oj

SHAPES = {"first": (8, 32), "second": (32, 4)}


def params():
    random = np.random.default_rng(0)
    return {name: {"kernel": jnp.asarray(random.standard_normal(shape), "float32")} for name, shape in SHAPES.items()}


def values(tree, name):
    return np.linalg.svd(np.asarray(tree[name]["kernel"], "float64"), compute_uv=False)


def by_shape(name):
    rows, columns = SHAPES[name]
    return (columns / rows) ** 0.5


def loss(tree):
    return jnp.mean(jnp.tanh(jnp.linspace(-1, 1, 8) @ tree["first"]["kernel"]) @ tree["second"]["kernel"]) ** 2


def steps(optimizer, count):
    """Yield the parameters after each step, and how often the step has been traced."""
    traced = []

    @jax.jit
    def step(tree, state):
        traced.append(1)
        updates, state = optimizer.update(jax.grad(loss)(tree), state, tree)
        return optax.apply_updates(tree, updates), state

    tree, state = params(), optimizer.init(params())
    for _ in range(count):
        tree, state = step(tree, state)
        yield tree, len(traced)


SCHEDULE = optax.exponential_decay(2.0, 1, 0.8)
HELD = {
    "schedule": lambda: oj.constrain(oj.SpectralNorm(SCHEDULE)),
    "clipped": lambda: oj.constrain(oj.SpectralClip(SCHEDULE)),
    "injected": lambda: optax.inject_hyperparams(lambda value: oj.constrain(oj.SpectralNorm(value)))(value=SCHEDULE),
}


@pytest.mark.parametrize("name", HELD)
def test_a_schedule_is_followed_in_one_traced_step(name):
    optimizer = optax.chain(optax.sgd(1e-4), HELD[name]())
    for count, (tree, traced) in enumerate(steps(optimizer, 4)):
        norms = [values(tree, one)[0] for one in SHAPES]
        np.testing.assert_allclose(norms, SCHEDULE(count), rtol=1e-3 if count else 2e-2)  # C5
        assert traced == 1


def test_the_state_counts_the_steps_of_a_schedule_only():
    held, free = oj.constrain(oj.SpectralNorm(SCHEDULE)), oj.constrain(oj.SpectralNorm())
    assert int(held.init(params()).step) == 0
    assert free.init(params()).step is None


def test_each_kernel_has_the_norm_of_its_own_shape_and_both_ends_are_held():
    made = oj.project(params(), oj.SpectralClip("rms", min_value="0.5 rms"))
    for name in SHAPES:
        found = values(made, name) / by_shape(name)
        assert 0.5 * 0.999 <= found.min() <= found.max() <= 1.0001
    stack = {"experts": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 18)), "float32")}}
    table = oj.geometry(stack, kernels={"experts.kernel": oj.KernelGeometry(rank=2)})
    made = oj.project(stack, oj.SpectralNorm("rms"), table)["experts"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(made, 2, axis=(1, 2)), 1.5, rtol=1e-3)


def test_projecting_at_once_wants_the_step_of_a_schedule():
    with pytest.raises(ValueError, match="`step` must be given"):
        oj.project(params(), oj.SpectralNorm(SCHEDULE))
    made = oj.project(params(), oj.SpectralNorm(SCHEDULE), step=2)
    assert values(made, "first")[0] == pytest.approx(2 * 0.8**2, rel=1e-3)


def test_a_cap_holds_after_each_step_of_muon_by_one_geometry():
    muon = optax.contrib.muon(0.3, muon_weight_dimension_numbers=oj.dimension_numbers)
    norms = []
    for tree, _ in steps(optax.chain(muon, oj.constrain(oj.MaxSpectralNorm("rms"))), 8):
        norms.append([values(tree, name)[0] / by_shape(name) for name in SHAPES])
    assert np.max(norms) <= 1.02  # C5: of the first, cold update
    assert np.max(norms[1:]) <= 1.001
