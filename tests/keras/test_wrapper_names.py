"""The vectors of a wrapper have names of their own, whatever the layers inside are called: files go by names."""

import dense
import keras
import numpy as np
import pytest
from cases import gaussian, op_by_op

import opnorm

L = keras.layers
wrap = opnorm.SpectralNormalization


def block(width=4):
    return keras.Sequential([L.Dense(width, name="same")])


INSIDE = {
    "both directions of a recurrent layer": lambda: L.Bidirectional(L.LSTM(3)),
    "both directions, given one by one": lambda: L.Bidirectional(
        L.GRU(3, name="one"), backward_layer=L.GRU(3, name="other", go_backwards=True)
    ),
    "layers of one name in nested models": lambda: keras.Sequential([L.Dense(5, name="same"), block(), block()]),
    "a wrapper and a layer of one name": lambda: keras.Sequential(
        [wrap(L.Dense(5, name="same")), L.Dense(4, name="same")]
    ),
    "a layer named as a kernel is": lambda: keras.Sequential(
        [L.Dense(5, name="a_kernel_vectors"), L.Dense(4, name="a")]
    ),
}


def made(name, inner=wrap):
    model = keras.Sequential([keras.Input((4, 2)), inner(INSIDE[name]())])
    for index, weight in enumerate(w for w in model.trainable_weights if len(w.shape) > 1):
        weight.assign(gaussian(*weight.shape, seed=index))
    return model


def predicted(model):
    return dense.array(op_by_op(model)(gaussian(2, 4, 2)))


@pytest.mark.parametrize("name", INSIDE)
def test_no_two_variables_have_one_path(name):
    paths = [variable.path for variable in made(name).variables]
    assert len(set(paths)) == len(paths)


# Keras's own words on `.h5`; such files hold the weights whatever it says.
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("file", ["model.h5", "model.keras", "model.weights.h5"])
@pytest.mark.parametrize("name", INSIDE)
def test_what_is_saved_in_any_format_is_what_is_loaded(name, file, tmp_path):
    model = made(name)
    op_by_op(model)(gaussian(2, 4, 2), training=True)  # the vectors have left their start
    if file == "model.weights.h5":
        loaded = made(name)
        model.save_weights(tmp_path / file)
        loaded.load_weights(tmp_path / file)
    else:
        model.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file, compile=False)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(dense.array(ours), dense.array(theirs))
    np.testing.assert_array_equal(predicted(loaded), predicted(model))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's modules")
@pytest.mark.parametrize("name", INSIDE)
def test_pytorch_sees_every_variable(name):
    model = made(name)
    seen = {id(parameter) for parameter in model.parameters()}
    assert {id(variable.value) for variable in model.variables} <= seen


def test_names_that_were_apart_stay_as_they_were():
    layer = wrap(L.LSTM(3, name="lstm"))
    layer.build((None, 4, 2))
    cell = layer.layer.cell.name
    names = [w.name for w in layer.non_trainable_weights]
    assert names == [f"{cell}_kernel_vectors", f"{cell}_recurrent_kernel_vectors"]
    twins = wrap(keras.Sequential([L.Dense(3, name="d"), keras.Sequential([L.Dense(2, name="d")])]))
    twins.build((None, 4))
    assert [w.name for w in twins.non_trainable_weights] == ["d_kernel_vectors", "d_kernel_vectors_1"]
