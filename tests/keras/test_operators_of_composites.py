"""Every layer that `constrain` takes has operators, whose norms are those of the kernels that `constrain` finds."""

import dense
import keras
import numpy as np
import pytest
from cases import gaussian

import opnorm
from opnorm.keras.sites import Kernel, find_kernels

L = keras.layers
SHAPE = (5, 6)
IMAGES = (2, 5, 6, 3)
CLOSE = 1e-6  # relative: the norms are proved in float64, of the same float32 entries


class Scaled(L.Layer):
    """A layer of a user's, `x @ factor.T`, which only `opnorm.kernels` knows."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(3, shape[-1]), name="factor")

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.factor))


opnorm.kernels.register(Scaled, lambda layer: (opnorm.KernelGeometry("factor", "factor_constraint", axis=0),))


class Block(L.Layer):
    """A layer of a user's that keeps others, two of them of one name."""

    def build(self, shape):
        self.parts = [L.Dense(4, name="same"), {"deep": L.Dense(2, name="same")}]
        self.own = Scaled(name="own")
        for part, width in ((self.parts[0], shape[-1]), (self.parts[1]["deep"], 4), (self.own, 2)):
            part.build((*shape[:-1], width))

    def call(self, x):
        return self.own(self.parts[1]["deep"](self.parts[0](x)))


def of_two(layer):
    one, other = keras.Input(SHAPE), keras.Input(SHAPE)
    return keras.Model([one, other], layer(one, other))


RECURRENT = {"kernel", "recurrent_kernel"}
LAYERS = {  # with the shape that it is built for, and the keys
    "Dense": (lambda: L.Dense(4), SHAPE, {"kernel"}),
    "Embedding": (lambda: L.Embedding(7, 3), (5,), {"kernel"}),
    "EinsumDense": (lambda: L.EinsumDense("abc,cde->abde", (None, 2, 5)), SHAPE, {"kernel"}),
    "TimeDistributed": (lambda: L.TimeDistributed(L.Dense(4)), SHAPE, {"kernel"}),
    "TimeDistributed, recurrent": (lambda: L.TimeDistributed(L.GRU(2)), (3, *SHAPE), RECURRENT),
    "LSTM": (lambda: L.LSTM(3), SHAPE, RECURRENT),
    "RNN": (lambda: L.RNN(L.GRUCell(3)), SHAPE, RECURRENT),
    "RNN of cells": (
        lambda: L.RNN([L.LSTMCell(3, name="low"), L.GRUCell(2, name="high")]),
        SHAPE,
        {f"{cell}/{name}" for cell in ("low", "high") for name in RECURRENT},
    ),
    "Bidirectional": (
        lambda: L.Bidirectional(L.LSTM(3, name="f"), backward_layer=L.LSTM(3, name="b", go_backwards=True)),
        SHAPE,
        {f"{side}/{name}" for side in ("forward_f", "b") for name in RECURRENT},
    ),
    "Bidirectional of an RNN of cells": (
        lambda: L.Bidirectional(L.RNN([L.SimpleRNNCell(3, name="one")]), name="two"),
        SHAPE,
        None,  # eight names
    ),
    "MultiHeadAttention": (
        lambda: of_two(L.MultiHeadAttention(2, 3, name="heads")),
        None,
        {f"heads/{name}" for name in ("query", "key", "value", "output")},
    ),
    "GroupQueryAttention": (
        lambda: of_two(L.GroupQueryAttention(4, 4, 2, name="heads")),
        None,
        {f"heads/{name}" for name in ("query", "key", "value", "output")},
    ),
    "a Sequential": (
        lambda: keras.Sequential([L.Dense(4, name="a"), L.Dense(2, name="b")]),
        SHAPE,
        {"a/kernel", "b/kernel"},
    ),
    "nested models": (
        lambda: keras.Sequential([keras.Sequential([L.Dense(4, name="a")], name="deep"), L.LSTM(2, name="b")]),
        SHAPE,
        {"deep/a/kernel", "b/kernel", "b/recurrent_kernel"},
    ),
    "a shared layer": (
        lambda: keras.Sequential([shared := L.Dense(6, name="a"), L.ReLU(), shared]),
        SHAPE,
        {"a/kernel"},
    ),
    "a layer of one's own": (lambda: Scaled(), SHAPE, {"factor"}),
    "a layer of one's own that keeps others": (Block, SHAPE, {"same/kernel", "same/kernel_1", "own/factor"}),
}


def built(name):
    make, shape, _ = LAYERS[name]
    layer = make()
    if shape is not None:
        layer.build((None, *shape))
    for index, weight in enumerate(layer.trainable_weights):
        weight.assign(gaussian(*weight.shape, seed=index))
    return layer


def matrix_norm(kernel):
    """Return the norm of the matrix that a layer makes of a kernel, by NumPy's SVD, by hand for each kind."""
    array, axis = dense.array(kernel.variable).astype("float64"), kernel.geometry.axis
    axes = (axis,) if isinstance(axis, int) else axis
    outputs = int(np.prod([array.shape[i] for i in axes]))
    return np.linalg.svd(np.moveaxis(array, axes, range(-len(axes), 0)).reshape(-1, outputs), compute_uv=False)[0]


@pytest.mark.parametrize("name", LAYERS)
def test_the_operators_are_those_of_the_kernels_that_constrain_finds(name):
    layer = built(name)
    maps = opnorm.linear_operators(layer)
    kernels = [one for one in find_kernels(layer) if isinstance(one, Kernel)]
    table = opnorm.constrain(layer, opnorm.MaxSpectralNorm())
    assert len(maps) == len(kernels) == len([row for row in table if row.constraint is not None]) > 0
    for operator, kernel in zip(maps.values(), kernels, strict=True):
        lower, upper = opnorm.spectral_norm(operator)
        assert lower * (1 - CLOSE) <= matrix_norm(kernel) <= upper * (1 + CLOSE)
        assert upper <= lower * (1 + 1e-5)  # what a matrix's bracket is at most, and more


@pytest.mark.parametrize("name", [name for name in LAYERS if LAYERS[name][2]])
def test_the_operators_have_the_names_of_the_layers_and_weights(name):
    assert set(opnorm.linear_operators(built(name))) == LAYERS[name][2]


SEVERAL = ["RNN", "RNN of cells", "Bidirectional", "TimeDistributed, recurrent"]


@pytest.mark.parametrize("name", SEVERAL)
def test_a_layer_with_several_maps_names_them_all_where_one_is_asked_for(name):
    layer = built(name)
    with pytest.raises(ValueError, match=r"has several \(.*kernel, .*recurrent_kernel.*`opnorm.linear_operators"):
        opnorm.linear_operator(layer)


@pytest.mark.parametrize(
    "name", ["RNN of cells", "Bidirectional", "a Sequential", "a layer of one's own that keeps others"]
)
def test_a_layer_that_is_not_built_is_told_to_be(name):
    with pytest.raises(ValueError, match="must be built"):
        opnorm.linear_operators(LAYERS[name][0]())


def test_gates_are_split_wherever_the_cell_is():
    layer = built("Bidirectional")
    joint, each = opnorm.linear_operators(layer), opnorm.linear_operators(layer, gates=True)
    assert set(each) == {f"{name}/{gate}" for name in joint for gate in range(4)}
    stacked = np.concatenate([each[f"forward_f/kernel/{i}"].matmat(np.eye(6)) for i in range(4)])
    np.testing.assert_array_equal(stacked, joint["forward_f/kernel"].matmat(np.eye(6)))


def test_inside_a_wrapper_the_operators_are_the_normalized_ones():
    layer = opnorm.SpectralNormalization(L.Bidirectional(L.LSTM(3)), value=0.7)
    layer.build((None, *SHAPE))
    model = keras.Sequential([layer])
    model.build((None, *SHAPE))
    for maps in (opnorm.linear_operators(layer), opnorm.linear_operators(model)):
        assert len(maps) == 4
        for operator in maps.values():
            assert opnorm.spectral_norm(operator).upper == pytest.approx(0.7, rel=1e-3)  # the wrapper's own accuracy


@pytest.mark.parametrize("layer", [L.Dropout(0.5), keras.Sequential([keras.Input((3,)), L.ReLU()])])
def test_a_layer_without_any_kernel_says_how_to_register_its_type(layer):
    layer.build((None, 3))
    with pytest.raises(TypeError, match=r"opnorm.linear_operator.register"):
        opnorm.linear_operators(layer)


OWN = {  # the geometry, the kernel's shape, and the blocks whose largest norm the operator has
    "rows": (opnorm.KernelGeometry(axis=0), (3, 4), lambda k: [k]),
    "two axes": (opnorm.KernelGeometry(axis=(0, 2)), (3, 4, 2), lambda k: [np.moveaxis(k, 1, 0).reshape(4, 6)]),
    "groups": (opnorm.KernelGeometry(groups=2), (3, 4), lambda k: np.split(k, 2, axis=1)),
    "grouped by an axis": (
        opnorm.KernelGeometry(axis=(1, 0), groups=3),
        (2, 3),
        lambda k: [k[:, [i]].T for i in range(3)],
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_geometry_alone_makes_the_operator(name):
    geometry, shape, blocks = OWN[name]

    class Own(L.Layer):
        def build(self, _):
            self.kernel = self.add_weight(shape=shape, name="kernel")

    opnorm.kernels.register(Own, lambda layer: (geometry,))
    layer = Own()
    layer.build((None, 1))
    layer.kernel.assign(gaussian(*shape))
    [operator] = opnorm.linear_operators(layer).values()
    lower, upper = opnorm.spectral_norm(operator)
    truth = max(np.linalg.svd(block.astype("float64"), compute_uv=False)[0] for block in blocks(gaussian(*shape)))
    assert lower * (1 - CLOSE) <= truth <= upper * (1 + CLOSE)


def test_an_audit_takes_a_kernel_as_its_registered_geometry_means_it():
    model = keras.Sequential([keras.Input(SHAPE), Scaled(name="own")])
    model.layers[0].factor.assign(gaussian(3, 6))
    [row] = [row for row in opnorm.audit(model, network=False).rows if row.name == "own/factor"]
    truth = np.linalg.svd(gaussian(3, 6).astype("float64"), compute_uv=False)[0]
    assert row.geometry == "as registered"
    assert row.lower * (1 - CLOSE) <= truth <= row.upper * (1 + CLOSE)
