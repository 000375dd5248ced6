"""equinox: every layer's kernels are the matrices that it applies, outputs first; the truth is the layer itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pytrees import values

import opnorm.jax as oj

eqx = pytest.importorskip("equinox")
nn = eqx.nn

KEY = jax.random.key(0)


def layers():
    return {
        "linear": nn.Linear(6, 4, key=KEY),
        "embedding": nn.Embedding(7, 5, key=KEY),
        "conv": nn.Conv2d(2, 4, 3, stride=2, key=KEY),
        "grouped": nn.Conv2d(4, 6, 3, groups=2, key=KEY),
        "transposed": nn.ConvTranspose2d(3, 4, 3, stride=2, key=KEY),
        "grouped_transposed": nn.ConvTranspose2d(4, 6, 3, groups=2, key=KEY),
        "lstm": nn.LSTMCell(3, 4, key=KEY),
        "stacked": eqx.filter_vmap(lambda key: nn.Linear(3, 3, key=key))(jax.random.split(KEY, 2)),
    }


def largest(blocks):
    return max(values(block.reshape(block.shape[0], -1))[0] for block in blocks)


def test_after_project_every_kernel_has_the_norm_that_its_layer_applies():
    found = oj.project(layers(), oj.SpectralNorm(1.5))
    for name in ("linear", "conv", "transposed"):
        assert largest([found[name].weight]) == pytest.approx(1.5, rel=1e-3), name
    for name in ("grouped", "grouped_transposed"):
        assert largest(jnp.split(found[name].weight, 2)) == pytest.approx(1.5, rel=1e-3), name
    for kernel in (found["embedding"].weight, found["lstm"].weight_ih, found["lstm"].weight_hh):
        assert values(kernel)[0] == pytest.approx(1.5, rel=1e-3)
    for kernel in found["stacked"].weight:
        assert values(kernel)[0] == pytest.approx(1.5, rel=1e-3)
    np.testing.assert_array_equal(found["conv"].bias, layers()["conv"].bias)


def applied(layer, channels):
    """Return the matrix that the layer applies to images of 8 x 8."""
    x = jnp.zeros((channels, 8, 8))
    jacobian = jax.jacobian(layer)(x)
    return jacobian.reshape(-1, x.size)


def test_a_convolution_is_held_as_what_slides():
    chosen = ["conv", "grouped_transposed"]
    found = oj.project(layers(), oj.SpectralNorm(operator="convolution"), partial(oj.geometry, include=chosen))
    for name in chosen:
        norm = values(applied(found[name], found[name].in_channels))[0]
        assert 0.85 < norm < 1.005, name


def test_the_heads_of_attention_have_norms_of_their_own_on_request():
    layer = nn.MultiheadAttention(2, 6, key=KEY)
    found = oj.project(layer, oj.SpectralNorm(blockwise=True), partial(oj.geometry, include="query_proj"))
    for head in jnp.split(found.query_proj.weight, 2):
        assert values(head)[0] == pytest.approx(1, rel=1e-3)
    np.testing.assert_array_equal(found.key_proj.weight, layer.key_proj.weight)


def test_what_other_layers_make_in_the_forward_pass_is_a_row_that_says_so():
    class Mine(eqx.Module):
        weight: jax.Array
        inner: nn.SpectralNorm

    wrapped = nn.SpectralNorm(nn.Linear(3, 3, key=KEY), "weight", key=KEY)
    rows = {row.path: row for row in oj.geometry({"a": nn.Linear(2, 2, key=KEY), "b": Mine(jnp.ones((2, 2)), wrapped)})}
    assert "register the layer's type" in rows["b.weight"].note
    assert "equinox's SpectralNorm" in rows["b.inner.layer.weight"].note
    assert "b.inner.layer.bias" not in rows
    assert [path for path, row in rows.items() if row.geometry is not None] == ["a.weight"]


def test_a_type_of_ones_own_is_registered():
    class Experts(eqx.Module):
        weight: jax.Array  # (experts, in, out)

    @oj.kernels.register
    def _(layer: Experts):
        return {"weight": oj.KernelGeometry(rank=2)}

    assert repr(oj.geometry(Experts(jnp.ones((3, 4, 5))))).endswith("weight  3 x 4 x 5  axis -1, 3 kernels")


def test_a_model_trains_in_its_ball_with_what_filters_leave_of_it():
    model = nn.MLP(3, 1, 8, 1, key=KEY)
    optimizer = optax.chain(optax.adam(1e-2), oj.constrain(oj.SpectralNorm()))
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    x = jax.random.normal(KEY, (16, 3))

    @eqx.filter_jit
    def step(model, state):
        gradient = eqx.filter_grad(lambda m: jnp.mean((jax.vmap(m)(x) - 2) ** 2))(model)
        updates, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(4):
        model, state = step(model, state)
        for layer in model.layers:
            assert values(layer.weight)[0] == pytest.approx(1, rel=1e-3)
    assert set(state[-1].vectors) == {"layers.0.weight", "layers.1.weight"}
