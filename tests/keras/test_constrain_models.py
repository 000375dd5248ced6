"""A constrained model is constrained in training, saved and cloned; where it would not be, `constrain` says so."""

import warnings

import keras
import numpy as np
import pytest
from dense import array, norm
from keras import layers as L  # noqa: N812

import opnorm
from opnorm.keras.attach import constrain
from opnorm.keras.sites import Kernel, find_kernels

EXACT = 1e-3  # the design's tolerance for a kernel that has trained for tens of steps
LIVING = {"power_iterations": 1, "warmup_iterations": 0}  # sigma is right only if u survives from step to step


def norms(model):
    return [norm(layer.kernel) for layer in model.layers]


def compiled(model):
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


def fit(model, data, epochs=8):
    model.fit(*data, batch_size=16, epochs=epochs, verbose=0)


@pytest.fixture
def plain(mlp):
    """Return a network of two dense layers without constraints."""
    return mlp(constrained=False)


@pytest.mark.parametrize("first", ["compile", "constrain"])
def test_training_holds_the_constraint_whichever_comes_first(plain, data, first):
    if first == "compile":
        compiled(plain)
    table = constrain(plain, opnorm.SpectralNorm(**LIVING))
    if first == "constrain":
        compiled(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(plain, data)
    assert norms(plain) == pytest.approx([1, 1], abs=EXACT)
    assert len([v for v in plain.optimizer.variables if v.name.endswith("_u")]) == len(table) == 2


def test_a_model_trained_since_its_compile_is_refused_and_compiling_again_is_the_remedy(plain, data):
    fit(compiled(plain), data, epochs=1)
    with pytest.raises(ValueError, match=r"Call `model.compile` with a new optimizer"):
        constrain(plain, opnorm.SpectralNorm())
    assert plain.layers[0].kernel.constraint is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrain(compiled(plain), opnorm.SpectralNorm(**LIVING))
        fit(plain, data)
    assert norms(plain) == pytest.approx([1, 1], abs=EXACT)


def test_a_trained_model_inside_another_does_not_keep_its_old_step(plain, data):
    fit(compiled(plain), data, epochs=1)
    outer = keras.Sequential([keras.Input((12,)), plain])
    constrain(outer, opnorm.SpectralNorm())
    with pytest.warns(UserWarning, match="Remedy"):  # its optimizer has no place for the vectors, and says so
        fit(plain, data, epochs=1)
    assert norms(plain) == pytest.approx([1, 1], abs=EXACT)


def test_a_part_of_a_trained_model_is_constrained_with_a_warning(plain, data):
    outer = keras.Sequential([keras.Input((12,)), plain])
    fit(compiled(outer), data, epochs=1)
    with pytest.warns(UserWarning, match="updated by an optimizer, Adam, that was built before"):
        constrain(plain, opnorm.SpectralNorm(**LIVING))
    fit(compiled(outer), data)
    assert norms(plain) == pytest.approx([1, 1], abs=EXACT)


class Written(keras.Model):
    """A subclassed model: layers as attributes, in lists and in dictionaries, one of them used twice."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = L.Dense(12, name="first")
        self.rest = [L.Dense(6, name="listed"), {"last": L.Dense(4, name="last")}]
        self.again = self.first

    def call(self, x):
        return self.rest[1]["last"](self.rest[0](self.again(self.first(x))))


@pytest.mark.parametrize("built", [True, False])
def test_a_subclassed_model_is_constrained_built_or_not(data, built):
    model = compiled(Written())
    if built:
        model(data[0])
    table = constrain(model, opnorm.SpectralNorm(**LIVING))
    assert [row.path for row in table] == ["first/kernel", "listed/kernel", "last/kernel"]
    assert [row.shape is not None for row in table] == [built] * 3
    fit(model, data)
    assert norms(model) == pytest.approx([1, 1, 1], abs=EXACT)


def block_norm(kernel, axis, groups):
    """Return the norm, by NumPy, of the kernel's matrix: the largest of its diagonal blocks'."""
    axes = [axis] if isinstance(axis, int) else list(axis)
    moved = np.moveaxis(array(kernel), axes, range(-len(axes), 0))
    columns = moved.reshape(-1, groups, int(np.prod([kernel.shape[i] for i in axes])) // groups)
    return max(norm(columns[:, i]) for i in range(groups))


GEOMETRIES = [((-2, -1), 4), (-2, 1), (-1, 2), ((-3, -1), 4)]


def test_a_model_of_many_kinds_of_layers_trains():
    inputs = keras.Input((6, 6, 4))
    x = L.Conv2DTranspose(4, 2, strides=2)(L.DepthwiseConv2D(3, padding="same")(inputs))
    x = L.Reshape((12, 12, 4))(L.BatchNormalization()(x))
    x = L.Reshape((4, 36))(L.Conv2D(4, 2, strides=2, groups=2)(x))
    model = compiled(keras.Model(inputs, L.EinsumDense("bac,acd->bad", (4, 2))(x)))
    table = constrain(model, opnorm.SpectralNorm(0.5))
    assert [(row.constraint.axis, row.constraint.groups) for row in table] == GEOMETRIES
    rng = np.random.default_rng(0)
    model.fit(rng.standard_normal((48, 6, 6, 4)), rng.standard_normal((48, 4, 2)), batch_size=8, epochs=4, verbose=0)
    for kernel in find_kernels(model):
        limit = kernel.variable.constraint
        assert block_norm(kernel.variable, limit.axis, limit.groups) == pytest.approx(0.5, rel=EXACT), kernel.path


def kept(model):
    """Return each kernel's constraint as a configuration, by path."""
    kernels = (one for one in find_kernels(model) if isinstance(one, Kernel))
    return {k.path: k.variable.constraint and k.variable.constraint.get_config() for k in kernels}


def reload(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def clone(model, folder):
    return keras.models.clone_model(model)


@pytest.mark.parametrize("copy", [reload, clone])
def test_constraints_are_carried_by_files_and_clones(copy, tmp_path):
    inputs = keras.Input((6, 6, 4))
    x = L.Conv2DTranspose(4, 2, strides=2)(L.DepthwiseConv2D(3, padding="same")(inputs))
    x = L.Reshape((9, -1))(L.SeparableConv2D(3, 2, strides=2)(x))
    x = L.EinsumDense("bac,acd->bad", (9, 3))(L.Bidirectional(L.GRU(2, return_sequences=True))(x))
    x = keras.Sequential([L.TimeDistributed(L.Dense(3)), L.Dense(2)])(x)
    model = keras.Model(inputs, x)
    table = constrain(model, opnorm.SpectralNorm(0.7, seed=3))
    assert not any(row.note for row in table)
    configs = kept(model)
    assert list(configs) == [row.path for row in table]
    assert list(kept(copy(model, tmp_path)).values()) == list(configs.values())  # clones may be renamed


def test_a_trained_model_continues_from_its_file_with_its_vectors(plain, data, tmp_path):
    constrain(plain, opnorm.SpectralNorm(**LIVING))
    fit(compiled(plain), data, epochs=1)
    loaded = reload(plain, tmp_path)
    for model in (plain, loaded):
        model.train_on_batch(*data)
    for ours, theirs in zip(plain.optimizer.variables, loaded.optimizer.variables, strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)  # the same arithmetic in the same order


def test_what_a_file_does_not_carry_is_said_and_attached_again(tmp_path):
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, L.MultiHeadAttention(2, 4)(inputs, inputs))
    table = constrain(model, opnorm.SpectralNorm())
    assert all("not saved by MultiHeadAttention" in row.note for row in table)
    loaded = reload(model, tmp_path)
    assert not any(kept(loaded).values())
    constrain(loaded, opnorm.SpectralNorm())
    assert kept(loaded) == kept(model)


@pytest.fixture
def encoder():
    """Return a model of a nested block and two dense layers."""
    block = keras.Sequential([L.Dense(3, name="dense"), L.Dense(3, name="dense_out")], name="block")
    return keras.Sequential([keras.Input((4,)), block, L.Dense(3, name="dense"), L.Embedding(5, 2, name="words")])


EVERYTHING = {"block/dense/kernel", "block/dense_out/kernel", "dense/kernel", "words/embeddings"}
SELECTED = {
    "everything": ({}, EVERYTHING),
    "a layer": ({"include": "dense"}, {"dense/kernel"}),
    "a block": ({"include": "block"}, {"block/dense/kernel", "block/dense_out/kernel"}),
    "a pattern": ({"include": "*dense/kernel"}, {"block/dense/kernel", "dense/kernel"}),
    "several": ({"include": ["words", "dense"]}, {"words/embeddings", "dense/kernel"}),
    "all but": ({"exclude": ("block/*", "words/embeddings")}, {"dense/kernel"}),
    "both": ({"include": "block", "exclude": "*_out"}, {"block/dense/kernel"}),
    "a function": ({"include": lambda layer, name: isinstance(layer, L.Dense)}, EVERYTHING - {"words/embeddings"}),
    "not a weight": ({"exclude": lambda layer, name: name == "kernel"}, {"words/embeddings"}),
}


@pytest.mark.parametrize("name", SELECTED)
def test_kernels_are_selected_by_path_or_function(encoder, name):
    options, expected = SELECTED[name]
    table = constrain(encoder, opnorm.SpectralNorm(), **options)
    assert {row.path for row in table} == EVERYTHING
    assert {row.path for row in table if row.constraint} == expected
    assert {row.path for row in table if row.note == "not selected"} == EVERYTHING - expected
    assert {path for path, constraint in kept(encoder).items() if constraint} == expected


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_named(encoder, argument):
    with pytest.raises(ValueError, match=rf"`{argument}` must match a kernel .*dense/kernel.*{argument}='dens'"):
        constrain(encoder, opnorm.SpectralNorm(), **{argument: ["words", "dens"]})
    with pytest.raises(ValueError, match=f"`{argument}` must be a pattern"):
        constrain(encoder, opnorm.SpectralNorm(), **{argument: [1]})
    assert not any(kept(encoder).values())


@pytest.mark.parametrize(("name", "value"), [("model", 3), ("constraint", keras.constraints.MaxNorm(1.0))])
def test_wrong_arguments_are_named(encoder, name, value):
    arguments = {"model": encoder, "constraint": opnorm.SpectralNorm()} | {name: value}
    with pytest.raises(ValueError, match=rf"Argument `{name}` must be .*Received: {name}="):
        constrain(**arguments)


def test_the_table_says_what_was_replaced_and_what_is_frozen():
    first = L.Dense(3, kernel_constraint=keras.constraints.MaxNorm(1.0), name="first")
    model = keras.Sequential([keras.Input((4,)), first, L.Dense(3, name="second", trainable=False)])
    table = constrain(model, opnorm.SpectralNorm(2.0))
    assert [row.note for row in table] == ["replaces MaxNorm", "frozen: acts once trainable"]
    assert constrain(model, opnorm.SpectralNorm(2.0))[0].note == ""  # nothing changes
    again = constrain(model, opnorm.MaxSpectralNorm(0.9), include="first")
    assert again[0].note == "replaces SpectralNorm(value=2.0)"
    assert str(again).splitlines() == [
        "path           shape  operator  constraint                      note",
        "first/kernel   4 x 3  matrix    MaxSpectralNorm(max_value=0.9)  replaces SpectralNorm(value=2.0)",
        "second/kernel  3 x 3                                            not selected",
    ]
    html = again._repr_html_()
    assert html.count("<tr>") == 3
    assert "<td>MaxSpectralNorm(max_value=0.9)</td>" in html


def test_layers_of_the_same_geometry_share_one_copy_of_the_template():
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), L.Dense(3)])
    template = opnorm.SpectralNorm(seed=5)
    first, second = constrain(model, template)
    assert first.constraint is second.constraint is not template
    assert first.constraint.seed == 5
