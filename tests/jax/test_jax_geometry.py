"""Which leaves of a pytree are kernels, told by names and axes, and how that is shown and refused."""

import subprocess
import sys
from functools import partial
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pytrees import two_layers, values

import opnorm.jax as oj


def shaped(shape, kind="float32"):
    return jax.ShapeDtypeStruct(shape, kind)


NAMES = [
    ("dense.kernel", (4, 5), -1),
    ("linear_1.w", (4, 5), -1),
    ("embed.embedding", (4, 5), -1),
    ("conv2_d.w", (3, 3, 4, 5), -1),
    ("Conv_0.kernel", (3, 4, 5), -1),
    ("attention.query.kernel", (8, 2, 4), (-2, -1)),
    ("attention.out.kernel", (2, 4, 8), -1),
    ("dense.bias", (5,), None),
    ("layers.bias", (3, 5), None),
    ("norm.scale", (3, 5), None),
    ("experts.w", (2, 4, 5), "3 axes do not tell"),
    ("layers.kernel", (12, 512, 8, 64), "4 axes do not tell"),
    ("conv2_d_transpose.w", (3, 3, 4, 5), "transposed"),
    ("transposed_net/~/conv2_d.w", (3, 3, 4, 5), -1),
    ("conv_net/~/batched_linear.w", (3, 4, 5), "3 axes do not tell"),
    ("net/~/depthwise_conv2_d.w", (3, 3, 1, 5), "how many groups"),
    ("dense.lora_a", (4, 2), "one factor"),
]


@pytest.mark.parametrize(("name", "shape", "expected"), NAMES, ids=[name for name, *_ in NAMES])
def test_names_and_axes_tell_which_matrix_a_leaf_is_or_that_they_do_not(name, shape, expected):
    tree = leaf = shaped(shape)
    for key in reversed(name.split(".")):
        tree = {key: tree}
    rows = {row.path: row for row in oj.geometry({"known": shaped((2, 2)), **tree})}
    if expected is None:
        assert name not in rows
    elif isinstance(expected, str):
        assert rows[name].geometry is None
        assert expected in rows[name].note
    else:
        assert rows[name].geometry.axis == expected
        assert rows[name].shape == leaf.shape


def test_a_pattern_says_what_names_do_not():
    tree = {"experts": {"w": shaped((2, 4, 5))}, "w": shaped((4, 5))}
    table = oj.geometry(tree, kernels={"experts.*": oj.KernelGeometry(rank=2)}, exclude="w")
    assert list(table.kernels) == ["experts.w"]
    assert repr(table).splitlines()[1:] == [
        "experts.w  2 x 4 x 5  axis -1, 2 kernels",
        "w          4 x 5                          not selected",
    ]
    assert table._repr_html_().startswith("<table><tr><th>path</th>")


def test_what_may_be_a_kernel_is_warned_of_and_a_table_is_trusted():
    tree = {"experts": jnp.ones((2, 4, 5)), "w": jnp.ones((4, 5))}
    with pytest.warns(UserWarning, match=r"1 arrays that may be kernels are not.*'experts' the first.*print"):
        oj.constrain(oj.SpectralNorm()).init(tree)
    oj.constrain(oj.SpectralNorm(), oj.geometry(tree)).init(tree)


def test_a_guess_is_warned_of_and_a_table_is_trusted():
    tree = {"conv": {"kernel": jnp.ones((3, 3, 1, 4))}}
    with pytest.warns(
        UserWarning, match=r"1 arrays are guessed, 'conv.kernel' the first: taken for an ungrouped.*print"
    ):
        oj.constrain(oj.SpectralNorm()).init(tree)
    oj.constrain(oj.SpectralNorm(), oj.geometry(tree)).init(tree)


@pytest.mark.parametrize(
    ("tree", "options", "message"),
    [
        ({"b": shaped((3,))}, {}, r"`model` must have a kernel.*no array of two axes"),
        ({"x": shaped((2, 3, 4))}, {}, r"`model` must have a kernel.*x: 3 axes do not tell"),
        ({"w": shaped((3, 4), "complex64")}, {}, r"must have real floating-point kernels; 'w' is not.*complex64"),
        ({"w": shaped((3, 4), "int32")}, {}, r"`model` must have a kernel"),
        ({"w": shaped((3, 4))}, {"include": "v"}, r"`include` must match a kernel of the model; it has w"),
        ({"w": shaped((3, 4))}, {"kernels": {"v": oj.KernelGeometry()}}, r"`kernels` must match arrays.*w"),
        ({"w": shaped((3, 4))}, {"kernels": {"w": 1}}, r"`kernels` must map patterns to KernelGeometry"),
        ({"w": shaped((3, 4))}, {"kernels": "w"}, r"`kernels` must map patterns to KernelGeometry"),
        ({"w": shaped((3, 4))}, {"keywords": {"train": False}}, r"`keywords` must be given for a flax.linen.Module"),
        ({"a.b": shaped((3, 4)), "a": {"b": shaped((4, 4))}}, {}, r"two arrays of one path.*'a.b'"),
    ],
)
def test_a_model_without_a_sound_kernel_is_refused(tree, options, message):
    with pytest.raises(ValueError, match=message):
        oj.geometry(tree, **options)


@pytest.mark.parametrize(
    "wrong",
    [
        oj.KernelGeometry(axis=5),
        oj.KernelGeometry(axis=(3, -1)),
        oj.KernelGeometry(axis=()),
        oj.KernelGeometry(rank=0),
        oj.KernelGeometry(groups=3),
        oj.KernelGeometry(spatial=(0,)),
        oj.KernelGeometry(spatial=(0, 3)),
    ],
)
def test_a_geometry_that_does_not_fit_its_array_is_refused(wrong):
    with pytest.raises(ValueError, match=r"`kernels` must fit the array 'w' of shape \(3, 3, 4, 5\)"):
        oj.geometry({"w": shaped((3, 3, 4, 5))}, kernels={"w": wrong})


@pytest.mark.parametrize("wrong", [oj.SpectralNorm(axis=0), oj.MaxSpectralNorm(groups=2), oj.SpectralClip(strides=2)])
def test_a_rule_that_says_what_the_geometry_says_is_refused(wrong):
    for use in (oj.constrain, lambda rule: oj.project(two_layers(), rule)):
        with pytest.raises(ValueError, match=r"`rule` must leave (axis|groups|strides) to `opnorm.jax.geometry"):
            use(wrong)


def test_what_does_not_belong_together_is_refused():
    params = two_layers()
    optimizer = oj.constrain(oj.SpectralNorm(), oj.geometry(params))
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"`params` must be given: `optimizer.update"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match=r"`params` must have the kernel 'first.kernel', which `geometry` names"):
        optimizer.init({"other": params["first"]})
    with pytest.raises(ValueError, match=r"`updates` must have the kernel 'first.kernel'"):
        optimizer.update({"second": params["second"]}, state, params)
    with pytest.raises(ValueError, match=r"`state` must be of these parameters: call `init`.*'first.kernel'"):
        optimizer.update(params, oj.ConstraintState({}), params)
    with pytest.raises(ValueError, match=r"`state` must be of these parameters.*shape \(2, 10\) of 'first.kernel'"):
        optimizer.update(jax.tree.map(jnp.transpose, params), state, jax.tree.map(jnp.transpose, params))
    with pytest.raises(ValueError, match=r"`state` must be what `init` returned"):
        optimizer.update(params, (state,), params)
    with pytest.raises(ValueError, match=r"`params` must have the kernel 'second.kernel'.*exclude"):
        optimizer.init({"first": params["first"]})
    with pytest.raises(ValueError, match=r"`rule` must be one of opnorm.jax's constraints"):
        oj.constrain(1.0)
    with pytest.raises(ValueError, match=r"`rule` must be .*, a class, not called$"):
        oj.constrain(oj.SpectralNorm)
    with pytest.raises(
        AttributeError, match=r"no attribute 'init': in `optax.chain` stands `opnorm.jax.constrain\(rule"
    ):
        optax.chain(optax.adam(1e-3), oj.SpectralNorm())
    with pytest.raises(ValueError, match=r"no array of two axes or more that holds floating-point numbers$"):
        oj.constrain(oj.SpectralNorm()).init({"kernel": jnp.ones((2, 3), int)})
    with pytest.raises(ValueError, match=r"`geometry` must be what"):
        oj.constrain(oj.SpectralNorm(), {"w": 1})
    with pytest.raises(ValueError, match=r"`rule` must be one of"):
        oj.project(params, None)
    with pytest.raises(ValueError, match=r"real floating-point kernels; 'first.kernel' is not"):
        optimizer.init(jax.tree.map(lambda x: x.astype("complex64"), params))


def test_a_function_of_parameters_serves_as_geometry():
    optimizer = oj.constrain(oj.SpectralNorm(), partial(oj.geometry, exclude="second"))
    assert set(optimizer.init(two_layers()).vectors) == {"first.kernel"}


def test_the_constraints_are_those_of_plain_pytorch():
    torch = pytest.importorskip("opnorm.torch")
    for name in ("SpectralNorm", "MaxSpectralNorm", "SpectralClip", "Orthogonal"):
        assert signature(getattr(oj, name)) == signature(getattr(torch, name))


def test_muon_gets_the_axes_of_every_kernel():
    tree = {"conv": {"kernel": shaped((3, 3, 2, 4))}, "query": {"kernel": shaped((8, 2, 4))}, "bias": shaped((4,))}
    numbers = oj.dimension_numbers(tree)
    assert numbers["bias"] is None
    assert numbers["conv"]["kernel"] == optax.contrib.MuonDimensionNumbers((0, 1, 2), (3,))
    assert numbers["query"]["kernel"] == optax.contrib.MuonDimensionNumbers((0,), (1, 2))
    params = two_layers()
    muon = optax.contrib.muon(0.1, muon_weight_dimension_numbers=oj.dimension_numbers)
    updates, _ = muon.update(params, muon.init(params), params)
    found = values(updates["first"]["kernel"])
    assert found[-1] / found[0] > 0.5  # Muon's five steps leave all of them near one another


def test_it_works_where_keras_cannot_be_imported():
    program = """
import sys
sys.modules["keras"] = None
import jax.numpy as jnp, optax, opnorm.jax
params = {"w": 3.0 * jnp.eye(2)}
optimizer = optax.chain(optax.sgd(0.1), opnorm.jax.constrain(opnorm.jax.SpectralNorm(operator="matrix")))
updates, _ = optimizer.update(params, optimizer.init(params), params)
print(float(optax.apply_updates(params, updates)["w"][0, 0]), *({"torch", "tensorflow"} & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(said) == pytest.approx(1, abs=1e-3)


def test_a_normalized_kernel_has_the_norm_and_its_gradient_goes_through_it():
    kernel = two_layers()["first"]["kernel"]
    weights = jnp.asarray(np.random.default_rng(3).standard_normal(kernel.shape), "float32")
    state = oj.normalized(kernel)[1]
    wide = np.asarray(kernel, "float64")

    def truth(matrix):
        return np.sum(np.asarray(weights, "float64") * matrix) * 0.8 / values(matrix)[0]

    def loss(matrix):
        inside, following = oj.normalized(matrix, state, value=0.8)
        return jnp.sum(weights * inside), following

    (value, following), found = jax.value_and_grad(loss, has_aux=True)(kernel)
    direction = np.random.default_rng(4).standard_normal(kernel.shape)
    slope = (truth(wide + 1e-6 * direction) - truth(wide - 1e-6 * direction)) / 2e-6
    assert float(value) == pytest.approx(truth(wide), rel=1e-3)
    assert np.sum(np.asarray(found, "float64") * direction) == pytest.approx(slope, rel=2e-3)
    assert following.shape == state.shape
    assert abs(values(oj.normalized(kernel, state)[0])[0] - 1) < 1e-3


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (jnp.ones((2, 3), "int32"), {}, "`kernel` must be real"),
        (jnp.ones((2, 3)), {"value": 0}, "`value` must be"),
        (jnp.ones((2, 3)), {"state": jnp.ones((1, 7))}, "`state` must have the shape"),
        (jnp.ones((2, 3)), {"geometry": 0}, "`geometry` must be a KernelGeometry"),
        (jnp.ones((2, 3)), {"operator": "reshaped"}, "`operator` must be one of"),
        (jnp.ones((0, 3)), {}, "`kernel` must have entries"),
        ({"kernel": jnp.ones((2, 3))}, {}, "`kernel` must be an array, not what holds it"),
        (jnp.ones((2, 3)), {"state": 0.95}, "`state` must be what the last call returned.*`value=` is given by name"),
        (jnp.ones(()), {}, r"`geometry` must fit a kernel of shape \(\)"),
        (jnp.ones((2, 3)), {"geometry": oj.KernelGeometry(rank=3)}, r"`geometry` must fit a kernel of shape \(2, 3\)"),
    ],
)
def test_what_cannot_be_normalized_is_refused(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        oj.normalized(kernel, **options)
