"""`constrain` means the matrix, or the convolution, that each layer of a model really applies."""

import keras
import numpy as np
import pytest
from cases import built_optimizer, gaussian, op_by_op, take_steps
from dense import array, matrix_of, norm
from keras import layers as L  # noqa: N812
from test_matrices import ROWS

import opnorm
from opnorm.keras.attach import constrain
from opnorm.keras.geometry import KernelGeometry, kernels

EXACT = 1e-3  # what `project` documents
project = op_by_op(opnorm.project)


def filled(model):
    """Return the model with random weights far outside the ball."""
    model.set_weights([gaussian(*w.shape, seed=i) for i, w in enumerate(model.weights)])
    return model


def sequential(layer, shape):
    return filled(keras.Sequential([keras.Input(shape), layer]))


@pytest.mark.parametrize("name", ROWS)
def test_every_layer_gets_the_norm_asked_for(name):
    row = ROWS[name]
    layer = row.layer()
    model = sequential(layer, row.input_shape)
    [attached] = constrain(model, opnorm.SpectralNorm(0.9, seed=1))
    assert (attached.operator, attached.shape) == ("matrix", tuple(layer.kernel.shape))
    assert attached.constraint is layer.kernel.constraint
    project(model)
    assert norm(matrix_of(layer, row.input_shape)) == pytest.approx(0.9, rel=EXACT)
    layer.kernel.assign(3 * layer.kernel.value)
    take_steps(built_optimizer(model.trainable_variables), model.trainable_variables, 2)
    assert norm(matrix_of(layer, row.input_shape)) == pytest.approx(0.9, rel=EXACT)


def test_a_transposed_convolution_is_grouped_by_its_output_channels():
    model = sequential(L.Conv2DTranspose(8, 2), (3, 3, 3))
    constrain(model, opnorm.SpectralNorm(0.9, seed=1))
    project(model)
    kernel = array(model.layers[0].kernel)  # height, width, outputs, inputs
    assert norm(np.moveaxis(kernel, -2, -1)) == pytest.approx(0.9, rel=EXACT)


def test_a_separable_convolution_gets_both_its_kernels_constrained():
    model = sequential(L.SeparableConv2D(8, (3, 4), depth_multiplier=4), (3, 4, 2))
    paths = [row.path for row in constrain(model, opnorm.SpectralNorm(0.9, seed=1))]
    assert paths == [f"{model.layers[0].name}/{kind}_kernel" for kind in ("depthwise", "pointwise")]
    project(model)
    depthwise, pointwise = (array(v) for v in model.layers[0].trainable_variables[:2])
    assert max(norm(depthwise[:, :, i]) for i in range(2)) == pytest.approx(0.9, rel=EXACT)
    assert norm(pointwise) == pytest.approx(0.9, rel=EXACT)


@pytest.mark.parametrize("kind", [L.SimpleRNN, L.LSTM, L.GRU])
def test_a_recurrent_layer_gets_both_its_kernels_constrained(kind):
    model = sequential(L.Bidirectional(kind(2)), (3, 4))
    table = constrain(model, opnorm.SpectralClip(0.9))
    assert len(table) == 4
    project(model)
    for cell in (model.layers[0].forward_layer.cell, model.layers[0].backward_layer.cell):
        assert norm(cell.kernel) == pytest.approx(0.9, rel=EXACT)
        assert norm(cell.recurrent_kernel) == pytest.approx(0.9, rel=EXACT)


def test_each_projection_of_attention_gets_its_own_matrix():
    inputs = keras.Input((5, 6))
    attention = L.MultiHeadAttention(2, 4)
    model = filled(keras.Model(inputs, attention(inputs, inputs)))
    constrain(model, opnorm.SpectralClip(0.9))
    project(model)
    for part in (attention.query_dense, attention.key_dense, attention.value_dense):
        assert norm(array(part.kernel).reshape(6, 8)) == pytest.approx(0.9, rel=EXACT)
    assert norm(array(attention.output_dense.kernel).reshape(8, 6)) == pytest.approx(0.9, rel=EXACT)


SLIDING = {
    "1-D strided": (L.Conv1D(4, 3, strides=2, use_bias=False), (32, 3)),
    "2-D grouped": (L.Conv2D(4, 3, groups=2, padding="same", use_bias=False), (9, 9, 4)),
    "depthwise": (L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=False), (15, 15, 2)),
    "depthwise, 1-D, strided": (L.DepthwiseConv1D(4, strides=2, use_bias=False), (32, 3)),
    "transposed": (L.Conv2DTranspose(3, 3, padding="same", use_bias=False), (8, 8, 2)),
    "transposed, 1-D, strided": (L.Conv1DTranspose(3, 3, strides=2, use_bias=False), (24, 2)),
}


@pytest.mark.parametrize("name", SLIDING)
def test_every_convolution_gets_the_norm_of_the_sliding_operator(name):
    layer, shape = SLIDING[name]
    layer = type(layer).from_config(layer.get_config())
    model = sequential(layer, shape)
    [attached] = constrain(model, opnorm.SpectralNorm(0.9, operator="convolution", seed=1))
    assert attached.operator == "convolution"
    opnorm.project(model)
    reached = norm(matrix_of(layer, shape))
    assert reached <= 0.9 * (1 + 1e-2)  # case T7
    assert reached >= 0.9 * 0.95  # the norm is that of the largest images, which these sizes come near to
    layer.kernel.assign(2 * layer.kernel.value)
    [slot] = built_optimizer(model.trainable_variables).variables[2:]
    updated, _ = layer.kernel.constraint.update(layer.kernel.value, slot.value)
    layer.kernel.assign(updated)
    assert norm(matrix_of(layer, shape)) <= 0.9 * (1 + 1e-2)


def test_what_does_not_slide_is_its_matrix():
    model = filled(keras.Sequential([keras.Input((6, 6, 2)), L.SeparableConv2D(3, 2), L.Flatten(), L.Dense(2)]))
    table = constrain(model, opnorm.SpectralNorm(operator="convolution"))
    assert [row.operator for row in table] == ["convolution", "matrix", "matrix"]


@pytest.mark.parametrize("template", [opnorm.MaxSpectralNorm(0.9), opnorm.SpectralClip(0.9), opnorm.Orthogonal()])
def test_every_constraint_serves_as_a_template(template):
    model = sequential(L.DepthwiseConv2D((3, 4), depth_multiplier=4, use_bias=False), (3, 4, 2))
    [row] = constrain(model, template)
    assert row.constraint is not template
    assert row.constraint.get_config() == template.get_config() | {"axis": (-2, -1), "groups": 2}
    project(model)
    target = getattr(template, "max_value", 1.0)
    assert norm(matrix_of(model.layers[0], (3, 4, 2))) == pytest.approx(target, rel=EXACT)


def test_equations_that_share_the_last_axis_have_a_block_for_each_of_its_entries():
    layer = L.EinsumDense("bdh,dkh->bkh", (4, 2))
    model = sequential(layer, (12, 2))
    constrain(model, opnorm.Orthogonal())
    project(model)
    for block in np.moveaxis(array(layer.kernel), -1, 0):
        assert block.T @ block == pytest.approx(np.eye(4), abs=EXACT)


def test_an_unbuilt_model_is_constrained_as_it_is_built():
    model = keras.Sequential([L.Conv2DTranspose(3, 2), L.Flatten(), L.Dense(4)])
    table = constrain(model, opnorm.SpectralNorm(0.9))
    assert [row.shape for row in table] == [None, None]
    model.build((None, 4, 4, 2))
    assert [model.layers[i].kernel.constraint for i in (0, 2)] == [row.constraint for row in table]
    assert table[0].constraint.axis == -2


@pytest.mark.parametrize("layer", [L.DepthwiseConv2D(3), L.SeparableConv1D(3, 3), L.MultiHeadAttention(2, 2)])
def test_a_layer_whose_geometry_depends_on_its_input_must_be_built(layer):
    model = keras.Sequential([L.Dense(3), layer])
    with pytest.raises(ValueError, match="must be built"):
        constrain(model, opnorm.SpectralNorm())
    assert model.layers[0].kernel_constraint is None  # all or nothing


class Scaled(L.Layer):
    """A layer of a user's: `x @ weight.T`."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(3, shape[-1]), name="factor", constraint=getattr(self, "limit", None))

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.factor))


def test_a_layer_of_the_users_own_is_listed_until_it_is_registered():
    [row] = constrain_with_warning(sequential(Scaled(name="own"), (4,)))
    assert (row.path, row.shape, row.constraint) == ("own/factor", (3, 4), None)
    assert "opnorm.kernels" in row.note
    kernels.register(Scaled, lambda layer: (KernelGeometry("factor", "limit", axis=0),))
    for model in (sequential(Scaled(), (4,)), keras.Sequential([Scaled()])):
        [row] = constrain(model, opnorm.SpectralNorm(0.9))
        assert row.constraint.axis == 0
        model.build((None, 4))
        project(model)
        assert norm(model.layers[0].factor) == pytest.approx(0.9, rel=EXACT)


def constrain_with_warning(model):
    with pytest.warns(UserWarning, match="No kernel was constrained"):
        return constrain(model, opnorm.SpectralNorm())


class Composite(L.Layer):
    """A layer that makes its parts when it is built."""

    def build(self, shape):
        self.part = L.Dense(3)
        self.part.build(shape)

    def call(self, x):
        return self.part(x)


def test_a_layer_that_makes_its_parts_when_it_is_built_must_be():
    with pytest.raises(ValueError, match=r"must be built.*Composite"):
        constrain(keras.Sequential([Composite()]), opnorm.SpectralNorm())
    layer = Composite(name="own")
    [row] = constrain(sequential(layer, (4,)), opnorm.SpectralNorm())
    assert row.path == f"own/{layer.part.name}/kernel"


def test_subclasses_of_known_layers_are_known_and_their_further_weights_listed():
    class Gated(L.Dense):
        def build(self, shape):
            super().build(shape)
            self.gate = self.add_weight(shape=(shape[-1], self.units), name="gate")

    known, other = constrain(sequential(Gated(3, name="own"), (4,)), opnorm.SpectralNorm())
    assert (known.path, known.operator) == ("own/kernel", "matrix")
    assert (other.path, other.constraint) == ("own/gate", None)


NO_MATRIX = {
    "equation": (L.EinsumDense("abc,cd->ad", output_shape=(5,)), (4, 3), "equation"),
    "wrapper": (L.SpectralNormalization(L.Dense(3)), (4,), "forward pass"),
}


@pytest.mark.parametrize("name", NO_MATRIX)
def test_what_is_passed_over_is_listed_with_the_reason(name):
    layer, shape, reason = NO_MATRIX[name]
    table = constrain_with_warning(keras.Sequential([keras.Input(shape), type(layer).from_config(layer.get_config())]))
    assert table
    assert all(row.constraint is None and reason in row.note for row in table)


@pytest.mark.parametrize("change", [lambda layer: layer.enable_lora(2), lambda layer: layer.quantize("int8")])
def test_a_kernel_that_is_not_the_matrix_is_passed_over(change):
    model = sequential(L.Dense(4), (3,))
    change(model.layers[0])
    [row] = constrain_with_warning(model)
    assert row.constraint is None
