"""What Keras, TensorFlow Addons, PyTorch and deel-lip test of their spectral normalization, asked of the wrapper.

In our own words and against the truth; where opnorm differs on purpose the test says so, and docs/migration.md why.
"""

import json

import dense
import keras
import numpy as np
import pytest
from cases import gaussian, op_by_op

import opnorm

L = keras.layers
wrap = opnorm.SpectralNormalization
# The literal recipe of the paper, which the others follow: one vector, one iteration in a call, no more.
PLAIN = {"vectors": 1, "warmup_iterations": 0, "perturbation": 0.0}


def weights_of(layer):
    return [dense.array(weight).copy() for weight in layer.weights]  # PyTorch's arrays are views


def vectors_of(layer):
    (vectors,) = layer.non_trainable_variables
    return dense.array(vectors).copy()


def tokens(*shape, size=10):
    return np.random.default_rng(0).integers(size, size=shape)


def dense_layer(units=5, features=6, **options):
    """Return a wrapped dense layer without bias and with a Gaussian kernel, and that kernel in float64."""
    layer = wrap(L.Dense(units, use_bias=False), **options)
    layer.build((None, features))
    kernel = gaussian(features, units, seed=7)
    layer.layer.kernel.assign(kernel)
    return layer, kernel.astype("float64")


# Keras, TensorFlow Addons

LAYERS = {
    "dense": (lambda: L.Dense(2), gaussian(4, 3, 4), (4, 3, 2)),
    "convolution": (lambda: L.Conv2D(3, 2, padding="same"), gaussian(4, 4, 4, 3), (4, 4, 4, 3)),
    "embedding": (lambda: L.Embedding(10, 4), tokens(4, 2), (4, 2, 4)),
}
each_layer = pytest.mark.parametrize(("make", "x", "shape"), LAYERS.values(), ids=LAYERS)


@each_layer
def test_outputs_and_weights_are_those_of_the_layer_and_one_set_of_vectors(make, x, shape):
    plain, layer = make(), wrap(make())
    plain.build(x.shape)
    symbolic = layer(keras.Input(batch_shape=x.shape))
    y = layer(x)
    assert tuple(y.shape) == tuple(symbolic.shape) == tuple(layer.compute_output_shape(x.shape)) == shape
    assert keras.backend.standardize_dtype(y.dtype) == symbolic.dtype == "float32"
    assert [tuple(v.shape) for v in layer.trainable_variables] == [tuple(v.shape) for v in plain.trainable_variables]
    assert len(layer.non_trainable_variables) == 1
    assert layer.losses == []


@each_layer
def test_a_model_that_is_built_by_fit_learns_and_its_vectors_move(make, x, shape):
    layer = wrap(make(), power_iterations=2)
    model = keras.Sequential([layer, L.Activation("relu")])
    model.compile(keras.optimizers.RMSprop(1e-2), "mse")
    target = np.random.default_rng(1).random(shape)
    before = model.fit(x, target, verbose=0).history["loss"][0]
    vectors = vectors_of(layer)
    after = model.fit(x, target, epochs=5, verbose=0).history["loss"][-1]
    assert after < before
    assert np.abs(vectors_of(layer) - vectors).max() > 1e-6  # a float32 rounding is less


@each_layer
def test_the_configuration_makes_the_layer_anew(make, x, shape):
    layer = wrap(make(), power_iterations=3, name="normalized")
    config = json.loads(json.dumps(layer.get_config()))
    other = wrap.from_config(config)
    assert other.get_config() == layer.get_config()
    assert (other.power_iterations, other.name, type(other.layer)) == (3, "normalized", type(layer.layer))


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_power_iterations_must_be_a_positive_integer(count):
    with pytest.raises(ValueError, match=f"Argument `power_iterations`.*Received: power_iterations={count}"):
        wrap(L.Dense(2), power_iterations=count)


def test_only_a_layer_with_a_kernel_can_be_wrapped():
    with pytest.raises(ValueError, match=r"Argument `layer` must be a Keras layer\. Received: layer="):
        wrap(gaussian(2, 4))
    with pytest.raises(ValueError, match=r"must have a kernel.*ReLU"):
        wrap(L.ReLU())(np.ones((4, 2)))


def test_a_convolution_of_ones_is_halved_in_training_and_unlike_theirs_in_inference():
    layer = wrap(L.Conv2D(1, 2, kernel_initializer="ones"))  # four taps of 1: its norm is 2
    for training in (True, False):
        assert dense.array(layer(np.ones((1, 2, 2, 1)), training=training)) == pytest.approx(4 / 2, rel=1e-6)
    np.testing.assert_array_equal(dense.array(layer.layer.kernel), np.ones((2, 2, 1, 1)))  # theirs is overwritten


def test_vectors_stay_float32_under_a_half_precision_policy():
    keras.config.set_dtype_policy("mixed_float16")
    layer = wrap(L.Conv2D(1, 2, kernel_initializer=keras.initializers.Constant(2)))
    for training in (False, True):
        y = layer(np.ones((1, 2, 2, 1)), training=training)
        assert keras.backend.standardize_dtype(y.dtype) == "float16"
        assert dense.array(y) == pytest.approx(2, rel=1e-3)  # float16
        assert {v.dtype for v in layer.variables} == {"float32"}


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_file_of_either_kind_brings_the_model_back(tmp_path, suffix):
    model = keras.Sequential([keras.Input((6,)), wrap(L.Dense(3))])
    model.compile("sgd", keras.losses.MeanSquaredError())  # "mse" cannot be read back from HDF5
    model.fit(gaussian(8, 6), gaussian(8, 3), verbose=0)
    model.save(tmp_path / f"model.{suffix}")
    loaded = keras.models.load_model(tmp_path / f"model.{suffix}")
    assert json.dumps(loaded.layers[0].get_config()) == json.dumps(model.layers[0].get_config())  # lists for tuples
    for one, other in zip(weights_of(loaded), weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_training_call_from_the_same_vector_applies_what_keras_own_wrapper_stores(iterations):
    ours, _ = dense_layer(power_iterations=iterations, **PLAIN)
    theirs = L.SpectralNormalization(L.Dense(5, use_bias=False), power_iterations=iterations)
    theirs.build((None, 6))
    theirs.layer.kernel.assign(ours.layer.kernel)
    theirs.vector_u.assign(vectors_of(ours))
    x = np.eye(6, dtype="float32")
    np.testing.assert_allclose(dense.array(ours(x, training=True)), dense.array(theirs(x, training=True)), atol=1e-6)
    np.testing.assert_allclose(np.abs(vectors_of(ours)), np.abs(dense.array(theirs.vector_u)), atol=1e-6)


# PyTorch


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_call_takes_the_power_iterations_of_the_paper(iterations):
    layer, kernel = dense_layer(power_iterations=iterations, **PLAIN)
    u = vectors_of(layer)[0].astype("float64")
    for _ in range(iterations):
        v = kernel @ u / np.linalg.norm(kernel @ u)
        u = kernel.T @ v / np.linalg.norm(kernel.T @ v)
    y = layer(np.eye(6, dtype="float32"), training=True)
    np.testing.assert_allclose(dense.array(y), kernel / (v @ kernel @ u), rtol=1e-5)
    found = vectors_of(layer)[0]
    np.testing.assert_allclose(found * np.sign(found @ u), u, atol=1e-5)


def test_a_diagonal_kernel_is_divided_by_its_largest_entry():
    layer, _ = dense_layer(2, 2)
    diagonal = np.diag([0.3, -0.7]).astype("float32")
    layer.layer.kernel.assign(diagonal)
    np.testing.assert_allclose(dense.array(layer(np.eye(2, dtype="float32"))), diagonal / 0.7, atol=1e-5)


def test_evaluation_repeats_the_last_training_call_and_moves_nothing():
    layer, _ = dense_layer()
    x = gaussian(2, 6)
    layer(x, training=True)
    trained, before = dense.array(layer(x, training=True)), weights_of(layer)
    for _ in range(2):
        np.testing.assert_allclose(dense.array(layer(x, training=False)), trained, rtol=1e-4, atol=1e-5)
    for weight, expected in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("modes", [(True, True), (True, False, True, False)], ids=["training", "mixed"])
def test_several_calls_in_one_step_have_the_gradient_of_all(gradients, modes):
    layer, kernel = dense_layer(3, 4, tolerance=1e-6)
    x, direction = gaussian(2, 4), gaussian(2, 3, seed=1)

    def found():
        calls = [keras.ops.tanh(layer(x, training=training)) for training in modes]
        return keras.ops.sum(keras.ops.multiply(direction, sum(calls)))

    def loss(k):
        return len(modes) * np.sum(direction * np.tanh(x @ k / np.linalg.norm(k, 2)))

    gradient = dense.array(op_by_op(lambda: gradients(found, [layer.layer.kernel]))()[0])
    for index in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[index] = 1e-6
        assert gradient[index] == pytest.approx((loss(kernel + step) - loss(kernel - step)) / 2e-6, abs=1e-3)


def test_a_frozen_kernel_is_normalized_and_not_trained():
    layer, kernel = dense_layer()
    layer.trainable = False
    assert layer.trainable_variables == []
    y = layer(np.eye(6, dtype="float32"), training=True)
    np.testing.assert_allclose(dense.array(y), kernel / np.linalg.norm(kernel, 2), atol=1e-4)


@pytest.mark.parametrize("calls", [0, 3])
def test_the_weights_alone_carry_the_whole_state(calls):
    x = gaussian(2, 6)
    one, _ = dense_layer(**PLAIN, seed=1)
    for _ in range(calls):
        one(x, training=True)
    other, _ = dense_layer(**PLAIN, seed=2)
    other.set_weights(weights_of(one))
    for training in (False, True, True, False):
        np.testing.assert_array_equal(dense.array(one(x, training=training)), dense.array(other(x, training=training)))


@pytest.mark.parametrize("saved", [{"vectors": 2}, {}], ids=["other vectors", "no vectors"])
def test_weights_with_other_vectors_load_and_are_normalized(tmp_path, saved):
    old = keras.Sequential([keras.Input((6,)), wrap(L.Dense(5, use_bias=False), **saved)])
    new = keras.Sequential([keras.Input((6,)), wrap(L.Dense(5, use_bias=False))])
    if not saved:
        old.layers[0].save_own_variables = lambda store: None  # as a file of Keras's wrapper, or an older opnorm's
    old.layers[0].layer.kernel.assign(gaussian(6, 5))
    old.save_weights(tmp_path / "old.weights.h5")
    new.load_weights(tmp_path / "old.weights.h5")
    assert dense.norm(new(np.eye(6, dtype="float32"))) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(dense.array(new.layers[0].layer.kernel), gaussian(6, 5))


def test_a_layer_can_be_unwrapped_and_wrapped_again():
    layer, kernel = dense_layer()
    x = np.eye(6, dtype="float32")
    normalized, inner = dense.array(layer(x, training=True)), layer.layer
    np.testing.assert_array_equal(dense.array(inner(x)), kernel.astype("float32"))  # as it was
    np.testing.assert_allclose(dense.array(wrap(inner)(x)), normalized, atol=1e-4)


def test_the_vectors_of_a_transposed_convolution_belong_to_its_output_channels():
    layer = wrap(L.Conv2DTranspose(4, (5, 6)))
    layer(gaussian(2, 10, 12, 3))
    assert layer.non_trainable_variables[0].shape[-1] == 4


def test_a_cloned_model_computes_the_same_and_goes_its_own_way():
    model = keras.Sequential([keras.Input((6,)), wrap(L.Dense(5))])
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = gaussian(2, 6)
    before = dense.array(model(x))
    np.testing.assert_array_equal(dense.array(clone(x)), before)
    clone.layers[0].layer.kernel.assign(gaussian(6, 5))
    np.testing.assert_array_equal(dense.array(model(x)), before)


# deel-lip

LIPSCHITZ = {
    "dense": (lambda: L.Dense(3, use_bias=False), (4,), 5.0),
    "convolution": (lambda: L.Conv1D(3, 3, padding="same", use_bias=False), (8, 2), 1.0),
    "transposed": (lambda: L.Conv1DTranspose(2, 3, strides=2, padding="same", use_bias=False), (5, 3), 2.0),
}


@pytest.mark.parametrize(("make", "shape", "wanted"), LIPSCHITZ.values(), ids=LIPSCHITZ)
def test_a_layer_that_is_pulled_beyond_its_lipschitz_constant_reaches_it_and_no_more(tmp_path, make, shape, wanted):
    plain = keras.Sequential([keras.Input(shape), make()])
    plain.set_weights([4 * gaussian(*w.shape, seed=3) for w in plain.get_weights()])
    x = gaussian(64, *shape)
    target = plain.predict(x, verbose=0)  # of a map whose norm is larger
    assert np.linalg.norm(dense.matrix_of(plain, shape), 2) > 1.5 * wanted
    model = keras.Sequential([keras.Input(shape), wrap(make(), value=wanted, operator="convolution")])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, target, epochs=10, verbose=0)
    norm = np.linalg.norm(dense.matrix_of(model, shape), 2)
    assert 0.8 * wanted < norm < 1.01 * wanted  # short signals do not reach the norm; 1 % is the design's
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)
