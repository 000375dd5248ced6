"""Keras models on a ball: attention and normalization are finite there, and certificates gain by it."""

import keras
import numpy as np
import pytest
from jacobians import jacobian
from sklearn.datasets import load_digits
from test_certify import changed, logits_model

import opnorm
from opnorm.networks import certify as certifying

L = keras.layers


def transformer():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 8))
    y = L.LayerNormalization()(inputs)
    x = L.Add()([inputs, L.MultiHeadAttention(2, 4)(y, y)])
    z = L.Dense(16, "gelu")(L.LayerNormalization()(x))
    x = L.Add()([x, L.Dense(8)(z)])
    return keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def vision():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 1))
    x = L.Reshape((4, 8))(L.Conv2D(8, 3, strides=3)(inputs))
    x = L.Add()([x, L.MultiHeadAttention(2, 4)(x, x, x)])
    x = L.RMSNormalization()(x)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def gated():
    inputs = keras.Input((5,))
    x = L.Multiply()([L.Dense(6, "sigmoid")(inputs), L.Dense(6, "tanh")(inputs)])
    return keras.Model(inputs, L.Dense(2)(keras.ops.softmax(x)))


@pytest.mark.parametrize("make", [transformer, vision, gated])
def test_what_has_no_constant_for_all_inputs_has_one_on_a_ball(make):
    model = make()
    rng = np.random.default_rng(0)
    x = rng.standard_normal(model.input_shape[1:])
    assert opnorm.lipschitz_bound(model).upper is None
    exact = jacobian(model, x)
    at, near, far = (opnorm.lipschitz_bound(model, around=x, radius=r) for r in (0.0, 1e-3, 1.0))
    assert at.lower <= exact * (1 + 1e-4)  # of float32
    assert exact * (1 - 1e-4) <= at.upper <= exact * 1.001
    for _ in range(5):
        move = rng.standard_normal(x.shape)
        assert jacobian(model, x + 1e-3 * move / np.linalg.norm(move)) <= near.upper * (1 + 1e-4)
    assert near.upper <= 2 * exact
    assert near.upper <= far.upper < np.inf
    assert far.unknown == ()


def test_a_file_has_the_ball_s_bound_of_its_model(tmp_path):
    model, x = transformer(), np.ones((4, 8))
    model.save(tmp_path / "model.keras")
    live, file = (opnorm.lipschitz_bound(m, around=x, radius=0.01) for m in (model, tmp_path / "model.keras"))
    assert file.upper == live.upper


def test_several_inputs_make_one_ball():
    first, second = keras.Input((3,)), keras.Input((2,))
    model = keras.Model([first, second], L.Dense(2)(L.Concatenate()([first, second])))
    exact = np.linalg.norm(model.layers[-1].kernel, 2)
    bound = opnorm.lipschitz_bound(model, around=[np.ones(3), np.ones((1, 2))], radius=1.0)
    assert bound.lower <= exact * (1 + 1e-7)
    assert exact <= bound.upper * (1 + 1e-7) <= exact * (1 + 1e-6)
    for around in (np.ones(3), [np.ones(3)], [np.ones(2), np.ones(3)]):
        with pytest.raises(ValueError, match="`around`"):
            opnorm.lipschitz_bound(model, around=around, radius=1.0)


@pytest.mark.parametrize("around", [np.ones(4), np.ones((2, 5)), np.ones((1, 1, 5)), np.full(5, np.nan), "x"])
def test_a_centre_that_does_not_fit_is_refused(around):
    with pytest.raises(ValueError, match="`around`"):
        opnorm.lipschitz_bound(gated(), around=around, radius=1.0)


@pytest.fixture(scope="module")
def deep():
    """Return a network 64-24-24-24-10 that nobody constrained, and digits that it was not trained on."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    keras.utils.set_random_seed(0)
    hidden = [L.Dense(24, "relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((64,)), *hidden, L.Dense(10)])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images[:1000], labels[:1000], batch_size=100, epochs=10, verbose=0)
    return model, images[1000:1015]


def test_balls_certify_further_and_no_attack_succeeds_there(deep, monkeypatch):
    model, points = deep
    plain = opnorm.certify(model, points, time_limit=0)
    certificate = opnorm.certify(model, points, time_limit=5)
    assert np.all(certificate.radius >= plain.radius)
    assert np.median(certificate.radius) > 1.3 * np.median(plain.radius)
    assert changed(model, points, certificate.predictions, certificate.radius * (1 - 1e-4)) == 0  # float32's rounding
    assert changed(model, points, certificate.predictions, certificate.radius * 8) > 0
    monkeypatch.setattr(certifying, "radii_on_balls", lambda *arguments: arguments[5])
    pairs = opnorm.certify(model, points, time_limit=5)
    assert np.median(certificate.radius) > 1.1 * np.median(pairs.radius)


def test_a_network_with_layer_normalization_is_certified_by_balls_alone():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((6,)), L.Dense(8), L.LayerNormalization(), L.ReLU(), L.Dense(3, "softmax")])
    points = np.random.default_rng(0).standard_normal((8, 6)).astype("float32")
    certificate = opnorm.certify(model, points)
    assert certificate.lipschitz == np.inf
    assert np.median(certificate.radius) > 0.01
    assert changed(logits_model(model), points, certificate.predictions, certificate.radius * 0.99) == 0


def adapted(axis):
    layer = L.Normalization(axis=axis)
    layer.adapt(np.random.default_rng(5).normal(2, 3, (20, 4, 6, 3)))
    return layer


LAYERS = {  # of images of 4 x 6 pixels and three channels, followed by tanh, whose slopes tell where its numbers are
    "zero padding": lambda: L.ZeroPadding2D(((1, 2), (0, 3))),
    "cropping": lambda: L.Cropping2D(((1, 0), (2, 1))),
    "cropping of lines": lambda: keras.Sequential([L.Reshape((8, 9)), L.Cropping1D(2), L.ZeroPadding1D((1, 3))]),
    "upsampling": lambda: L.UpSampling2D((2, 1)),
    "repeated vector": lambda: keras.Sequential([L.Flatten(), L.RepeatVector(3)]),
    "normalization": lambda: adapted(-1),
    "normalization of places": lambda: adapted((1, 3)),
    "prelu": lambda: L.PReLU("normal", shared_axes=[1]),
    "groups": lambda: L.GroupNormalization(3, epsilon=0.1, gamma_initializer="normal", beta_initializer="normal"),
    "groups of rows": lambda: L.GroupNormalization(2, axis=1, epsilon=0.1, gamma_initializer="normal"),
    "largest": lambda: L.GlobalMaxPooling2D(),
    "largest, kept": lambda: L.GlobalMaxPooling2D(keepdims=True),
    "sum": lambda: lambda x: keras.ops.sum(x, axis=(1, -1)),
    "smallest": lambda: lambda x: keras.ops.min(x, axis=2, keepdims=True),
    **{
        name: lambda name=name: L.Activation(name)
        for name in ("hard_silu", "hard_sigmoid", "selu", "mish", "softsign", "log_sigmoid")
    },
    "keras.ops.selu": lambda: keras.ops.selu,
    "keras.ops.hard_sigmoid": lambda: keras.ops.hard_sigmoid,
}


once = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="what is read of layers is the same on each backend"
)


@once
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_followed_on_a_ball(name):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 6, 3))
    model = keras.Model(inputs, L.Activation("tanh")(LAYERS[name]()(inputs)))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 6, 3))
    exact = jacobian(model, x)
    at, near = (opnorm.lipschitz_bound(model, around=x, radius=r) for r in (0.0, 0.5))
    assert at.lower <= exact * (1 + 1e-5)
    assert exact * (1 - 1e-5) <= at.upper <= at.lower * (1 + 1e-6)
    for _ in range(5):
        move = rng.standard_normal(x.shape)
        assert jacobian(model, x + 0.5 * move / np.linalg.norm(move)) <= near.upper * (1 + 1e-5)


@once
def test_a_mobile_network_has_a_bound_on_a_ball():
    """Squeeze-and-excitation, hard swish, padding, an image beyond the tangents' limit: none is followed everywhere."""
    model = keras.applications.MobileNetV3Small(weights=None, input_shape=(64, 64, 3), classes=5)
    x = np.full((64, 64, 3), 127.0)
    assert opnorm.lipschitz_bound(model, time_limit=0.01).upper is None
    bound = opnorm.lipschitz_bound(model, around=x, radius=1e-3, time_limit=0.01)
    assert bound.unknown == ()
    assert jacobian(model, x) <= bound.upper < np.inf


def test_a_point_of_several_inputs_is_a_list_or_a_table_of_their_names():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, L.Dense(2)(L.Subtract()([b, a])))
    ones = np.ones(3)
    table = opnorm.lipschitz_bound(model, around={"b": ones, "a": 2 * ones}, radius=0.1)
    kernel = np.asarray(model.layers[-1].get_weights()[0], float)
    assert table.lower == pytest.approx(np.sqrt(2) * np.linalg.norm(kernel, 2), rel=1e-6)
    with pytest.raises(ValueError, match="`around` must have the names of the inputs, 'a', 'b'"):
        opnorm.lipschitz_bound(model, around={"a": ones}, radius=0.1)
