"""Certified radii: no attack succeeds inside one, pairs of logits are never steeper than proved, ties have none."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import opnorm
from opnorm.keras.jacobian import linearize
from opnorm.keras.live import read_model
from opnorm.networks.folding import split
from opnorm.networks.forward import evaluate
from opnorm.networks.lipschitz import lipschitz_bound

L = keras.layers


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype("float32"), labels


@pytest.fixture(scope="module")
def trained(digits):
    """Return a network 64-32-10 that ends in a softmax, trained for a few hundred steps."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), L.Dense(32, "relu"), L.Dense(10, "softmax")])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    images, labels = digits
    model.fit(images[:1000], labels[:1000], batch_size=100, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def certificate(trained, digits):
    """Return the certificate of a hundred digits that the network was not trained on."""
    return opnorm.certify(trained, digits[0][1000:1100])


def logits_model(model):
    """Return the same network without its softmax."""
    last = model.layers[-1]
    if getattr(last, "activation", None) is not keras.activations.softmax:
        return model
    linear = L.Dense(last.units)
    shorter = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:-1], linear])
    linear.set_weights(last.get_weights())
    return shorter


def attacked(model, points, predictions, radii, steps):
    """Return where projected gradient ascent on (best other logit) - (predicted logit) ends, inside the radii."""
    rng = np.random.default_rng(0)
    flat = tuple(range(1, points.ndim))
    radii = radii.reshape(-1, *[1] * (points.ndim - 1))

    def inside(delta):
        norm = np.sqrt(np.sum(delta**2, axis=flat, keepdims=True))
        return delta * np.minimum(1, radii / np.maximum(norm, 1e-30))

    delta = inside(rng.standard_normal(points.shape) * radii)
    rows = np.arange(len(points))
    for _ in range(steps):
        x = (points + delta).astype("float32")
        z = np.array(keras.ops.convert_to_numpy(model(x, training=False)))
        z[rows, predictions] = -np.inf
        cotangent = np.zeros_like(z)
        cotangent[rows, z.argmax(axis=1)], cotangent[rows, predictions] = 1, -1
        gradient = linearize(model, x).backward(cotangent)
        norm = np.sqrt(np.sum(gradient**2, axis=flat, keepdims=True))
        delta = inside(delta + radii / 3 * gradient / np.maximum(norm, 1e-30))
    return points + delta


def changed(model, points, predictions, radii, steps=20):
    """Return how many of the predictions an attack changes."""
    x = attacked(model, points, predictions, radii, steps).astype("float32")
    return int(np.sum(np.argmax(keras.ops.convert_to_numpy(model(x, training=False)), axis=1) != predictions))


def test_no_attack_succeeds_inside_a_radius_and_some_do_further_out(trained, digits, certificate):
    points = digits[0][1000:1100]
    assert certificate.notes == ()
    assert np.median(certificate.radius) > 0.05  # not a bound of nothing
    model = logits_model(trained)
    assert changed(model, points, certificate.predictions, certificate.radius * (1 - 1e-4)) == 0  # float32's rounding
    assert changed(model, points, certificate.predictions, certificate.radius * 8) > 0  # the attack is one


def test_the_model_is_left_alone(trained, digits):
    before = [w.copy() for w in trained.get_weights()]
    opnorm.certify(trained, digits[0][:3], time_limit=0)
    assert all(np.array_equal(w, v) for w, v in zip(before, trained.get_weights(), strict=True))
    assert trained.layers[-1].activation is keras.activations.softmax


def test_the_predictions_are_keras_s_and_pairs_are_better_than_the_whole(trained, digits, certificate):
    points = digits[0][1000:1100]
    np.testing.assert_array_equal(certificate.predictions, np.argmax(trained.predict(points, verbose=0), axis=1))
    assert certificate.lipschitz == lipschitz_bound(logits_model(trained)).upper
    off = ~np.eye(10, dtype=bool)
    assert np.all(certificate.constants[off] < np.sqrt(2) * certificate.lipschitz)
    np.testing.assert_array_equal(certificate.constants, certificate.constants.T)


def test_no_pair_of_logits_is_steeper_than_proved(trained, digits, certificate):
    model = logits_model(trained)
    points = digits[0][::40]
    linear = linearize(model, points)
    rows = [linear.backward(np.tile(e, (len(points), 1))) for e in np.eye(10)]
    for i in range(10):
        for j in range(i):
            steepest = np.linalg.norm(rows[i] - rows[j], axis=1).max()
            assert steepest <= certificate.constants[i, j] * (1 + 1e-5)  # of float32


def test_a_wrong_label_has_radius_zero_and_accuracy_counts_it(trained, digits):
    points, labels = digits[0][1000:1100], digits[1][1000:1100]
    free, certificate = (opnorm.certify(trained, points, given, time_limit=0) for given in (None, labels))
    right = certificate.predictions == labels
    assert 0.8 < np.mean(right) < 1
    assert np.all(certificate.radius[~right] == 0)
    np.testing.assert_array_equal(certificate.radius[right], free.radius[right])
    assert certificate.certified_accuracy() == pytest.approx(np.mean(right))
    middle = float(np.median(certificate.radius))
    assert certificate.certified_accuracy(middle) == np.mean(certificate.radius > middle)


def test_a_tie_has_radius_zero():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, kernel_initializer="ones")])
    certificate = opnorm.certify(model, np.ones((2, 3)))
    np.testing.assert_array_equal(certificate.radius, 0)


def test_what_nothing_can_change_has_no_end():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, kernel_initializer="ones")])
    model.layers[-1].bias.assign([1.0, 0.0])
    certificate = opnorm.certify(model, np.ones((2, 3)), [0, 1])
    np.testing.assert_array_equal(certificate.radius, [np.inf, 0])
    assert certificate.certified_accuracy(1e9) == 0.5
    assert "2 examples" in certificate.to_text()
    certificate.plot()


@pytest.mark.parametrize("classes", [3, 25])  # beyond 20 the last kernel's rows tell pairs apart
def test_a_linear_classifier_has_its_distance_to_the_boundary(classes):
    model = keras.Sequential([keras.Input((4,)), L.Dense(classes)])
    kernel = np.random.default_rng(0).standard_normal((4, classes)).astype("float32").astype(float)
    model.set_weights([kernel, np.zeros(classes)])
    points = np.random.default_rng(1).standard_normal((20, 4))
    certificate = opnorm.certify(model, points)
    z = points @ kernel
    best = z.argmax(axis=1)
    others = [[j for j in range(classes) if j != i] for i in best]
    exact = [
        min((z[n, i] - z[n, j]) / np.linalg.norm(kernel[:, i] - kernel[:, j]) for j in others[n])
        for n, i in enumerate(best)
    ]
    np.testing.assert_allclose(certificate.radius, exact, rtol=1e-8)  # what a bracket's tolerance leaves
    assert np.all(certificate.radius <= np.array(exact) * (1 + 1e-12))  # roundoff of NumPy's


def convolutional():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Rescaling(2.0, offset=-1.0),
            L.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            L.BatchNormalization(),
            L.Conv2D(4, 3, padding="valid"),
            L.LeakyReLU(negative_slope=0.1),
            L.Flatten(),
            L.Dense(6, "tanh"),
            L.Dense(4),
            L.Softmax(),
        ]
    )


def pooled():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 1))
    x = L.MaxPooling2D(2)(L.Conv2D(4, 3, padding="same", activation="gelu")(inputs))
    return keras.Model(inputs, L.Dense(3, "softmax")(L.Flatten()(x)))


def transposed():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 1))
    x = L.Conv2DTranspose(2, 3, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def residual():
    inputs = keras.Input((8, 8, 1))
    x = keras.ops.relu(L.Dense(6)(L.Flatten()(inputs)))
    x = L.Add()([x, L.Dropout(0.5)(L.Dense(6, "silu")(x))])
    return keras.Model(inputs, keras.ops.softmax(L.Dense(3)(x)))


@pytest.mark.parametrize(("make", "assumed"), [(convolutional, 0), (residual, 0), (pooled, 0), (transposed, 1)])
def test_images_are_certified_with_a_note_where_rounding_is_assumed(make, assumed):
    model = make()
    points = np.random.default_rng(0).uniform(0, 1, (20, 8, 8, 1)).astype("float32")
    certificate = opnorm.certify(model, points)
    assert len(certificate.notes) == assumed
    np.testing.assert_array_equal(certificate.predictions, np.argmax(model.predict(points, verbose=0), axis=1))
    assert np.median(certificate.radius) > 0
    assert changed(model, points, certificate.predictions, certificate.radius * (1 - 1e-3), steps=6) == 0


def test_a_file_has_the_certificate_of_its_model(tmp_path):
    model, points = pooled(), np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 1)).astype("float32")
    model.save(tmp_path / "model.keras")
    own, file = (opnorm.certify(m, points, time_limit=0) for m in (model, tmp_path / "model.keras"))
    np.testing.assert_array_equal(file.predictions, own.predictions)
    np.testing.assert_allclose(file.radius, own.radius, rtol=1e-9)
    with pytest.raises(ValueError, match=r"Argument `x` must hold examples.*\(8, 8, 1\)"):
        opnorm.certify(tmp_path / "model.keras", points[..., 0])


def test_logits_in_float64_are_keras_s():
    *inner, _ = convolutional().layers
    model = keras.Sequential([keras.Input((8, 8, 1)), *inner])
    rng = np.random.default_rng(0)
    for variable in model.weights:
        drawn = 0.3 * rng.standard_normal(variable.shape)
        variable.assign(0.2 + np.abs(drawn) if "variance" in variable.path else drawn)
    points = np.random.default_rng(0).uniform(0, 1, (5, 8, 8, 1)).astype("float32")
    values, errors = evaluate(split(read_model(model).graph), points.astype(float))
    truth = keras.ops.convert_to_numpy(model(points, training=False))
    np.testing.assert_allclose(values, truth, rtol=1e-4)  # of float32
    assert values.std(axis=0).min() > 1e-2  # tanh is not saturated
    assert 0 < errors.max() < 1e-12 * np.abs(values).max()


def test_progress_counts_the_pairs_and_then_the_examples():
    model, done = keras.Sequential([keras.Input((3,)), L.Dense(3)]), []
    opnorm.certify(model, np.ones((5, 3)), progress=lambda *numbers: done.append(numbers))
    pairs = done[0][1]
    assert done == [*((k + 1, pairs) for k in range(pairs)), *((k + 1, 5) for k in range(5))]
    opnorm.certify(model, np.ones((5, 3)), time_limit=0, progress=lambda *numbers: done.append(numbers))
    assert len(done) <= 2 * pairs + 5


def test_without_time_the_bounds_are_looser_and_as_true(trained, digits, certificate):
    loose = opnorm.certify(trained, digits[0][1000:1100], time_limit=0)
    assert np.all(loose.radius <= certificate.radius)
    assert np.median(loose.radius) > 0


def test_a_certificate_shows_itself(trained, digits):
    certificate = opnorm.certify(trained, digits[0][:50], digits[1][:50], time_limit=0)
    assert "50 examples: certified accuracy" in repr(certificate)
    assert repr(certificate).removeprefix("Certificate(").split(":")[0] in certificate.to_text()
    assert "<table>" in certificate._repr_html_()
    (line,) = certificate.plot().data
    assert line.y[0] == certificate.certified_accuracy()
    assert line.y[-1] == 0


def two_outputs():
    inputs = keras.Input((3,))
    return keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)])


ONES = np.ones((1, 3))


@pytest.mark.parametrize(
    ("make", "x", "labels", "match"),
    [
        (lambda: "model.keras", ONES, None, "model.keras"),
        (lambda: 3, ONES, None, "`model` must be a built Keras model"),
        (two_outputs, ONES, None, "1 inputs and 2 outputs"),
        (lambda: keras.Sequential([keras.Input((3,)), L.UnitNormalization(name="un"), L.Dense(2)]), ONES, None, "un"),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(1)]), ONES, None, "two logits or more"),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]), np.ones((1, 4)), None, "Argument `x`"),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]), ONES * np.nan, None, "Argument `x`"),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]), ONES, [2], "Argument `labels`"),
        (lambda: keras.Sequential([keras.Input((3,)), L.Dense(2)]), ONES, [0.0], "Argument `labels`"),
    ],
)
def test_what_cannot_be_certified_is_refused_by_name(make, x, labels, match):
    with pytest.raises(ValueError, match=match):
        opnorm.certify(make(), x, labels)
