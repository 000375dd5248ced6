"""Files that Keras 3 writes: h5py's visitor finds no tensor that has no row, and bounds are of what layers apply."""

import keras
import numpy as np
import pytest
from hdf5_files import all_read, visited
from scipy.linalg import svdvals

import opnorm

L = keras.layers
FORMATS = ["a.keras", "a.weights.h5", "a.h5"]


def network():
    inputs = keras.Input((8, 8, 2))
    x = L.SeparableConv2D(4, 3, padding="same", activation="hard_sigmoid")(inputs)
    x = L.Dropout(0.5)(L.BatchNormalization()(L.Conv2DTranspose(3, 3, strides=2)(x)))
    x = keras.Sequential([L.Reshape((-1, 3)), L.TimeDistributed(L.Dense(4)), L.LayerNormalization()])(x)
    x = L.Bidirectional(L.GRU(3, return_sequences=True))(L.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(inputs, L.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")(x))


class Stranger(L.Layer):
    """A layer of the user's, with variables of names that repeat."""

    def build(self, shape):
        self._hidden = [L.Dense(3), L.Dense(3)]  # underscored and in a list
        for layer in self._hidden:
            layer.build(shape)
        self.scale = self.add_weight(shape=(2, 3, 4), name="kernel")
        self.other = self.add_weight(shape=(5, 5), name="kernel")

    def call(self, x):
        return self._hidden[0](x) + self._hidden[1](x)


def with_stranger():
    return keras.Sequential([keras.Input((6,)), Stranger(), L.Dense(2)])


def saved(make, path):
    keras.utils.set_random_seed(0)
    model = make()
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path) if path.name.endswith(".weights.h5") else model.save(path)
    return model


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
@pytest.mark.parametrize(
    ("make", "form"), [*((network, form) for form in FORMATS), *((with_stranger, form) for form in FORMATS[:2])]
)
def test_every_tensor_of_a_saved_model_has_a_row(tmp_path, make, form):
    saved(make, tmp_path / form)
    assert all_read(tmp_path / form) == visited(tmp_path / form)
    for row in opnorm.audit(tmp_path / form).rows:
        harmless = len(row.shape) < 2 or row.reason in ("optimizer state", "a bias is added, not multiplied")
        assert row.status != "skipped" or harmless


@pytest.mark.parametrize("make", [network, with_stranger])
def test_every_variable_of_a_live_model_has_a_row(make):
    model = make()
    rows = opnorm.audit(model).rows
    assert sorted(row.shape for row in rows) == sorted(tuple(variable.shape) for variable in model.variables)
    assert len({row.name for row in rows}) == len(rows)


def quantized(mode):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), L.Dense(8, name="d")])
    model.get_layer("d").quantize(mode)
    return model


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("form", ["live", "a.keras", "a.weights.h5"])
def test_a_quantized_kernel_has_the_norm_that_is_applied_or_fails(tmp_path, mode, form):
    model = quantized(mode)
    if form != "live":
        model.save_weights(tmp_path / form) if "weights" in form else model.save(tmp_path / form)
    rows = opnorm.audit(model if form == "live" else tmp_path / form).rows
    kernel = max((row for row in rows if len(row.shape) == 2), key=lambda row: row.shape)
    if mode == "float8" and form == "a.weights.h5":  # nothing there says so, and the layer's name is all that is known
        assert kernel.assumed
    elif mode == "int8" and form != "a.weights.h5":
        layer = model.get_layer("d")
        codes, scale = (keras.ops.convert_to_numpy(v).astype("f8") for v in (layer._kernel, layer.kernel_scale))
        assert kernel.lower <= svdvals(codes / scale)[0] * (1 + 1e-12)
        assert svdvals(codes / scale)[0] <= kernel.upper * (1 + 1e-12)
    else:
        assert kernel.status == "failed"
        assert not any(row.status == "bounded" for row in rows)  # no scale of a kernel either


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("layer", [lambda: L.Embedding(7, 16), lambda: L.EinsumDense("abc,cd->abd", (4, 3))])
def test_codes_are_bounded_as_what_they_stand_for_or_fail(tmp_path, layer, mode):
    model = keras.Sequential([keras.Input((4, 16) if "Einsum" in type(layer()).__name__ else (4,)), layer()])
    model.layers[0].quantize(mode)
    model.save(tmp_path / "a.keras")
    rows = opnorm.audit(tmp_path / "a.keras").rows
    row = max((row for row in rows if "int8" in row.dtype), key=lambda row: row.shape)
    if row.status == "bounded":
        assert (mode, row.kind) == ("int8", "Embedding")
        table = keras.ops.convert_to_numpy(model(np.repeat(np.arange(7)[:, None], 4, axis=1)))[:, 0].astype("f8")
        assert row.lower * (1 - 1e-6) <= svdvals(table)[0] <= row.upper * (1 + 1e-6)  # float32
    else:
        assert row.status == "failed"
