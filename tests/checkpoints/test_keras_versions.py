"""Files of Keras 1, 2 and 3: what each version meant by a name, and what is only called otherwise."""

import json
import zipfile

import h5py
import numpy as np
import pytest
from explicit import explicit_matrix
from samples import functional, layer, weights_h5

import opnorm
from opnorm.checkpoints.keras_versions import UNKNOWN, version_of
from opnorm.checkpoints.opening import open_checkpoint

EYE = np.eye(3, dtype="float32")
X = np.linspace(-8, 8, 200_001)


def entry(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def write(path, layers, weights, version=None, inner=None, listed=False):
    """Write a Sequential model as Keras 1 and 2 do: `weights` is {layer: {name: array}}."""
    config = layers if listed else {"name": "m", "layers": layers}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config})
        group = file.create_group("model_weights")
        for place, text in ((file, version), (group, inner or version)):
            if text:
                place.attrs["keras_version"] = text.encode()
        group.attrs["layer_names"] = np.array([name.encode() for name in weights])
        for name, arrays in weights.items():
            for key, array in arrays.items():
                group[f"{name}/{key}"] = array
    return path


def relu6(x):
    return np.clip(x, 0, 6)


HARD = {
    1: lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    2: lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    3: lambda x: relu6(x + 3) / 6,
}
VERSIONS = [("1.2.2", 1), ("2.0.8", 2), ("2.2.4-tf", 2), ("2.15.0", 2), ("3.3.3", 3), ("3.15.1", 3)]


def steepest(function):
    return np.max(np.abs(np.diff(function(X)) / np.diff(X)))


def dense_with(activation):
    return [entry("Dense", "d", activation=activation)], {"d": {"d/kernel:0": EYE, "d/bias:0": EYE[0]}}


PLACES = {
    "argument": dense_with,
    "function": lambda name: dense_with({"class_name": "function", "config": name, "registered_name": "function"}),
    "layer": lambda name: ([entry("Dense", "d"), entry("Activation", "a", activation=name)], dense_with(name)[1]),
    "wrapper": lambda name: (
        [entry("TimeDistributed", "t", layer=dense_with(name)[0][0])],
        {"t": {"d/kernel:0": EYE, "d/bias:0": EYE[0]}},
    ),
}


@pytest.mark.parametrize(("text", "major"), VERSIONS)
@pytest.mark.parametrize("place", PLACES)
def test_hard_sigmoid_has_the_slope_of_the_version_that_wrote_it(tmp_path, place, text, major):
    network = opnorm.audit(write(tmp_path / "a.h5", *PLACES[place]("hard_sigmoid"), text)).network
    assert network["upper"] == pytest.approx(steepest(HARD[major]), rel=1e-6)
    assert network["upper"] >= steepest(HARD[major]) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("text", "inner"), [(None, None), ("3.1.0", "2.4.0"), ("three", None), ("30", None), ("9.1", None)]
)
def test_an_unknown_version_has_the_larger_slope(tmp_path, text, inner):
    path = write(tmp_path / "a.h5", *dense_with("hard_sigmoid"), text, inner)
    assert opnorm.audit(path).network["upper"] == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize(("text", "slope"), [("2.15.0", 1 / 5), ("3.0.1", 1 / 6), (None, 1 / 5), ("{", 1 / 5)])
def test_an_archive_names_its_version_too(tmp_path, text, slope):
    layers = [layer("InputLayer", "x"), layer("Dense", "d", ["x"], activation="hard_sigmoid")]
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        if text:
            archive.writestr("metadata.json", "{" if text == "{" else json.dumps({"keras_version": text}))
        archive.writestr("config.json", json.dumps(functional(layers, ["x"], ["d"])))
        archive.writestr("model.weights.h5", weights_h5({"dense": ("d", [EYE, EYE[0]])}))
    assert opnorm.audit(tmp_path / "a.keras").network["upper"] == pytest.approx(slope, rel=1e-6)


def test_versions_are_read_as_numbers():
    assert [version_of(text) for text in ("2.2.4-tf", "3.15.1", "1.0.0")] == [(2, 2), (3, 15), (1, 0)]
    assert {version_of(text) for text in (None, "", "x", 3, "3", "0.1", "12.0", "3.1234")} == {UNKNOWN}


def norm():
    return {
        "b": {"b/gamma:0": EYE[0] + 1, "b/beta:0": EYE[0], "b/moving_mean:0": EYE[0], "b/moving_variance:0": EYE[0] / 4}
    }


@pytest.mark.parametrize(("text", "epsilon"), [("2.4.0", 1e-3), ("3.1.0", 1e-3), ("1.1.0", 1e-6), (None, 1e-6)])
def test_an_epsilon_that_is_not_written_is_the_versions_or_the_smallest(tmp_path, text, epsilon):
    path = write(tmp_path / "a.h5", [entry("BatchNormalization", "b", axis=-1)], norm(), text)
    truth = np.max(np.array([2, 1, 1]) / np.sqrt(np.array([0.25, 0, 0]) + epsilon))
    report = opnorm.audit(path)
    assert report.rows[0].upper == pytest.approx(truth, rel=1e-9)
    assert report.rows[0].assumed == (text is None or text == "1.1.0")
    assert report.network["upper"] == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(("text", "readings"), [("2.4.0", [1e-6, 1.001e-5]), ("3.1.0", [1e-6])])
def test_a_small_epsilon_may_be_raised_by_tensorflow(tmp_path, text, readings):
    path = write(tmp_path / "a.h5", [entry("BatchNormalization", "b", axis=-1, epsilon=1e-6)], norm(), text)
    weight = next(one for one in open_checkpoint(path).weights if one.name == "b/gamma")
    found = [one.operator(np.ones(3)) @ np.ones(3) for one in (weight.geometry, *weight.geometry.readings)]
    np.testing.assert_allclose(
        found, [1 / np.sqrt(EYE[0].astype("f8") / 4 + epsilon) for epsilon in readings], rtol=1e-12
    )


@pytest.mark.parametrize(("kind", "text"), [("BatchNormalizationV1", "2.2.4-tf"), ("BatchNormalization", "2.13.1")])
def test_batch_normalization_has_other_names_in_tensorflow_1(tmp_path, kind, text):
    report = opnorm.audit(write(tmp_path / "a.h5", [entry(kind, "b", axis=-1, epsilon=0.1)], norm(), text))
    truth = np.max(np.array([2, 1, 1]) / np.sqrt(np.array([0.25, 0, 0]) + 0.1))
    assert report.rows[0].upper == pytest.approx(truth, rel=1e-9)
    assert report.network["upper"] == pytest.approx(truth, rel=1e-9)


def test_a_vector_of_a_class_that_is_not_known_may_be_a_map(tmp_path):
    report = opnorm.audit(write(tmp_path / "a.h5", [entry("ScaleLayer", "b")], {"b": {"b/w:0": EYE[0] * 9}}, "2.4.0"))
    assert report.rows[0].status == "failed"


@pytest.mark.parametrize(("text", "known"), [("2.2.4-tf", False), (None, False), ("2.4.0", True), ("3.1.0", True)])
def test_interpolation_of_early_versions_is_another(tmp_path, text, known):
    layers = [entry("Dense", "d"), entry("UpSampling2D", "u", size=[2, 2], interpolation="bilinear")]
    network = opnorm.audit(write(tmp_path / "a.h5", layers, dense_with("linear")[1], text)).network
    assert (network["upper"] is not None) == known


def test_a_list_of_layers_is_a_model(tmp_path):
    """As Keras wrote Sequential models up to 2.2."""
    path = write(tmp_path / "a.h5", *dense_with("relu"), "2.1.6", listed=True)
    assert opnorm.audit(path).network["upper"] == pytest.approx(1, rel=1e-6)


# Keras 1: names of layers, of settings and of weights are others.

KERNEL = np.random.default_rng(0).standard_normal((3, 3, 2, 4)).astype("float32")
VALID = {"subsample": [1, 1], "border_mode": "valid", "bias": True}


def keras_1(path, ordering, activation="linear"):
    conv = entry("Convolution2D", "c", nb_filter=4, dim_ordering=ordering, activation=activation, **VALID)
    kernel = KERNEL if ordering == "tf" else KERNEL.transpose(3, 2, 0, 1)
    weights = {"c": {"c_W": kernel, "c_b": np.zeros(4, "f4")}}
    return write(path, [conv], weights, "1.2.2", listed=True)


@pytest.mark.parametrize("ordering", ["tf", "th"])
def test_a_convolution_of_keras_1_is_bounded_in_its_layout(tmp_path, ordering):
    report = opnorm.audit(keras_1(tmp_path / "a.h5", ordering))
    row = next(row for row in report.rows if row.name == "c/c_W")
    image = np.linalg.svd(explicit_matrix(KERNEL, (12, 12), (1, 1), "valid", (1, 1), 1), compute_uv=False)[0]
    assert 0.85 * row.lower <= image <= row.upper <= 1.02 * row.lower
    assert not row.assumed
    assert next(row for row in report.rows if row.name == "c/c_b").reason.startswith("a bias")
    if ordering == "tf":
        assert report.network["upper"] == pytest.approx(row.upper, rel=1e-6)
    else:
        assert "Theano" in report.network["unknown"][0]


def test_a_dense_network_of_keras_1_is_bounded(tmp_path):
    rng = np.random.default_rng(1)
    one, two = rng.standard_normal((5, 4)).astype("f4"), rng.standard_normal((4, 3)).astype("f4")
    layers = [entry("Dense", "a", output_dim=4, activation="hard_sigmoid"), entry("Dense", "b", output_dim=3)]
    weights = {"a": {"a_W": one, "a_b": one[0]}, "b": {"b_W": two, "b_b": two[0]}}
    upper = opnorm.audit(write(tmp_path / "a.h5", layers, weights, "1.0.3")).network["upper"]
    largest = max(  # the Jacobian where all units are between their bends
        np.linalg.norm(two.T.astype("f8") @ np.diag(0.2 * mask) @ one.T, 2)
        for mask in np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T
    )
    assert largest <= upper <= 0.2 * np.linalg.norm(one, 2) * np.linalg.norm(two, 2) * (1 + 1e-5)


def test_batch_normalization_of_keras_1_calls_its_variance_a_deviation(tmp_path):
    names = ("gamma", "beta", "running_mean", "running_std")
    arrays = dict(zip((f"b_{name}" for name in names), norm()["b"].values(), strict=True))
    for mode, upper in ((0, 1 / np.sqrt(1e-3)), (1, None)):
        layers = [entry("BatchNormalization", "b", axis=-1, epsilon=1e-3, mode=mode)]
        report = opnorm.audit(write(tmp_path / "a.h5", layers, {"b": arrays}, "1.2.0"))
        rows = {row.name: row for row in report.rows}
        assert set(rows) == {"b/b_gamma", "b/b_beta", "b/b_running_mean", "b/b_running_std"}
        for found in (rows["b/b_gamma"].upper, report.network["upper"]):
            assert found == (upper and pytest.approx(upper, rel=1e-9))


def pooled(**config):
    return [entry("Dense", "d"), entry("MaxPooling2D", "p", **config)]


def test_a_window_of_keras_1_slides_as_its_words_say(tmp_path):
    """Windows of 3 at stride 1 read a pixel nine times, at stride 3 once."""
    weights = dense_with("linear")[1]
    for stride, norm in ((1, 3.0), (3, 1.0)):
        layers = pooled(pool_size=[3, 3], strides=[stride] * 2, border_mode="same", dim_ordering="tf")
        network = opnorm.audit(write(tmp_path / "a.h5", layers, weights, "1.2.2")).network
        assert network["upper"] == pytest.approx(norm, rel=1e-6)


SEPARABLE = {
    "SeparableConvolution2D": ("s_depthwise_kernel", "s_pointwise_kernel", "s_b"),
    "SeparableConv2D": ("s/depthwise_kernel:0", "s/pointwise_kernel:0", "s/bias:0"),
}
PARTS = (KERNEL[..., :1], np.random.default_rng(2).standard_normal((1, 1, 2, 3)).astype("f4"), np.zeros(3, "f4"))


@pytest.mark.parametrize("kind", SEPARABLE)
def test_a_separable_convolution_is_bounded_where_its_names_are_known(tmp_path, kind):
    weights = {"s": dict(zip(SEPARABLE[kind], PARTS, strict=True))}
    settings = VALID | {"dim_ordering": "tf"} if kind == "SeparableConvolution2D" else {"padding": "valid"}
    report = opnorm.audit(write(tmp_path / "a.h5", [entry(kind, "s", **settings)], weights, "1.2.2"))
    assert report.network["upper"] > 0
    assert [row.status for row in report.rows if row.shape != (3,)] == ["bounded", "bounded"]


OTHERS = {
    "separable": (entry("SeparableConv2D", "s", padding="valid"), dict(zip("abc", PARTS, strict=True))),
    "separable, one": (entry("SeparableConv2D", "s"), {"s/depthwise_kernel:0": PARTS[0]}),
    "wrapped": (
        entry("TimeDistributed", "s", layer=entry("SeparableConv2D", "i")),
        dict(zip("abc", PARTS, strict=True)),
    ),
    "dense": (entry("Dense", "s"), {"matrix": EYE * 9}),
    "convolution": (entry("Conv2D", "s", padding="valid"), {"taps": KERNEL}),
    "normalization": (entry("BatchNormalization", "s", epsilon=1e-3), {"g": EYE[0] * 9, "moving_variance": EYE[0] + 1}),
    "local": (entry("LocallyConnected1D", "s"), {"s/kernel:0": np.ones((4, 6, 5), "f4")}),
    "recurrent": (entry("LSTM", "s"), {"s_W_i": EYE, "s_U_i": EYE, "s_b_i": EYE[0]}),
    "highway": (entry("Highway", "s"), {"s_W": EYE, "s_W_carry": EYE, "s_b": EYE[0]}),
    "theano": (entry("Convolution1D", "s", border_mode="valid", filter_length=3), {"s_W": KERNEL}),
    "unordered": (entry("Convolution2D", "s", dim_ordering="?", **VALID), {"s_W": KERNEL}),
    "full": (entry("Convolution2D", "s", dim_ordering="tf", border_mode="full"), {"s_W": KERNEL}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("version", ["1.2.2", "2.4.0", None])
def test_weights_of_other_names_have_rows_and_the_network_a_reason(tmp_path, name, version):
    found, weights = OTHERS[name]
    report = opnorm.audit(write(tmp_path / "a.h5", [found], {"s": weights}, version))
    assert len(report.rows) == len(weights)
    assert report.network["upper"] is None
    assert report.network["unknown"]
    for row in report.rows:
        assert row.status != "skipped" or len(row.shape) < 2
        assert row.status != "bounded" or row.assumed or name == "separable, one"


def test_the_reason_names_the_weight_that_is_missing(tmp_path):
    found, weights = OTHERS["separable, one"]
    network = opnorm.audit(write(tmp_path / "a.h5", [found], {"s": weights}, "2.4.0")).network
    assert "pointwise_kernel" in network["unknown"][0]


def test_the_graph_keeps_the_layers_own_settings(tmp_path):
    graph = open_checkpoint(keras_1(tmp_path / "a.h5", "tf", "relu")).graph
    assert graph.nodes[0].kind == "Conv2D"
    assert graph.nodes[0].options["strides"] == [1, 1]
