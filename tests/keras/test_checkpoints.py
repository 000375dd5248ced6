"""Models of every layer type, saved by Keras and read without it: names, values, maps, constraints, graphs."""

import keras
import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.keras.live import read_model
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import linear_operator

L = keras.layers
SINGLE = 1e-5  # Keras computes in float32: some hundred products of numbers near 1


def _every_layer():
    """Return a model with each layer type that has weights, two nested models, and a layer that is called twice."""
    image = keras.Input((8, 8, 4), name="image")
    x = L.Conv2D(4, 3, padding="same", strides=2, kernel_constraint="max_norm")(image)
    x = L.BatchNormalization(epsilon=0.01)(x)
    x = L.SeparableConv2D(4, 3, padding="same", depth_multiplier=2)(x)
    x = L.DepthwiseConv2D(3, padding="same", depthwise_constraint="non_neg")(x)
    x = L.Conv2DTranspose(4, 3, padding="same")(x)
    x = L.GroupNormalization(2)(x)
    inner = keras.Sequential(
        [keras.Input((4, 4, 4)), L.Dense(4, name="dense_1"), L.Dense(4, name="dense")], name="inner"
    )
    outer = keras.Sequential([keras.Input((4, 4, 4)), inner, L.PReLU()], name="outer")
    x = L.SpectralNormalization(L.Conv2D(4, 3, padding="same"))(outer(x))
    x = L.Reshape((16, 4))(x)
    x = L.Conv1D(4, 3, padding="causal", groups=2)(x)
    x = L.Bidirectional(L.LSTM(2, return_sequences=True))(x)
    x = L.TimeDistributed(L.Dense(4))(x)
    x = L.LayerNormalization()(L.MultiHeadAttention(2, 3, kernel_constraint="unit_norm")(x, x))
    x = L.GroupQueryAttention(2, 4, 2)(x, x)
    x = L.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d")(x)
    shared = L.Dense(4, name="shared")
    x = shared(shared(x))
    x = L.RNN([L.GRUCell(3), L.SimpleRNNCell(4)], return_sequences=True)(x)
    x = L.Add()([x, L.Dense(4, use_bias=False, name="dense")(x)])
    return keras.Model(image, L.GRU(3)(x), name="all")


@pytest.fixture(scope="module")
def model():
    keras.utils.clear_session()  # names of layers count from here
    made = _every_layer()
    made.compile(optimizer="sgd")
    made.optimizer.build(made.trainable_variables)
    return made


@pytest.fixture(params=["keras", "h5", "live"])
def found(request, model, tmp_path, monkeypatch):
    if request.param == "live":
        return read_model(model)
    monkeypatch.setattr("absl.logging.warning", lambda *_: None)  # Keras calls its own .h5 a legacy format
    model.save(tmp_path / f"a.{request.param}")
    return open_checkpoint(tmp_path / f"a.{request.param}")


def _variables(model):
    """Return the variables that Keras saves, but for states of random generators, by Keras's own path.

    Keras's path of a model inside a model depends on where that was built; ours is always the whole one.
    """
    paths = {v.path: v for v in model.variables if not v.path.endswith("seed_generator_state")}
    return {f"outer/{path}" if path.startswith("inner/") else path: v for path, v in paths.items()}


def _known(found):
    """Return the weights but for training's."""
    state = ("optimizer/", "metrics/")
    skipped = ("seed_generator_state", "spectral_normalization/kernel")  # Keras writes the wrapped kernel twice
    return {w.name: w for w in found.weights if not w.name.startswith(state) and not w.name.endswith(skipped)}


def test_every_variable_is_found_under_kerass_own_name_with_its_value(model, found):
    weights, variables = _known(found), _variables(model)
    assert set(weights) == set(variables)
    for name, variable in variables.items():
        np.testing.assert_array_equal(weights[name].read(), keras.ops.convert_to_numpy(variable))
        assert not weights[name].geometry.assumed


def test_every_map_is_told_from_what_is_none(found):
    for name, weight in _known(found).items():
        normalizes = "layer_norm" in name or "group_norm" in name
        assert bool(weight.geometry.operator) == (name.endswith(("kernel", "gamma")) and not normalizes), name


def test_constraints_are_those_of_the_config(found):
    weights = _known(found)
    declared = {name: weight.constraint["class_name"] for name, weight in weights.items() if weight.constraint}
    attention = [f"multi_head_attention/{name}/kernel" for name in ("query", "key", "value", "attention_output")]
    assert declared == {
        "conv2d/kernel": "MaxNorm",
        "depthwise_conv2d/kernel": "NonNeg",
        **dict.fromkeys(attention, "UnitNorm"),
    }


def test_the_graph_dissolves_models_and_has_a_node_for_each_call(found):
    nodes = {node.name: node for node in found.graph.nodes}
    assert nodes["outer/inner/dense"].inputs == ("outer/inner/dense_1",)
    assert nodes["spectral_normalization"].inputs == ("outer/p_re_lu",)
    assert nodes["shared"].weights == nodes["shared#1"].weights
    assert nodes["shared#1"].inputs == ("shared",)
    assert nodes["add"].inputs == ("rnn", "dense")
    assert nodes["multi_head_attention"].inputs == ("time_distributed", "time_distributed")
    assert (found.graph.inputs, found.graph.outputs) == (("image",), ("gru",))
    assert nodes["conv2d"].options["strides"] in ([2, 2], (2, 2))


def test_optimizer_variables_are_rows_with_their_reason(model, tmp_path):
    model.save(tmp_path / "a.keras")
    rows = [w for w in open_checkpoint(tmp_path / "a.keras").weights if w.name.startswith("optimizer/")]
    assert len(rows) == len(model.optimizer.variables)
    assert {row.geometry.reason for row in rows} == {"optimizer state"}


def test_without_a_config_the_groups_names_tell_the_layers(model, tmp_path):
    model.save_weights(tmp_path / "a.weights.h5")
    weights = _known(open_checkpoint(tmp_path / "a.weights.h5"))
    for name, variable in _variables(model).items():
        if "einsum" not in name and "outer" not in name:  # its equation is in no weights file
            np.testing.assert_array_equal(weights[name].read(), keras.ops.convert_to_numpy(variable))
            assert weights[name].geometry.assumed


MAPS = [
    (L.Dense(5), (4,)),
    (L.EinsumDense("...x,xyz->...yz", output_shape=(2, 3)), (4,)),
    (L.EinsumDense("agx,gxz->agz", output_shape=(3, 5)), (3, 4)),
    (L.BatchNormalization(epsilon=0.1), (4,)),
    (L.BatchNormalization(scale=False), (4,)),
    (L.TimeDistributed(L.Dense(3)), (1, 4)),
    (L.Conv1D(3, 3, padding="causal", dilation_rate=2), (9, 2)),
    (L.Conv2D(4, (3, 2), padding="same", strides=(2, 1), groups=2), (6, 7, 2)),
    (L.Conv2D(3, 3), (6, 7, 2)),
    (L.Conv3D(2, 2, padding="same", strides=2), (4, 5, 4, 2)),
    (L.DepthwiseConv1D(3, depth_multiplier=2, padding="same"), (8, 3)),
    (L.DepthwiseConv2D(3, depth_multiplier=2, strides=2), (7, 6, 3)),
]


def _saved(layer, shape, path):
    """Return a built copy of the layer with random weights, and the maps that are read from its file."""
    layer = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), layer])
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    model.save(path)
    weights = open_checkpoint(path).weights
    return layer, [w.geometry.operator(w.read().astype("f8")) for w in weights if w.geometry.operator]


def _explicit(layer, shape):
    """Return the layer's matrix, (outputs, inputs), column by column from the layer itself."""
    images = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    values = keras.ops.convert_to_numpy(layer(images)) - keras.ops.convert_to_numpy(layer(np.zeros_like(images)))
    return values.reshape(len(images), -1).T.astype(np.float64)


@pytest.mark.parametrize(
    ("layer", "shape"), MAPS, ids=[f"{type(layer).__name__}-{i}" for i, (layer, _) in enumerate(MAPS)]
)
def test_the_map_read_from_a_file_is_what_the_layer_multiplies_with(layer, shape, tmp_path):
    layer, (operator,) = _saved(layer, shape, tmp_path / "a.keras")
    if isinstance(operator, Convolution):  # it stands for every size: take it at the layer's
        settings = {key: getattr(operator, key) for key in ("strides", "padding", "dilation_rate", "groups")}
        operator = Convolution(operator.kernel, shape[:-1], **settings)
    np.testing.assert_allclose(operator.matmat(np.eye(operator.shape[1])), _explicit(layer, shape), atol=SINGLE)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_transposed_convolution_read_from_a_file_bounds_the_layer(strides, tmp_path):
    shape = (7, 7, 2)
    layer, (operator,) = _saved(L.Conv2DTranspose(3, 3, strides=strides, padding="same"), shape, tmp_path / "a.keras")
    truth = np.linalg.svd(_explicit(layer, shape), compute_uv=False)[0]
    upper = spectral_norm(operator).upper
    assert 0.8 * upper <= truth <= upper * (1 + SINGLE)  # an image of 7x7 comes this near to all of the plane


def test_a_separable_convolution_is_its_two_maps(tmp_path):
    layer, maps = _saved(L.SeparableConv2D(5, 3, depth_multiplier=2), (6, 7, 3), tmp_path / "a.keras")
    assert maps[0].groups == 3
    kernel = keras.ops.convert_to_numpy(layer.pointwise_kernel).reshape(6, 5)
    np.testing.assert_array_equal(maps[1].matmat(np.eye(6)), kernel.T)


def test_attention_sums_over_the_input_and_puts_heads_together(tmp_path):
    query = keras.Input((5, 6))
    layer = L.MultiHeadAttention(2, 4)
    model = keras.Model(query, layer(query, query))
    model.save(tmp_path / "a.keras")
    weights = {w.name: w for w in open_checkpoint(tmp_path / "a.keras").weights if w.geometry.operator}
    for name, part in (("query", layer.query_dense), ("attention_output", layer.output_dense)):
        weight = weights[f"{layer.name}/{name}/kernel"]
        kernel = keras.ops.convert_to_numpy(part.kernel)
        matrix = kernel.reshape(8, 6).T if name == "attention_output" else kernel.reshape(6, 8).T
        operator = weight.geometry.operator(weight.read().astype("f8"))
        np.testing.assert_array_equal(operator.matmat(np.eye(operator.shape[1])), matrix)
        heads = np.moveaxis(kernel, 0 if name == "attention_output" else 1, 0)
        for i, (part, head) in enumerate(zip(weight.geometry.parts(weight.read()), heads, strict=True)):
            assert part.name == f"head {i}"
            found = part.operator.matmat(np.eye(part.operator.shape[1]))
            np.testing.assert_array_equal(found, head)


@pytest.mark.parametrize("layer", [L.Dense(5), L.Embedding(7, 4)])
def test_int8_layers_are_their_integers_divided_by_their_scale(layer, tmp_path):
    layer = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input((6,)), layer])
    name = "embeddings" if isinstance(layer, L.Embedding) else "kernel"
    before = keras.ops.convert_to_numpy(getattr(layer, name))
    layer.quantize("int8")
    model.save(tmp_path / "a.keras")
    (weight,) = [w for w in open_checkpoint(tmp_path / "a.keras").weights if w.geometry.operator]
    assert weight.dtype == "int8"
    matrix = weight.geometry.operator(weight.read().astype("f8")).matmat(np.eye(before.shape[0]))
    np.testing.assert_allclose(
        matrix.T, before, atol=np.abs(before).max() / 127
    )  # half a step, and the scale's epsilon


def test_quantized_einsums_say_that_they_are_not_read(tmp_path):
    model = keras.Sequential([keras.Input((6,)), L.EinsumDense("ab,bc->ac", output_shape=5)])
    model.layers[0].quantize("int8")
    model.save(tmp_path / "a.keras")
    weights = open_checkpoint(tmp_path / "a.keras").weights
    assert not any(w.geometry.operator for w in weights)
    assert any("quantized" in w.geometry.reason for w in weights)


def test_shards_of_weights_are_one_checkpoint(tmp_path):
    model = keras.Sequential([keras.Input((40,)), L.Dense(50), L.Dense(60)])
    model.save_weights(tmp_path / "a.weights.json", max_shard_size=13000 / 2**30)  # bytes: one kernel, not two
    assert len(list(tmp_path.glob("*.weights.h5"))) > 1
    found = open_checkpoint(tmp_path / "a.weights.json")
    for weight, variable in zip(found.weights, model.variables, strict=True):
        np.testing.assert_array_equal(weight.read(), keras.ops.convert_to_numpy(variable))


def test_a_live_layer_with_a_low_rank_update_is_shown_with_it():
    layer = L.Dense(5)
    layer.build((None, 4))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    (weight,) = [w for w in read_model(layer).weights if w.geometry.operator]
    matrix = weight.geometry.operator(weight.read().astype("f8")).matmat(np.eye(4))
    np.testing.assert_allclose(matrix.T, keras.ops.convert_to_numpy(layer.kernel), atol=SINGLE)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.first = L.Conv1D(3, 3, strides=2, name="my_conv")
        self.rest = [L.Dense(4, name="rest"), L.Lambda(lambda x: 2 * x)]

    def call(self, x):
        for layer in (self.first, *self.rest):
            x = layer(x)
        return x


def test_a_subclassed_model_has_weights_and_no_graph(tmp_path):
    model = Subclassed()
    model(np.zeros((1, 8, 2), "float32"))
    model.save(tmp_path / "a.keras")
    cases = (open_checkpoint(tmp_path / "a.keras"), "Conv", True), (read_model(model), "Conv1D", False)
    for found, kind, assumed in cases:
        kernels = [w for w in found.weights if w.geometry.operator]
        assert [(w.geometry.kind, w.geometry.assumed) for w in kernels] == [(kind, assumed), ("Dense", assumed)]
        assert found.graph is None
        assert any("Subclassed" in note for note in found.notes)


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="not built"):
        read_model(keras.Sequential([L.Dense(3)]))


class Doubled(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x):
        return 2 * x @ self.kernel + self.shift


def test_a_live_layer_that_is_registered_is_read_by_its_operator():
    model = keras.Sequential([keras.Input((3,)), Doubled(name="mine"), L.Dense(2)])
    before = {w.name: w.geometry for w in read_model(model).weights}
    assert before["mine/kernel"].unknown
    linear_operator.register(Doubled, lambda layer: aslinearoperator(2 * np.asarray(layer.kernel.numpy(), "f8").T))
    weights = {w.name: w for w in read_model(model).weights}
    operator = weights["mine/kernel"].geometry.operator(weights["mine/kernel"].read().astype("f8"))
    np.testing.assert_allclose(operator.matmat(np.eye(3)), _explicit(model.layers[0], (3,)), atol=SINGLE)
    assert not weights["mine/kernel"].geometry.assumed
    assert weights["mine/shift"].geometry.operator is None
