"""A baked model computes the same as plain layers, needs no opnorm, and leaves the model it came from alone."""

import json
import os
import subprocess
import sys
import warnings

import dense
import keras
import numpy as np
import pytest
from cases import gaussian, op_by_op

import opnorm
from opnorm.keras.baking import bake
from opnorm.keras.wrappers import inside

L = keras.layers
wrap = opnorm.SpectralNormalization
baked = op_by_op(bake)
X = gaussian(4, 5, 6)
SAME = 1e-6  # of the largest output: the product with the factor is rounded once, as in the wrapper's own call
SETTLED = 2e-4  # what the wrapper's tolerance leaves between its sigma and the norm


def called(model, *inputs):
    return dense.array(op_by_op(model)(inputs[0] if len(inputs) == 1 else list(inputs)))


def weights_of(model):
    return [dense.array(weight).copy() for weight in model.weights]


def wrappers_in(model):
    return [part for part in inside(model) if isinstance(part, wrap)]


def sequential(*layers):
    return keras.Sequential([keras.Input((5, 6)), *layers])


def functional(call):
    inputs = keras.Input((5, 6))
    return keras.Model(inputs, call(inputs))


def shared():
    layer = wrap(L.Dense(6))
    return functional(lambda x: layer(layer(x)))


def shared_by_models():
    layer = wrap(L.Dense(6))
    inner = functional(lambda x: layer(x))
    return functional(lambda x: layer(inner(x)))


def adapted():
    layer = L.Normalization()
    layer.adapt(3 * X + 1)
    return sequential(layer, wrap(L.Dense(3)))


class Block(L.Layer):
    """A layer of the user's that takes another one, and says so in its configuration."""

    def __init__(self, part, **options):
        super().__init__(**options)
        self.part = part

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        if not self.part.built:
            self.part.build(shape)

    def call(self, x):
        return self.scale * self.part(x)

    def get_config(self):
        return {**super().get_config(), "part": keras.saving.serialize_keras_object(self.part)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("part")), **config)


WRAPPED = {
    "a layer, scaled to 0.7": lambda: sequential(wrap(L.Dense(3, "relu"), value=0.7)),
    "a cap": lambda: sequential(wrap(L.Dense(3), value=0.01, cap=True)),
    "a wrapper in a wrapper": lambda: sequential(wrap(wrap(L.Dense(3), value=2.0), value=0.5)),
    "a wrapper in TimeDistributed": lambda: sequential(L.TimeDistributed(wrap(L.Dense(3)))),
    "a recurrent layer": lambda: sequential(wrap(L.Bidirectional(L.SimpleRNN(2)))),
    "attention": lambda: functional(lambda x: wrap(L.MultiHeadAttention(2, 3), name="heads")(x, x)),
    "a Sequential in a wrapper": lambda: sequential(
        wrap(keras.Sequential([L.Conv1D(4, 2), L.BatchNormalization(), L.Dropout(0.5), L.Dense(3)]))
    ),
    "nested models": lambda: sequential(functional(wrap(L.Dense(6))), sequential(wrap(L.Dense(4))), L.Dense(2)),
    "a shared layer": shared,
    "a layer shared by nested models": shared_by_models,
    "a layer of one's own": lambda: sequential(Block(wrap(L.Dense(3)))),
    "a layer that adapts": adapted,
    "a convolution": lambda: sequential(wrap(L.Conv1D(4, 3, strides=2), operator="convolution")),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_layers_become_plain_ones_that_compute_the_same(name):
    model = WRAPPED[name]()
    for index, weight in enumerate(w for w in model.trainable_weights if len(w.shape) > 1):
        weight.assign(gaussian(*weight.shape, seed=index))
    before = weights_of(model)
    expected = called(model, X)
    plain = baked(model)
    assert np.abs(called(plain, X) - expected).max() <= SAME * np.abs(expected).max()
    assert np.abs(expected).max() > 1e-3  # something was compared
    assert wrappers_in(model)
    assert not wrappers_in(plain)
    assert "opnorm" not in json.dumps(keras.saving.serialize_keras_object(plain))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    for weight, old in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_the_stored_kernels_have_the_norm_that_the_wrapper_gives():
    lstm = sequential(wrap(L.LSTM(3), value=0.7))
    heads = functional(lambda x: wrap(L.MultiHeadAttention(2, 3), name="heads")(x, x))
    cell = baked(lstm).layers[0].cell
    assert dense.norm(cell.kernel) == pytest.approx(0.7, rel=SETTLED)
    assert dense.norm(cell.recurrent_kernel) == pytest.approx(0.7, rel=SETTLED)
    attention = baked(heads).get_layer("heads")
    assert dense.norm(dense.array(attention.query_dense.kernel).reshape(6, 6)) == pytest.approx(1, rel=SETTLED)
    assert dense.norm(attention.output_dense.kernel) == pytest.approx(1, rel=SETTLED)
    nested = baked(sequential(wrap(wrap(L.Dense(4), value=2.0), value=0.5))).layers[0]
    assert dense.norm(nested.kernel) == pytest.approx(2.0, rel=SETTLED)  # the inner wrapper acts last


def test_constraints_and_penalties_go_and_outputs_stay_bitwise():
    options = {"kernel_constraint": opnorm.MaxSpectralNorm(0.5), "kernel_regularizer": opnorm.SpectralRegularizer(0.1)}
    kept = {"bias_constraint": "non_neg", "kernel_regularizer": keras.regularizers.L2(0.1)}
    model = sequential(L.Dense(4, **options), L.LSTM(3, recurrent_constraint=opnorm.SpectralClip(), **kept))
    model.compile("adam", "mse")
    plain = baked(model)
    np.testing.assert_array_equal(called(plain, X), called(model, X))
    assert not plain.compiled
    first, last = plain.layers
    assert first.kernel.constraint is first.kernel.regularizer is last.cell.recurrent_kernel.constraint is None
    assert isinstance(last.cell.kernel.regularizer, keras.regularizers.L2)
    assert isinstance(last.cell.bias.constraint, keras.constraints.NonNeg)
    assert isinstance(model.layers[0].kernel.constraint, opnorm.MaxSpectralNorm)
    for weight, copied in zip(weights_of(model), weights_of(plain), strict=True):
        np.testing.assert_array_equal(weight, copied)


def test_several_inputs_and_outputs_keep_their_places():
    one, other = keras.Input((5, 6), name="one"), keras.Input((5, 6), name="other")
    x = L.Concatenate()([wrap(L.Dense(3))(one), L.Dense(2, kernel_constraint=opnorm.SpectralNorm())(other)])
    model = keras.Model({"one": one, "other": other}, {"sum": wrap(L.Dense(4))(x), "all": x})
    plain = baked(model)
    inputs = {"one": X, "other": 2 * X}
    for name, expected in op_by_op(model)(inputs).items():
        np.testing.assert_allclose(dense.array(op_by_op(plain)(inputs)[name]), dense.array(expected), atol=2e-6)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]


def test_a_lora_update_is_scaled_with_its_kernel_and_stays_apart():
    layer = wrap(L.Dense(4, use_bias=False))
    model = sequential(layer)
    layer.layer.enable_lora(2)
    layer.layer.lora_kernel_b.assign(gaussian(2, 4))
    expected = called(model, X)
    plain = baked(model)
    np.testing.assert_allclose(called(plain, X), expected, atol=SAME * np.abs(expected).max())
    dense_layer = plain.layers[0]
    assert dense_layer.lora_enabled
    np.testing.assert_array_equal(dense.array(dense_layer.lora_kernel_b), gaussian(2, 4))
    assert dense.norm(dense.array(dense_layer.kernel)) == pytest.approx(1, rel=SETTLED)  # of the sum


def test_keras_own_wrapper_and_what_is_frozen_stay():
    frozen = wrap(L.Dense(4))
    frozen.trainable = False
    model = sequential(L.SpectralNormalization(L.Dense(6), name="theirs"), frozen)
    plain = baked(model)
    assert isinstance(plain.get_layer("theirs"), L.SpectralNormalization)
    assert [layer.trainable for layer in plain.layers] == [True, False]
    np.testing.assert_allclose(called(plain, X), called(model, X), atol=2e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_kept_and_kernels_are_not_rounded_to_half(policy):
    keras.config.set_dtype_policy(policy)
    model = sequential(wrap(L.Dense(4)))
    plain = baked(model)
    np.testing.assert_array_equal(called(plain, X).astype("float32"), called(model, X).astype("float32"))
    assert plain.layers[0].dtype_policy.name == policy
    kernel = dense.array(plain.layers[0].kernel)
    assert np.any(kernel != kernel.astype("float16").astype("float32"))
    assert dense.norm(kernel) == pytest.approx(1, rel=SETTLED)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow has string tensors")
def test_a_vocabulary_is_carried():
    words = keras.layers.TextVectorization(output_mode="multi_hot")
    words.adapt(["one two", "two three"])
    text = keras.Input((), dtype="string")
    model = keras.Model(text, wrap(L.Dense(2))(words(text)))
    inputs = keras.ops.convert_to_tensor(["three one", "two"])
    np.testing.assert_allclose(dense.array(bake(model)(inputs)), dense.array(model(inputs)), atol=2e-6)


def test_what_is_trained_after_baking_is_not_the_original(data):
    model = keras.Sequential([keras.Input((12,)), wrap(L.Dense(8, "tanh")), wrap(L.Dense(4))])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(*data, verbose=0)
    before, expected = weights_of(model), model.predict(data[0], verbose=0)
    plain = bake(model)
    np.testing.assert_allclose(plain.predict(data[0], verbose=0), expected, atol=1e-4)  # compiled: the last digits
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    plain.fit(*data, verbose=0)
    assert np.abs(plain.predict(data[0], verbose=0) - expected).max() > 1e-2
    for weight, old in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(weight, old)


LOAD = """
import sys
import numpy as np
import keras

model = keras.models.load_model(sys.argv[1] + "/baked.keras")
assert not [name for name in sys.modules if name.split(".")[0] == "opnorm"]
np.save(sys.argv[1] + "/outputs.npy", model.predict(np.load(sys.argv[1] + "/inputs.npy"), verbose=0))
"""


def test_a_process_without_opnorm_loads_the_file(tmp_path):
    model = sequential(wrap(L.Conv1D(4, 2)), L.Dense(3, kernel_constraint=opnorm.SpectralNorm()), wrap(L.GRU(2)))
    expected = called(model, X)
    baked(model).save(tmp_path / "baked.keras")
    np.save(tmp_path / "inputs.npy", X)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], env=environment, check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, atol=1e-5)  # compiled there


class Own(keras.Model):
    """A model whose code makes its layers; `make` is the layer that it makes first."""

    make = L.Dense

    def __init__(self, width=4, **options):
        super().__init__(**options)
        self.width = width
        self.first, self.last = self.make(width), L.Dense(2)

    def call(self, x):
        return self.last(self.first(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Wrapping(Own):
    make = staticmethod(lambda width: wrap(L.Dense(width)))


class Constraining(Own):
    make = staticmethod(lambda width: L.Dense(width, kernel_constraint=opnorm.SpectralNorm()))


def test_a_subclassed_model_is_baked_where_only_constrain_made_it_so():
    model = Own(5)
    expected = called(model, X)
    opnorm.constrain(model, opnorm.SpectralNorm())
    plain = baked(model)
    assert isinstance(plain, Own)
    assert plain.first.kernel.constraint is None
    np.testing.assert_array_equal(called(plain, X), expected)


@pytest.mark.parametrize("kind", [Wrapping, Constraining])
def test_a_subclassed_model_that_makes_our_objects_itself_is_refused_and_its_layers_are_not(kind):
    model = kind(5)
    called(model, X)
    with pytest.raises(ValueError, match=r"in its own code, .* makes '.*Bake the parts .*Received: model="):
        baked(model)
    part = baked(model.first)
    np.testing.assert_allclose(called(part, X), called(model.first, X), atol=2e-6)
    assert type(part) is L.Dense


class Opaque(keras.Model):
    """A model that does not say how to make it again."""

    def __init__(self, layers):
        super().__init__()
        self.parts = layers

    def call(self, x):
        return self.parts[0](x)

    def get_config(self):
        raise NotImplementedError("no configuration")


def test_what_cannot_be_baked_is_refused_with_what_to_do():
    opaque = Opaque([L.Dense(3)])
    called(opaque, X)
    with pytest.raises(ValueError, match=r"rebuilt by its `get_config`.*Bake the parts"):
        bake(opaque)
    with pytest.raises(ValueError, match="must be built"):
        bake(keras.Sequential([L.Dense(3)]))
    with pytest.raises(ValueError, match=r"must be a Keras model.*Received: model=3"):
        bake(3)
    layer = L.Dense(6, name="twice")
    with pytest.raises(ValueError, match=r"'twice' both inside '.*' and outside"):
        bake(functional(lambda x: wrap(layer)(layer(x))))


def test_a_baked_model_is_quantized(data):
    model = keras.Sequential([keras.Input((12,)), wrap(L.Dense(8, "tanh")), wrap(L.Dense(4))])
    expected = called(model, data[0])
    plain = baked(model)
    with pytest.warns(UserWarning, match="InputLayer does not have a `quantize` method"):
        plain.quantize("int8")
    assert [layer.quantization_mode for layer in plain.layers] == ["int8", "int8"]
    # Two layers of norm 1, weights and inputs in 1/127 of the largest entry each: half a step each, four times
    assert np.abs(plain.predict(data[0], verbose=0) - expected).max() < 4 * np.abs(data[0]).max() / 127
    correlation = np.corrcoef(plain.predict(data[0], verbose=0).ravel(), expected.ravel())[0, 1]
    assert correlation > 0.999  # int8's signal-to-noise ratio is above 40 dB


# Keras 3.15 passes JAX's converter an argument that JAX 0.10 deprecates.
@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter is deprecated:DeprecationWarning")
def test_a_tensorflow_saved_model_of_a_baked_model_computes_the_same(tmp_path):
    if keras.backend.backend() == "torch":
        pytest.importorskip("torch_xla", reason="Keras exports to TensorFlow from PyTorch by way of torch_xla")
    tensorflow = pytest.importorskip("tensorflow", reason="a SavedModel is TensorFlow's")
    model = sequential(wrap(L.Conv1D(4, 2)), wrap(L.Dense(3, "relu")))
    baked(model).export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    loaded = tensorflow.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.serve(X).numpy(), called(model, X), atol=1e-5)  # compiled


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="an ExportedProgram is PyTorch's")
def test_a_torch_program_of_a_baked_model_computes_the_same(tmp_path):
    import torch

    model = sequential(wrap(L.Conv1D(4, 2)), wrap(L.Dense(3, "relu")))
    baked(model).export(tmp_path / "program.pt2", format="torch", verbose=False)
    program = torch.export.load(tmp_path / "program.pt2").module()
    one = X[:1]  # Keras exports an open batch size as 1
    np.testing.assert_allclose(dense.array(program(torch.tensor(one))), called(model, one), atol=1e-5)


_ONNX = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}[keras.backend.backend()]


def test_an_onnx_file_of_a_baked_model_computes_the_same(tmp_path):
    pytest.importorskip(_ONNX, reason=f"Keras exports to ONNX from {keras.backend.backend()} by way of {_ONNX}")
    runtime = pytest.importorskip("onnxruntime", reason="to run the file")
    model = sequential(wrap(L.Conv1D(4, 2)), wrap(L.Dense(3, "relu")))
    with warnings.catch_warnings(action="ignore"):  # the exporters speak of their own future
        baked(model).export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    [outputs] = session.run(None, {session.get_inputs()[0].name: X})
    np.testing.assert_allclose(outputs, called(model, X), atol=1e-5)
