"""Every layer of the table "which matrix", against what Keras computes on the backend that `KERAS_BACKEND` names."""

import keras
import numpy as np
import pytest

from opnorm.bounds.brackets import spectral_norm
from opnorm.operators.linear import linear_operator, linear_operators

L = keras.layers
SINGLE = 1e-5  # Keras computes in float32: some hundred products of numbers near 1
PRECISE = 1e-6  # a norm of float32 products; their errors average out

CONVOLUTIONS = [
    (L.Conv1D(3, 4), (9, 2)),
    (L.Conv1D(3, 4, padding="same", strides=2), (9, 2)),
    (L.Conv1D(3, 3, padding="causal", dilation_rate=2), (9, 2)),
    (L.Conv1D(3, 3, padding="causal", strides=2), (8, 2)),
    (L.Conv2D(3, 3), (6, 7, 2)),
    (L.Conv2D(3, 3, padding="same"), (6, 7, 2)),
    (L.Conv2D(3, 3, padding="same", strides=2), (6, 7, 2)),
    (L.Conv2D(3, (4, 2), padding="same", strides=(3, 2)), (7, 8, 2)),
    (L.Conv2D(4, 2, padding="same", dilation_rate=2), (6, 7, 2)),
    (L.Conv2D(4, 3, padding="same", groups=2), (5, 6, 4)),
    (L.Conv3D(2, 2, padding="same", strides=2), (4, 5, 4, 2)),
    (L.DepthwiseConv1D(3, depth_multiplier=2, padding="same"), (8, 3)),
    (L.DepthwiseConv2D(3, depth_multiplier=2, strides=2), (7, 6, 3)),
    (L.DepthwiseConv2D(2, padding="same"), (5, 6, 3)),
    (L.Conv1DTranspose(3, 3, strides=2, padding="same"), (5, 2)),
    (L.Conv1DTranspose(3, 2, strides=3), (5, 2)),
    (L.Conv2DTranspose(3, 3), (4, 5, 2)),
    (L.Conv2DTranspose(3, 3, padding="same"), (4, 5, 2)),
    (L.Conv2DTranspose(3, 3, strides=2, padding="same"), (4, 5, 2)),
    (L.Conv2DTranspose(3, 4, strides=2, padding="same"), (4, 5, 2)),
    (L.Conv2DTranspose(3, 2, strides=2), (4, 5, 2)),
    (L.Conv3DTranspose(2, 2, strides=2, padding="same"), (3, 2, 3, 2)),
]
PER_POSITION = [
    (L.Dense(5), (4,)),
    (L.EinsumDense("ab,bc->ac", output_shape=5), (4,)),
    (L.EinsumDense("...x,xyz->...yz", output_shape=(2, 3)), (4,)),
    (L.EinsumDense("axy,xyz->az", output_shape=(5,)), (4, 3)),
    (L.EinsumDense("agx,gxz->agz", output_shape=(3, 5)), (3, 4)),
    (L.BatchNormalization(), (4,)),
    (L.BatchNormalization(scale=False), (4,)),
]


def _build(layer, shape):
    fresh = type(layer).from_config(layer.get_config())
    fresh.build((None, *shape))
    rng = np.random.default_rng(0)
    weights = [rng.uniform(0.5, 1.5, w.shape) * rng.choice([-1, 1], w.shape) for w in fresh.get_weights()]
    fresh.set_weights([np.abs(w) if fresh.weights[i].path.endswith("variance") else w for i, w in enumerate(weights)])
    return fresh


def _explicit(layer, shape):
    """Return the layer's matrix, (outputs, inputs), column by column from the layer itself."""
    images = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    values = keras.ops.convert_to_numpy(layer(images)) - keras.ops.convert_to_numpy(layer(np.zeros_like(images)))
    return values.reshape(len(images), -1).T.astype(np.float64)


def _ids(pairs):
    return [f"{type(layer).__name__}-{i}" for i, (layer, _) in enumerate(pairs)]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS + PER_POSITION, ids=_ids(CONVOLUTIONS + PER_POSITION))
def test_the_operator_is_what_the_layer_multiplies_its_input_with(layer, shape):
    layer = _build(layer, shape)
    operator, matrix = linear_operator(layer), _explicit(layer, shape)
    np.testing.assert_allclose(operator.matmat(np.eye(operator.shape[1])), matrix, atol=SINGLE)
    truth = np.linalg.svd(matrix, compute_uv=False)[0]
    lower, upper = spectral_norm(layer)
    assert lower <= truth * (1 + PRECISE)
    assert truth <= upper * (1 + PRECISE)
    assert upper <= lower * (1 + 1e-6)


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=_ids(CONVOLUTIONS))
def test_a_layer_built_for_every_size_is_bounded_for_every_size(layer, shape):
    sized = _build(layer, shape)
    free = type(layer).from_config(layer.get_config())
    free.build((None, *[None] * (len(shape) - 1), shape[-1]))
    free.set_weights(sized.get_weights())
    truth = np.linalg.svd(_explicit(sized, shape), compute_uv=False)[0]
    assert truth <= spectral_norm(free).upper * (1 + PRECISE)


def test_a_transposed_convolution_with_output_padding_is_bounded_for_every_size():
    layer = _build(L.Conv2DTranspose(2, 3, strides=2, padding="valid", output_padding=1), (4, 5, 2))
    truth = np.linalg.svd(_explicit(layer, (4, 5, 2)), compute_uv=False)[0]
    assert truth <= spectral_norm(layer).upper * (1 + PRECISE)


def test_an_embedding_is_its_matrix():
    layer = _build(L.Embedding(6, 3), ())
    rows = keras.ops.convert_to_numpy(layer(np.arange(6)))
    np.testing.assert_allclose(linear_operator(layer).matmat(np.eye(6)), rows.T, atol=SINGLE)


def test_a_separable_convolution_is_its_two_maps_one_after_the_other():
    layer = _build(L.SeparableConv2D(5, 3, depth_multiplier=2, padding="same", strides=2), (6, 7, 3))
    maps = linear_operators(layer)
    assert list(maps) == ["depthwise_kernel", "pointwise_kernel"]
    image = np.random.default_rng(1).standard_normal((1, 6, 7, 3)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(layer(image)) - keras.ops.convert_to_numpy(layer(0 * image))
    middle = (maps["depthwise_kernel"] @ image.ravel()).reshape(-1, 6)
    np.testing.assert_allclose((maps["pointwise_kernel"] @ middle.T).T.ravel(), expected.ravel(), atol=1e-4)  # two maps


@pytest.mark.parametrize(("kind", "gates"), [(L.SimpleRNN, 1), (L.LSTM, 4), (L.GRU, 3)])
def test_recurrent_kernels_come_jointly_or_gate_by_gate(kind, gates):
    layer = _build(kind(3), (5, 2))
    joint = linear_operators(layer)
    assert {name: one.shape for name, one in joint.items()} == {
        "kernel": (3 * gates, 2),
        "recurrent_kernel": (3 * gates, 3),
    }
    each = linear_operators(layer, gates=True)
    stacked = np.concatenate([each[f"kernel/{i}"].matmat(np.eye(2)) for i in range(gates)])
    np.testing.assert_array_equal(stacked, joint["kernel"].matmat(np.eye(2)))
    np.testing.assert_allclose(stacked.T, keras.ops.convert_to_numpy(layer.cell.kernel), atol=SINGLE)


def test_attention_is_its_projections():
    layer = L.MultiHeadAttention(2, 4)
    layer.build((None, 5, 6), (None, 5, 6))
    maps = linear_operators(layer)
    assert {name: one.shape for name, one in maps.items()} == {
        "query": (8, 6),
        "key": (8, 6),
        "value": (8, 6),
        "output": (6, 8),
    }
    kernel = keras.ops.convert_to_numpy(layer.output_dense.kernel).reshape(8, 6)
    np.testing.assert_allclose(maps["output"].matmat(np.eye(8)), kernel.T, atol=SINGLE)


@pytest.mark.parametrize("layer", [L.LSTM(3), L.SeparableConv1D(2, 3), L.MultiHeadAttention(2, 4)])
def test_a_layer_with_several_maps_names_them(layer):
    shape = (None, 5, 6)
    layer.build(shape, shape) if isinstance(layer, L.MultiHeadAttention) else layer.build(shape)
    with pytest.raises(ValueError, match="linear_operators"):
        linear_operator(layer)


@pytest.mark.parametrize("layer", [L.Dense(3), L.Conv2D(3, 3), L.LSTM(3), L.Embedding(3, 3), L.BatchNormalization()])
def test_a_layer_that_is_not_built_is_refused(layer):
    with pytest.raises(ValueError, match="`layer` must be built"):
        linear_operators(layer)


def test_an_unknown_layer_says_how_to_register_it():
    with pytest.raises(TypeError, match=r"linear_operator\.register\(Dropout"):
        linear_operator(L.Dropout(0.5))


def test_an_equation_that_is_not_one_matrix_is_refused():
    layer = L.EinsumDense("abc,cd->ad", output_shape=(5,))  # it also adds up the positions b
    layer.build((None, 4, 3))
    with pytest.raises(ValueError, match="equation"):
        linear_operator(layer)


def test_quantized_weights_are_refused():
    layer = _build(L.Dense(4), (3,))
    layer.quantize("int8")
    with pytest.raises(ValueError, match="quantized"):
        linear_operator(layer)


def test_lora_counts_with_the_kernel():
    layer = _build(L.Dense(4), (3,))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    matrix = linear_operator(layer).matmat(np.eye(3))
    np.testing.assert_allclose(matrix, _explicit(layer, (3,)), atol=SINGLE)


def test_variables_and_half_precision_tensors_are_read_as_they_are():
    values = np.random.default_rng(0).standard_normal((4, 3))
    for dtype in ("float32", "float16", "bfloat16"):
        variable = keras.Variable(values, dtype=dtype)
        exact = keras.ops.convert_to_numpy(keras.ops.cast(variable.value, "float32")).astype(np.float64)
        truth = np.linalg.svd(exact, compute_uv=False)[0]
        for x in (variable, keras.ops.convert_to_tensor(variable.value)):
            lower, upper = spectral_norm(x)
            assert lower <= truth * (1 + 1e-12)  # LAPACK's own rounding
            assert truth <= upper * (1 + 1e-12)
