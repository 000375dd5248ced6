"""The wrapper: what a layer applies is W / sigma(W), with the gradient of that, and nothing stored changes."""

import dense
import keras
import numpy as np
import pytest
from cases import gaussian, op_by_op

import opnorm

L = keras.layers
wrap = opnorm.SpectralNormalization


def matrix_norm(kernel, outputs=(-1,)):
    """Return the norm of `kernel` with the axes `outputs` as columns."""
    kernel = np.moveaxis(kernel, outputs, range(-len(outputs), 0))
    columns = int(np.prod(kernel.shape[-len(outputs) :]))
    return np.linalg.norm(kernel.reshape(-1, columns).astype("float64"), 2)


def largest(blocks):
    return max(matrix_norm(block) for block in blocks)


def depthwise_norm(kernel):
    return largest(np.moveaxis(kernel, -2, 0))


def matrices(**names):
    return {name: (lambda kernel, outputs=outputs: matrix_norm(kernel, outputs)) for name, outputs in names.items()}


# layer, input shape, the norm of each weight that is a kernel, by the name of the weight
LAYERS = [
    (L.Dense(5), (6,), matrices(kernel=(-1,))),
    (L.EinsumDense("abc,bcd->ad", output_shape=(4,)), (2, 3), matrices(kernel=(-1,))),
    (L.EinsumDense("ax,xyz->ayz", output_shape=(2, 3)), (4,), matrices(kernel=(1, 2))),
    (L.Conv1D(4, 3, padding="causal"), (9, 2), matrices(kernel=(-1,))),
    (L.Conv2D(4, 3, strides=2), (7, 7, 3), matrices(kernel=(-1,))),
    (L.Conv2D(4, 3, groups=2), (6, 6, 4), {"kernel": lambda k: largest(np.split(k, 2, -1))}),
    (L.Conv2DTranspose(3, 3, strides=2), (4, 4, 2), matrices(kernel=(-2,))),
    (L.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3), {"kernel": depthwise_norm}),
    (
        L.SeparableConv2D(4, 3, depth_multiplier=2),
        (6, 6, 3),
        {"depthwise_kernel": depthwise_norm, "pointwise_kernel": matrix_norm},
    ),
    (L.LSTM(3), (5, 4), matrices(kernel=(-1,), recurrent_kernel=(-1,))),
    (L.GRU(3, return_sequences=True), (5, 4), matrices(kernel=(-1,), recurrent_kernel=(-1,))),
    (L.Bidirectional(L.SimpleRNN(3)), (5, 4), matrices(kernel=(-1,), recurrent_kernel=(-1,))),
    (L.TimeDistributed(L.Dense(3)), (5, 4), matrices(kernel=(-1,))),
    (L.ConvLSTM1D(2, 3), (3, 6, 2), matrices(kernel=(-1,), recurrent_kernel=(-1,))),
]
NAMES = [f"{type(layer).__name__}-{index}" for index, (layer, _, _) in enumerate(LAYERS)]


def copied(layer):
    return type(layer).from_config(layer.get_config())


def weights_of(layer):
    return [dense.array(weight).copy() for weight in layer.weights]  # PyTorch's arrays are views


@pytest.mark.parametrize(("layer", "shape", "norms"), LAYERS, ids=NAMES)
def test_a_layer_is_called_with_each_kernel_divided_by_its_norm(layer, shape, norms):
    wrapped, plain = wrap(copied(layer), value=0.7), copied(layer)
    x = gaussian(3, *shape)
    plain.build(x.shape)
    wrapped.build(x.shape)
    stored = [gaussian(*w.shape, seed=i) for i, w in enumerate(plain.get_weights())]
    wrapped.layer.set_weights(stored)
    names = [weight.name for weight in plain.weights]
    plain.set_weights(
        [0.7 * w / norms[n](w) if n in norms and w.ndim > 1 else w for w, n in zip(stored, names, strict=True)]
    )
    y = op_by_op(wrapped)(x, training=True)
    np.testing.assert_allclose(dense.array(y), dense.array(plain(x)), rtol=2e-4, atol=2e-4)  # sigma within 1e-4
    for weight, before in zip(weights_of(wrapped.layer), stored, strict=True):
        np.testing.assert_array_equal(weight, before)


def test_attention_is_called_with_normalized_projections():
    wrapped, plain = wrap(L.MultiHeadAttention(2, 3)), L.MultiHeadAttention(2, 3)
    x, y = gaussian(2, 5, 6), gaussian(2, 4, 6)
    wrapped(x, y)
    plain(x, y)
    stored = [gaussian(*w.shape, seed=i) for i, w in enumerate(plain.get_weights())]
    wrapped.layer.set_weights(stored)
    outputs = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "attention_output": (2,)}
    for weight, value in zip(plain.weights, stored, strict=True):
        part, name = weight.path.split("/")[-2:]
        weight.assign(value / matrix_norm(value, outputs[part]) if name == "kernel" else value)
    np.testing.assert_allclose(dense.array(wrapped(x, y)), dense.array(plain(x, y)), rtol=1e-3, atol=1e-4)


def test_an_embedding_returns_floats_of_a_normalized_table():
    layer = wrap(L.Embedding(10, 4))
    table = layer(np.arange(10))
    assert "float" in keras.backend.standardize_dtype(table.dtype)
    assert dense.norm(table) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_the_operator_of_a_convolution_has_the_wanted_norm(strides):
    layer = wrap(L.Conv2D(4, 3, strides=strides, padding="same", use_bias=False), operator="convolution", value=2.0)
    layer.build((None, 12, 12, 3))
    norm = np.linalg.norm(dense.matrix_of(layer, (12, 12, 3)), 2)
    assert 1.8 < norm < 2 * (1 + 1e-2)  # the supremum over all sizes is the target; 12 x 12 comes close to it


def test_a_cap_leaves_a_small_kernel_bitwise_alone_and_lowers_a_large_one():
    x = np.eye(6, dtype="float32")
    layer = wrap(L.Dense(5, use_bias=False), value=0.95, cap=True)
    layer.build((None, 6))
    kernel = gaussian(6, 5)
    layer.layer.kernel.assign(kernel / 100)
    np.testing.assert_array_equal(dense.array(layer(x)), dense.array(layer.layer(x)))
    layer.layer.kernel.assign(kernel)
    assert dense.norm(layer(x)) == pytest.approx(0.95, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("cap", [False, True])
def test_the_gradient_is_that_of_the_normalized_kernel(gradients, scale, cap):
    layer = wrap(L.Dense(4, use_bias=False), value=0.5, cap=cap, tolerance=1e-6)
    layer.build((None, 5))
    kernel, direction, x = gaussian(5, 4), gaussian(3, 4, seed=5), gaussian(3, 5, seed=6)
    layer.layer.kernel.assign(kernel * np.float32(scale))

    def loss(k):
        return np.sum(direction * np.tanh(x @ (k * 0.5 / np.linalg.norm(k, 2))))

    def found():
        return keras.ops.sum(keras.ops.multiply(direction, keras.ops.tanh(layer(x))))

    if cap and scale < 1:  # inside: the kernel itself, on which the loss depends linearly
        expected = x.T @ direction
        scale = 1.0
    else:
        expected = finite_differences(loss, kernel.astype("float64"))
    gradient = dense.array(op_by_op(lambda: gradients(found, [layer.layer.kernel]))()[0]).astype("float64") * scale
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def finite_differences(loss, kernel, step=1e-6):
    result = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
        shift = np.zeros_like(kernel)
        shift[index] = step
        result[index] = (loss(kernel + shift) - loss(kernel - shift)) / (2 * step)
    return result


def test_the_gradient_of_a_convolution_is_that_of_its_reshaped_kernel(gradients):
    layer = wrap(L.Conv2D(3, 2, use_bias=False), tolerance=1e-6)
    layer.build((None, 4, 4, 2))
    kernel, direction = gaussian(2, 2, 2, 3), gaussian(2, 2, 2, 3, seed=1)
    layer.layer.kernel.assign(kernel)

    def found():
        with layer.normalized():
            return keras.ops.sum(keras.ops.multiply(direction, layer.layer.kernel.value))

    expected = finite_differences(lambda k: np.sum(direction * k) / matrix_norm(k), kernel.astype("float64"))
    gradient = dense.array(op_by_op(lambda: gradients(found, [layer.layer.kernel]))()[0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_evaluation_uses_what_training_used(data, policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((12,)), wrap(L.Dense(16, "tanh")), wrap(L.Dense(4))])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(*data, epochs=3, verbose=0)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    trained = model.fit(*data, batch_size=64, verbose=0).history["loss"][0]
    evaluated = model.evaluate(*data, batch_size=64, verbose=0)
    assert evaluated == pytest.approx(trained, rel=2e-5 if policy == "float32" else 2e-3)  # roundings of the policy
    for layer in model.layers:
        kernel, bias = weights_of(layer.layer)
        assert kernel.dtype == "float32"
        assert np.any(kernel != kernel.astype("float16").astype("float32"))  # not rounded to half precision
    x = np.eye(12, dtype="float32")
    first = dense.array(model.layers[0].layer.kernel).astype("float64")
    bias = dense.array(model.layers[0].layer.bias).astype("float64")
    expected = np.tanh(x @ first / np.linalg.norm(first, 2) + bias)
    np.testing.assert_allclose(dense.array(model.layers[0](x)), expected, atol=1e-5 if policy == "float32" else 1e-2)


@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_the_norm_stays_within_two_percent_while_training(data, rate):
    body = [wrap(L.Dense(n, a)) for n, a in ((16, "relu"), (16, "relu"), (4, None))]
    model = keras.Sequential([keras.Input((12,)), *body])
    model.compile(keras.optimizers.Adam(rate), "mse")
    model.fit(*data, epochs=25, verbose=0)
    for _ in range(10):
        model.train_on_batch(*data)
        for layer in body:
            with layer.normalized():
                assert dense.norm(layer.layer.kernel.value) == pytest.approx(1, abs=2e-2)


def test_states_and_losses_of_the_wrapped_layer_are_its_own(data):
    inputs, _ = data

    def block():
        kernel = keras.initializers.RandomNormal(seed=2)
        dense_layer = L.Dense(6, kernel_initializer=kernel, activity_regularizer=keras.regularizers.L2(0.1))
        return keras.Sequential([dense_layer, L.BatchNormalization(), L.Dropout(0.5, seed=3)])

    plain, wrapped = block(), wrap(block())
    plain.build((None, 12))
    wrapped.build((None, 12))
    plain.layers[0].kernel.assign(dense.array(plain.layers[0].kernel) / dense.norm(plain.layers[0].kernel))
    models = []
    for one in (plain, wrapped):
        model = keras.Sequential([keras.Input((12,)), one])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        losses = model.fit(inputs, 0 * inputs[:, :6], epochs=2, shuffle=False, verbose=0).history["loss"]
        models.append((losses, weights_of(one if one is plain else one.layer)))
    (losses, weights), (wrapped_losses, wrapped_weights) = models
    np.testing.assert_allclose(wrapped_losses, losses, rtol=1e-4)
    for after, expected in zip(wrapped_weights[1:], weights[1:], strict=True):  # moving averages; [0] is the kernel
        np.testing.assert_allclose(after, expected, rtol=1e-3, atol=1e-5)


def test_two_calls_in_one_step_have_the_gradient_of_both(gradients):
    layer = wrap(L.Dense(1, use_bias=False), tolerance=1e-6)
    layer.build((None, 5))
    kernel, real, fake = gaussian(5, 1), gaussian(4, 5), gaussian(4, 5, seed=1)
    layer.layer.kernel.assign(kernel)

    def found():
        difference = layer(real, training=True) - layer(fake, training=True)
        return keras.ops.sum(keras.ops.tanh(difference))

    gradient = dense.array(op_by_op(lambda: gradients(found, [layer.layer.kernel]))()[0])
    expected = finite_differences(
        lambda k: np.sum(np.tanh((real - fake) @ k / np.linalg.norm(k))), kernel.astype("float64")
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_only_training_moves_the_vectors_and_a_frozen_layer_moves_nothing(data):
    inputs, _ = data
    model = keras.Sequential([keras.Input((12,)), wrap(L.Dense(4)), L.Dense(4)])  # Keras warns if all is frozen
    layer = model.layers[0]
    layer.layer.kernel.assign(gaussian(12, 4))
    before = weights_of(layer)
    model.compile("sgd", "mse")
    model.predict(inputs, verbose=0)
    model.evaluate(inputs, inputs[:, :4], verbose=0)
    for weight, expected in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    layer(inputs, training=True)
    assert any(np.any(weight != old) for weight, old in zip(weights_of(layer), before, strict=True))
    before = weights_of(layer)
    layer.trainable = False
    model.compile("sgd", "mse")
    model.fit(inputs, inputs[:, :4], verbose=0)
    for weight, expected in zip(weights_of(layer), before, strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_zero_kernel_stays_zero_until_training_moves_it(data):
    layer = wrap(L.Dense(4, kernel_initializer="zeros"))
    model = keras.Sequential([keras.Input((12,)), layer])
    assert not np.any(dense.array(layer(data[0])))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(*data, epochs=3, verbose=0)
    with layer.normalized():
        assert dense.norm(layer.layer.kernel.value) == pytest.approx(1, abs=1e-3)


def test_a_shared_layer_and_a_wrapper_of_a_wrapper_are_normalized_once():
    layer = wrap(L.Dense(6, use_bias=False))
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layer(layer(inputs)))
    once = dense.array(layer(np.eye(6, dtype="float32")))
    np.testing.assert_allclose(model.predict(np.eye(6), verbose=0), once @ once, atol=1e-5)
    nested = wrap(wrap(L.Dense(5, use_bias=False)))
    assert dense.norm(nested(np.eye(6, dtype="float32"))) == pytest.approx(1, abs=1e-4)


def test_lora_is_normalized_with_its_update():
    layer = wrap(L.Dense(5, use_bias=False))
    layer.build((None, 6))
    layer.layer.enable_lora(2)
    layer.layer.lora_kernel_b.assign(gaussian(*layer.layer.lora_kernel_b.shape))
    effective = dense.array(layer.layer.kernel)
    y = dense.array(layer(np.eye(6, dtype="float32")))
    np.testing.assert_allclose(y, effective / np.linalg.norm(effective.astype("float64"), 2), atol=1e-4)


def test_a_quantized_layer_is_refused():
    model = keras.Sequential([keras.Input((6,)), wrap(L.Dense(5))])
    with pytest.warns(UserWarning, match="InputLayer does not have a `quantize` method"):
        model.quantize("int8")
    with pytest.raises(ValueError, match="quantization_mode='int8'"):
        model.layers[0](gaussian(2, 6))


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow's is refused, in the next test")
def test_rematerialization_changes_no_gradient():
    changes = []
    for mode in (None, "full"):
        with keras.RematScope(mode=mode):
            layer = wrap(L.Conv1D(5, 2))
        model = keras.Sequential([keras.Input((7, 6)), layer])
        kernel = gaussian(2, 6, 5)
        layer.layer.kernel.assign(kernel)
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.fit(gaussian(4, 7, 6), np.ones((4, 6, 5)), verbose=0)
        changes.append(dense.array(layer.layer.kernel) - kernel)
    assert np.abs(changes[0]).max() > 1e-3
    np.testing.assert_allclose(changes[1], changes[0], atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the others can, as the last test shows")
def test_rematerialization_is_refused_where_it_would_lose_the_gradient():
    with keras.RematScope(mode="full"):
        layer = wrap(L.Conv1D(5, 2))
    with pytest.raises(ValueError, match="RematScope"):
        layer(gaussian(4, 7, 6))


def test_a_saved_model_predicts_the_same_and_goes_on_the_same(data, tmp_path):
    model = keras.Sequential([keras.Input((12,)), wrap(L.Dense(8, "relu"), 2, value=1.5), wrap(L.Dense(4), cap=True)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(*data, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded.layers, model.layers, strict=True):
        assert one.get_config() | {"layer": None} == other.get_config() | {"layer": None}
    for _ in range(3):
        model.train_on_batch(*data)
        loaded.train_on_batch(*data)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_weights_saved_under_keras_own_wrapper_load(tmp_path):
    theirs = keras.Sequential([keras.Input((6,)), L.SpectralNormalization(L.Dense(5))])
    ours = keras.Sequential([keras.Input((6,)), wrap(L.Dense(5))])
    theirs.save_weights(tmp_path / "model.weights.h5")
    ours.load_weights(tmp_path / "model.weights.h5")
    for one, other in zip(weights_of(ours.layers[0].layer), weights_of(theirs.layers[0].layer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_plain_weights_fit_the_wrapped_layer():
    plain, wrapped = L.Dense(5), wrap(L.Dense(5))
    plain.build((None, 6))
    wrapped.build((None, 6))
    wrapped.layer.set_weights(plain.get_weights())
    y = dense.array(wrapped(np.eye(6, dtype="float32")))
    assert np.linalg.norm(y, 2) == pytest.approx(1, abs=1e-4)


def test_the_operator_of_a_wrapped_layer_is_the_normalized_one():
    layer = wrap(L.Dense(5))
    layer.build((None, 6))
    lower, upper = opnorm.spectral_norm(layer)
    assert lower <= 1 + 1e-4
    assert upper >= 1 - 1e-4
    assert upper - lower < 1e-5


def test_a_mask_passes_through():
    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    embedded = L.Embedding(10, 6, mask_zero=True)
    layer = wrap(L.LSTM(3))
    whole, cut = layer(embedded(tokens)), layer(embedded(tokens[:, :2]))
    np.testing.assert_allclose(dense.array(whole), dense.array(cut), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"power_iterations": 0}, "power_iterations"),
        ({"value": -1.0}, "value"),
        ({"value": float("nan")}, "value"),
        ({"operator": "sliding"}, "operator"),
        ({"vectors": 0}, "vectors"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"perturbation": 1.0}, "perturbation"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"Argument `{name}`.*Received: {name}="):
        wrap(L.Dense(5), **arguments)


def test_a_layer_without_a_kernel_and_a_cell_are_refused():
    with pytest.raises(ValueError, match="must have a kernel"):
        wrap(L.Dropout(0.5)).build((None, 3))
    with pytest.raises(ValueError, match="must be a recurrent layer"):
        wrap(L.LSTMCell(3))
