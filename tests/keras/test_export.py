"""A model with wrappers is exported as what `bake` makes of it, and a baked model of any class at once."""

import inspect
import warnings

import dense
import keras
import numpy as np
import pytest
from cases import gaussian

import opnorm
from opnorm.keras import exporting

L = keras.layers
wrap = opnorm.SpectralNormalization
X = gaussian(4, 5, 6)
BACKEND = keras.backend.backend()
CLOSE = 1e-5  # float32, compiled by another compiler

# Keras 3.15 passes JAX's converter an argument that JAX 0.10 deprecates; TensorFlow deprecates its TFLite interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The `native_serialization` parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*tf.lite.Interpreter is deprecated:UserWarning"),
]


def serve_saved_model(model, path):
    tensorflow = pytest.importorskip("tensorflow", reason="a SavedModel is TensorFlow's")
    model.export(path / "saved", verbose=False)
    loaded = tensorflow.saved_model.load(path / "saved")  # it holds the variables
    return loaded.serve(X).numpy()


def run_lite(model, path):
    import tensorflow as tf

    model.export(path / "model.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(path / "model.tflite"))
    [given], [found] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], X.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], X)
    interpreter.invoke()
    return interpreter.get_tensor(found["index"])


def run_program(model, path):
    import torch

    model.export(path / "program.pt2", format="torch", verbose=False)
    program = torch.export.load(path / "program.pt2").module()
    return np.concatenate([dense.array(program(torch.tensor(one[None]))) for one in X])  # an open batch size becomes 1


def run_onnx(model, path):
    needed = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}[BACKEND]
    pytest.importorskip(needed, reason=f"Keras exports to ONNX from {BACKEND} by way of {needed}")
    runtime = pytest.importorskip("onnxruntime", reason="to run the file")
    if BACKEND == "torch" and isinstance(model, Around):
        pytest.skip("Keras 3.15 loses PyTorch's parameters of any subclassed model that was rebuilt, wrapped or not")
    with warnings.catch_warnings(action="ignore"):  # the exporters speak of their own future, and of NumPy's
        model.export(path / "model.onnx", format="onnx", verbose=False)
    session = runtime.InferenceSession(path / "model.onnx")
    return session.run(None, {session.get_inputs()[0].name: X})[0]


FORMATS = {
    "tensorflow": {"tf_saved_model": serve_saved_model, "litert": run_lite, "onnx": run_onnx},
    "jax": {"tf_saved_model": serve_saved_model, "onnx": run_onnx},
    "torch": {"torch": run_program, "onnx": run_onnx},
}[BACKEND]


@keras.saving.register_keras_serializable("test_export")
class Around(keras.Model):
    """A subclassed model, which takes its first layer and says so in its configuration."""

    def __init__(self, part, **options):
        super().__init__(**options)
        self.part, self.last = part, L.Dense(2)

    def call(self, x, training=False):
        return self.last(self.part(x, training=training))

    def get_config(self):
        return {**super().get_config(), "part": keras.saving.serialize_keras_object(self.part)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("part")), **config)


def sequential(*layers):
    return keras.Sequential([keras.Input((5, 6)), *layers])


MODELS = {
    "a Sequential": lambda: sequential(wrap(L.Conv1D(4, 2)), L.Flatten(), wrap(L.Dense(3, "relu"))),
    "convolutions": lambda: sequential(wrap(L.Conv1D(4, 3), operator="convolution"), L.ReLU()),
    "nested models": lambda: sequential(sequential(wrap(L.Dense(6, "tanh"))), wrap(L.Dense(2), cap=True)),
    "a subclassed model": lambda: Around(wrap(L.Dense(3, "tanh"))),
}


def trained(name):
    model = MODELS[name]()
    outputs = model(X).shape
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(X, gaussian(*outputs), verbose=0)
    return model


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_wrappers_is_exported_in_every_format(name, form, tmp_path):
    model = trained(name)
    expected = model.predict(X, verbose=0)
    before = [dense.array(weight).copy() for weight in model.weights]
    np.testing.assert_allclose(FORMATS[form](model, tmp_path), expected, atol=CLOSE)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(dense.array(weight), old)


@pytest.mark.parametrize("form", FORMATS)
def test_a_baked_model_is_exported_without_a_call_of_ones_own(form, tmp_path):
    model = trained("a subclassed model")
    expected = model.predict(X, verbose=0)
    np.testing.assert_allclose(FORMATS[form](opnorm.bake(model), tmp_path), expected, atol=CLOSE)


class Pair(keras.Model):
    """A model of two inputs in a dictionary."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = L.Dense(3), L.Dense(3)

    def call(self, x):
        return self.first(x["left"]) + self.second(x["right"])


class Two(Pair):
    """A model of two inputs by name; Keras rebuilds such a one by its `build` alone."""

    def build(self, left_shape, right_shape):
        self.first.build(left_shape)
        self.second.build(right_shape)

    def call(self, left, right):
        return self.first(left) + self.second(right)


@pytest.mark.parametrize(
    ("kind", "call"), [(Pair, lambda model: model({"left": X, "right": X})), (Two, lambda model: model(X, X))]
)
def test_a_model_of_several_inputs_is_baked_ready_for_export(kind, call, tmp_path):
    model = kind()
    expected = dense.array(call(model))
    plain = opnorm.bake(model)
    form = "torch" if BACKEND == "torch" else "tf_saved_model"
    plain.export(tmp_path / ("model.pt2" if form == "torch" else "model"), format=form, verbose=False)
    np.testing.assert_array_equal(dense.array(call(plain)), expected)


class Numbers(keras.Model):
    """A model that cannot be called on symbols."""

    def build(self, shape):
        self.first = L.Dense(3)
        self.first.build(shape)

    def call(self, x):
        assert not isinstance(x, keras.KerasTensor)
        return self.first(x)


def test_a_model_that_wants_numbers_is_baked_all_the_same():
    model = Numbers()
    expected = dense.array(model(X))
    np.testing.assert_array_equal(dense.array(opnorm.bake(model)(X)), expected)


@keras.saving.register_keras_serializable("test_export")
class Wrapping(keras.Model):
    """A model whose own code makes the wrapper, so that no configuration can leave it out."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = wrap(L.Dense(3))

    def call(self, x, training=False):
        return self.first(x, training=training)


@pytest.mark.parametrize("form", FORMATS)
def test_what_cannot_be_baked_is_told_in_one_line_where_the_format_cannot_hold_it(form, tmp_path):
    model = Wrapping()
    expected = dense.array(model(X))
    if (BACKEND, form) == ("tensorflow", "tf_saved_model"):
        np.testing.assert_allclose(FORMATS[form](model, tmp_path), expected, atol=CLOSE)
        return
    with pytest.raises(ValueError, match=rf"exported to '{form}' as `opnorm.bake\(model\)`.*Bake the parts") as raised:
        model.export(tmp_path / "model", format=form, verbose=False)
    assert "\n" not in str(raised.value)


def test_a_model_without_wrappers_is_exported_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "bake", None)  # would be an error if called
    model = sequential(L.Dense(3, kernel_constraint=opnorm.SpectralNorm()))
    form = next(iter(FORMATS))
    np.testing.assert_allclose(FORMATS[form](model, tmp_path), dense.array(model(X)), atol=CLOSE)


def test_the_method_says_of_itself_what_keras_says():
    assert list(inspect.signature(keras.Model.export).parameters)[:3] == ["self", "filepath", "format"]
    assert "Export the model" in keras.Model.export.__doc__
