"""flax: `nnx` and `linen` layers' kernels are the matrices that they apply; the truth is the layer itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pytrees import values

import opnorm
import opnorm.jax as oj

nnx = pytest.importorskip("flax.nnx")
linen = pytest.importorskip("flax.linen")


class Layers(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(6, 4, rngs=rngs)
        self.general = nnx.LinearGeneral((2, 3), (2, 2), axis=(-2, -1), rngs=rngs)
        self.einsum = nnx.Einsum("bhi,hio->bho", (2, 3, 4), rngs=rngs)
        self.embed = nnx.Embed(7, 5, rngs=rngs)
        self.conv = nnx.Conv(2, 4, (3, 3), strides=(2, 1), rngs=rngs)
        self.depthwise = nnx.Conv(3, 6, (3, 3), feature_group_count=3, rngs=rngs)
        self.transposed = nnx.ConvTranspose(3, 4, (3, 3), strides=(2, 2), rngs=rngs)
        self.swapped = nnx.ConvTranspose(3, 4, (3, 3), transpose_kernel=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.lora = nnx.LoRA(4, 2, 4, rngs=rngs)
        self.own = nnx.Param(jnp.ones((2, 2)))


def matrices(model):
    """Return the matrices that the kernels are, by hand; the norm is the largest of each list."""
    return {
        "linear": [model.linear.kernel[...]],
        "general": [model.general.kernel[...].reshape(6, 4)],
        "einsum": list(model.einsum.kernel[...]),
        "embed": [model.embed.embedding[...]],
        "conv": [model.conv.kernel[...].reshape(-1, 4)],
        "depthwise": [k.reshape(9, 2) for k in jnp.split(model.depthwise.kernel[...], 3, axis=-1)],
        "transposed": [model.transposed.kernel[...].reshape(-1, 4)],
        "swapped": [jnp.swapaxes(model.swapped.kernel[...], -1, -2).reshape(-1, 4)],
        "attention.query": [model.attention.query.kernel[...].reshape(6, 6)],
        "attention.out": [model.attention.out.kernel[...].reshape(6, 6)],
    }


def test_after_project_every_kernel_has_the_norm_that_its_layer_applies():
    model = Layers()
    found = oj.project(model, oj.SpectralNorm(1.5))
    for name, several in matrices(found).items():
        assert max(values(matrix)[0] for matrix in several) == pytest.approx(1.5, rel=1e-3), name
    rows = {row.path: row for row in oj.geometry(model)}
    assert {path for path, row in rows.items() if row.geometry is None} == {"own", "lora.lora_a", "lora.lora_b"}
    assert "norm.scale" not in rows


def applied(layer, channels):
    """Return the matrix that the layer applies to images of 8 x 8."""
    x = jnp.zeros((1, 8, 8, channels))
    return jax.jacobian(layer)(x).reshape(-1, x.size)


def test_a_convolution_is_held_as_what_slides():
    chosen = ["conv", "depthwise", "swapped"]
    found = oj.project(Layers(), oj.SpectralNorm(operator="convolution"), partial(oj.geometry, include=chosen))
    for name in chosen:
        layer = getattr(found, name)
        assert 0.85 < values(applied(layer, 2 if name == "conv" else 3))[0] < 1.005, name


def test_an_nnx_model_trains_in_its_ball():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.List([nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
            self.head = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            for layer in self.hidden:
                x = nnx.relu(layer(x))
            return self.head(x)

    model = Model(nnx.Rngs(0))
    table = oj.geometry(model, exclude="head")
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.adam(1e-2), oj.constrain(oj.SpectralNorm(0.9), table)), wrt=nnx.Param
    )
    x = jax.random.normal(jax.random.key(0), (16, 3))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(x) - 2) ** 2))(model))

    for _ in range(3):
        step(model, optimizer)
        for layer in model.hidden:
            assert values(layer.kernel[...])[0] == pytest.approx(0.9, rel=1e-3)
    assert values(model.head.kernel[...])[0] > 0.1


def test_shared_variables_are_constrained_once():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Linear(4, 4, rngs=rngs)
            self.two = nnx.Linear(4, 4, rngs=rngs)
            self.two.kernel = self.one.kernel

    model = Tied(nnx.Rngs(0))
    table = oj.geometry(model)
    assert [(row.path, row.note) for row in table] == [("one.kernel", ""), ("two.kernel", "tied to 'one.kernel'")]
    assert set(oj.constrain(oj.SpectralNorm(), table).init(nnx.state(model, nnx.Param)).vectors) == {"one.kernel"}


def test_a_clone_is_constrained_by_itself_though_it_starts_with_the_same_arrays():
    class Critics(nnx.Module):
        def __init__(self):
            self.one = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.two = nnx.clone(self.one)

    assert list(oj.geometry(Critics()).kernels) == ["one.kernel", "two.kernel"]


def test_muon_and_the_constraint_share_a_table_in_an_nnx_optimizer():
    model = nnx.LinearGeneral(3, (2, 4), rngs=nnx.Rngs(0))
    table = oj.geometry(model)
    numbers = partial(oj.dimension_numbers, geometry=table)
    muon = optax.contrib.muon(0.1, muon_weight_dimension_numbers=numbers)
    optimizer = nnx.Optimizer(model, optax.chain(muon, oj.constrain(oj.SpectralNorm(), table)), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(jnp.ones((2, 3)))))(model))
    assert values(model.kernel[...].reshape(3, 8))[0] == pytest.approx(1, rel=1e-3)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(4, (3, 3), feature_group_count=2)(x)
        x = linen.LayerNorm()(x).reshape(x.shape[0], -1, 4)
        x = linen.MultiHeadDotProductAttention(2)(x)
        scan = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="blocks")(x, None)
        return linen.RNN(linen.OptimizedLSTMCell(3))(x)


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        own = self.param("own", linen.initializers.ones, (4, 4))
        return linen.Dense(4)(x) @ own, None


def test_a_linen_module_tells_its_kernels_from_the_shapes_of_its_inputs():
    x = jax.ShapeDtypeStruct((1, 4, 4, 2), "float32")
    table = oj.geometry(Linen(), x, False)
    found = {row.path: row for row in table}
    assert found["Conv_0.kernel"].geometry.groups == 2
    assert found["MultiHeadDotProductAttention_0.query.kernel"].geometry.axis == (-2, -1)
    assert found["MultiHeadDotProductAttention_0.query.kernel"].geometry.parts == 2
    assert found["blocks.Dense_0.kernel"].geometry.stack(found["blocks.Dense_0.kernel"].shape) == (3,)
    assert found["blocks.own"].geometry is None
    assert sum("OptimizedLSTMCell" in path or "cell" in path for path in table.kernels) == 8
    variables = Linen().init(jax.random.key(0), jnp.ones(x.shape))
    few = oj.geometry(Linen(), x, False, include=["blocks.Dense_0", "Conv_0"])
    projected = oj.project(variables, oj.SpectralNorm(), few)["params"]
    for kernel in projected["blocks"]["Dense_0"]["kernel"]:
        assert values(kernel)[0] == pytest.approx(1, rel=1e-3)
    blocks = jnp.split(projected["Conv_0"]["kernel"], 2, axis=-1)
    assert max(values(block.reshape(-1, 2))[0] for block in blocks) == pytest.approx(1, rel=1e-3)
    np.testing.assert_array_equal(projected["blocks"]["own"], variables["params"]["blocks"]["own"])


def test_what_linen_makes_in_the_forward_pass_is_a_row_that_says_so():
    class Wrapped(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.SpectralNorm(linen.Dense(4))(x, update_stats=False))

    rows = {row.path: row for row in oj.geometry(Wrapped(), jax.ShapeDtypeStruct((1, 3), "float32"))}
    assert [path for path, row in rows.items() if row.geometry is not None] == ["Dense_0.kernel"]
    assert [row.note for row in rows.values()].count(
        "made of other arrays in the forward pass, by flax's SpectralNorm"
    ) == 1


def test_an_nnx_layer_and_its_variable_are_told_from_the_array():
    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`x` must be an array, not a module: hand over its `kernel`"):
        opnorm.spectral_norm(layer)
    for wrong in layer, layer.kernel:
        with pytest.raises(ValueError, match=r"`kernel` must be .* of an nnx variable `\[\.\.\.\]`"):
            oj.SpectralNorm().update(wrong)
    with pytest.raises(ValueError, match=r"`value` must be .*; make the constraint first"):
        oj.SpectralNorm(layer)
    with pytest.raises(TypeError, match=r"`opnorm\.jax\.constrain\(rule\)` take"):
        oj.SpectralNorm()(layer)
    with pytest.raises(ValueError, match=r"`x` must be .* known by now: outside of `jax\.jit`"):
        jax.jit(lambda x: opnorm.spectral_norm(x).upper)(jnp.eye(2))
    with pytest.raises(TypeError, match=r"of a JAX model its arrays by name\. Received: Linear\("):
        opnorm.audit(layer)


def test_linen_modules_that_take_arguments_by_name_and_trees_of_inputs_tell_their_kernels():
    class Named(linen.Module):
        @linen.compact
        def __call__(self, batch, *, train):
            return linen.Dropout(0.5, deterministic=not train)(linen.Dense(2)(batch["x"]))

    batch = {"x": jax.ShapeDtypeStruct((1, 3), "float32")}
    assert list(oj.geometry(Named(), batch, keywords={"train": False}).kernels) == ["Dense_0.kernel"]
    with pytest.raises(ValueError, match=r"`inputs` must be what the module's `init` takes after the key"):
        oj.geometry(Named())


def test_a_mask_over_variables_of_linen_leaves_out_a_part_of_them():
    variables = {"params": {"body": {"kernel": 2 * jnp.eye(3)}, "head": {"kernel": 2 * jnp.eye(3)}}}
    rule = oj.constrain(oj.SpectralNorm(), oj.geometry(variables["params"]))
    masked = optax.masked(rule, {"params": {"body": False, "head": True}})
    assert set(masked.init(variables).inner_state.vectors) == {"head.kernel"}


@pytest.mark.parametrize("model", [nnx.Linear(2, 2, rngs=nnx.Rngs(0)), linen.Dense(2)])
def test_a_model_in_the_place_of_its_geometry_is_refused(model):
    with pytest.raises(ValueError, match=r"`geometry` must be what `opnorm.jax.geometry\(model\)` returned"):
        oj.constrain(oj.SpectralNorm(), model)
