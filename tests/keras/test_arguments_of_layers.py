"""What a layer is given beside its input changes its function: bounds heed it, or are not given."""

import keras
import numpy as np
import pytest

import opnorm
from opnorm.keras.jacobian import linearize

L = keras.layers
SINGLE = 1e-4  # Jacobians in float32


def truth(model, point):
    """Return the norm of the Jacobian at one point."""
    linear = linearize(model, point)
    size = int(np.prod(linear.output_shape))
    rows = [linear.backward(e.reshape(1, *linear.output_shape)).ravel() for e in np.eye(size)]
    return np.linalg.norm(np.stack(rows), 2)


def model_of(layers, shape):
    model = keras.Sequential([keras.Input(shape), *layers])
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.2, 3.0, variable.shape))
    return model


def point_for(model):
    return np.random.default_rng(1).standard_normal((1, *model.input_shape[1:])).astype("float32")


@pytest.mark.parametrize(
    ("scale", "offset", "shape"),
    [([1.0, 2.0, 3.0], 0.0, (4, 1)), (2.0, [1.0, 2.0, 3.0], (4, 1)), ([[1.0], [2.0], [3.0]], 0.0, (1, 2))],
)
def test_an_input_that_is_repeated_to_fit_a_scale_counts_as_often(scale, offset, shape):
    model = model_of([L.Rescaling(scale, offset=offset)], shape)
    assert opnorm.lipschitz_bound(model).upper is None
    assert opnorm.lipschitz_bound(model, around=point_for(model), radius=0.1).upper is None


def test_a_scale_of_each_channel_that_fits_has_its_largest_factor():
    model = model_of([L.Rescaling([1.0, 2.0, -3.0], offset=[0.0, 1.0, 2.0])], (4, 3))
    assert opnorm.lipschitz_bound(model).upper == pytest.approx(3)


def test_a_scale_of_each_position_is_not_joined_as_one_of_each_channel():
    model = model_of([L.Dense(3), L.Rescaling([[1.0], [2.0], [30.0]])], (3, 3))
    assert truth(model, point_for(model)) <= opnorm.lipschitz_bound(model).upper * (1 + SINGLE)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([L.TimeDistributed(L.Conv1D(6, 1)), L.BatchNormalization(axis=2)], (5, 6, 2)),
        ([L.BatchNormalization(axis=2), L.TimeDistributed(L.Conv1D(6, 1))], (5, 2, 2)),
        ([L.TimeDistributed(L.Conv1D(4, 1)), L.BatchNormalization(axis=3)], (5, 6, 2)),
        ([L.TimeDistributed(L.Dense(4)), L.TimeDistributed(L.BatchNormalization())], (5, 6, 2)),
    ],
)
def test_a_layer_for_each_position_counts_its_axes_without_that_of_the_positions(layers, shape):
    model = model_of(layers, shape)
    assert truth(model, point_for(model)) <= opnorm.lipschitz_bound(model).upper * (1 + SINGLE)


@pytest.mark.parametrize(
    "layer",
    [
        L.GlobalAveragePooling1D(),
        L.Softmax(axis=1),
        L.MaxPooling1D(2),
        L.BatchNormalization(axis=1),
        L.Dense(3, activation=L.Softmax(axis=1)),
        L.Dense(3, activation="tanh"),
    ],
    ids=lambda layer: layer.name,
)
def test_a_layer_for_each_position_is_never_below_its_jacobian_on_a_ball(layer):
    model = model_of([L.TimeDistributed(layer)], (5, 6, 2))
    point = point_for(model) * 0.01
    bound = opnorm.lipschitz_bound(model, around=point, radius=1e-3)
    assert truth(model, point) <= bound.upper * (1 + SINGLE)


def test_an_activation_that_is_a_layer_keeps_its_axis_on_a_ball():
    model = model_of([L.Dense(3, activation=L.Softmax(axis=1))], (4, 2))
    point = point_for(model) * 0.01
    bound = opnorm.lipschitz_bound(model, around=point, radius=1e-3)
    assert truth(model, point) <= bound.upper * (1 + SINGLE)


def test_a_model_called_in_training_mode_has_its_layers_in_it_too(tmp_path):
    """A Functional model stores that its own layers were not called so."""
    inner_input = keras.Input((6,))
    inner = keras.Model(inner_input, L.Dropout(0.5)(L.Dense(6)(inner_input)))
    x = keras.Input((6,))
    model = keras.Model(x, inner(x, training=True))
    model.save(tmp_path / "model.keras")
    for given in (model, tmp_path / "model.keras"):
        assert opnorm.lipschitz_bound(given).upper is None


@pytest.mark.parametrize("how", ["operation", "activation"])
def test_sparsemax_as_keras_computes_it_has_no_constant(how):
    """It jumps where a second entry gets beside the largest: its threshold adds up those of one and of two."""
    apply = keras.ops.sparsemax if how == "operation" else L.Activation("sparsemax")
    x = keras.Input((3,))
    assert opnorm.lipschitz_bound(keras.Model(x, apply(x))).upper is None


@pytest.mark.parametrize("layer", [L.Identity, L.Flatten, L.ReLU, lambda dtype: L.Rescaling(2, dtype=dtype)])
@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
def test_a_layer_that_rounds_to_integers_has_no_constant(layer, dtype, tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, layer(dtype=dtype)(x))
    model.save(tmp_path / "model.keras")
    for given in (model, tmp_path / "model.keras"):
        assert opnorm.lipschitz_bound(given).upper is None


def test_layers_of_other_floating_dtypes_keep_their_constants():
    model = keras.Sequential([keras.Input((3,)), L.Identity(dtype="mixed_float16"), L.ReLU(dtype="float64")])
    assert opnorm.lipschitz_bound(model).upper == pytest.approx(1)


@pytest.mark.parametrize(
    "mix",
    [L.Softmax(axis=0), L.Dense(3, activation=L.Softmax(axis=0)), lambda x: L.Dense(3)(x[::-1, :])],
    ids=["softmax", "activation", "slice"],
)
def test_what_mixes_the_examples_of_a_batch_is_not_followed_on_a_ball(mix):
    """Of a batch of one, softmax over the batch would be 1 everywhere."""
    x = keras.Input((3,))
    model = keras.Model(x, mix(x))
    bound = opnorm.lipschitz_bound(model, around=np.ones((1, 3), "float32"), radius=0.1)
    assert bound.upper == pytest.approx(opnorm.lipschitz_bound(model).upper)


def test_a_scale_of_each_position_is_evaluated_as_one():
    model = model_of([L.Rescaling([[1.0], [2.0], [30.0]]), L.Flatten(), L.Dense(3)], (3, 3))
    x = np.random.default_rng(2).standard_normal((8, 3, 3)).astype("float32")
    predicted = np.argmax(keras.ops.convert_to_numpy(model(x)), axis=1)
    assert opnorm.certify(model, x).predictions.tolist() == predicted.tolist()
