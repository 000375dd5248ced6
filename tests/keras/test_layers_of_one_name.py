"""Layers that share a name or stand in several models: each is bounded with the weights that it computes with."""

import keras
import numpy as np
import pytest
from jacobians import jacobian

import opnorm
from opnorm.keras.live import read_model

L = keras.layers
SINGLE = 1e-4  # Jacobians in float32


def truth(model):
    """Return the norm of the Jacobian at a random point."""
    return jacobian(model, np.random.default_rng(1).standard_normal(model.input_shape[1:]))


def scaled(layer, factor, size=3):
    if not layer.built:
        layer.build((None, size))
    layer.kernel.assign(np.eye(*layer.kernel.shape) * factor)
    return layer


def with_momentum():
    """Return a model of an encoder that has this and a clone of it as attributes."""
    x = keras.Input((3,))
    encoder = keras.Sequential([keras.Input((3,)), L.Dense(4, name="d")], name="encoder")
    model = keras.Model(x, encoder(x))
    model.encoder, model.momentum_encoder = encoder, keras.models.clone_model(encoder)
    scaled(encoder.get_layer("d"), 5.0)
    scaled(model.momentum_encoder.get_layer("d"), 0.1)
    return model


def with_attributes(*names):
    """Return a model of a layer, with that layer or others of its name as attributes."""
    x, layer = keras.Input((3,)), L.Dense(3, name="d")
    model = keras.Model(x, layer(x))
    scaled(layer, 5.0)
    for name in names:
        setattr(model, name, layer if name == "own" else scaled(L.Dense(3, name="d"), 0.1))
    return model


def with_lists():
    model = with_attributes()
    model.cells, model.others = [scaled(L.Dense(3, name="d"), 0.1)], [scaled(L.Dense(3, name="d"), 0.1)]
    return model


@pytest.mark.parametrize(
    "make",
    [
        with_momentum,
        lambda: with_attributes("other"),
        lambda: with_attributes("own", "other"),
        lambda: with_attributes("other", "own", "zz"),
        with_lists,
    ],
    ids=["momentum", "other", "own-and-other", "three", "lists"],
)
def test_attributes_that_have_a_layers_name_change_nothing(make, tmp_path):
    model = make()
    model.save(tmp_path / "model.keras")
    for given in (model, tmp_path / "model.keras"):
        assert opnorm.lipschitz_bound(given).upper == pytest.approx(truth(model), rel=SINGLE)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert truth(loaded) == pytest.approx(truth(model), rel=SINGLE)


def test_a_layer_that_another_one_merely_has_is_not_its_projection(tmp_path):
    x, attention = keras.Input((4, 3)), L.MultiHeadAttention(1, 2)
    attention.helper = L.Dense(2, name="query")
    attention.helper.build((None, 3))
    model = keras.Model(x, attention(x, x))
    point = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    before = opnorm.lipschitz_bound(model, around=point, radius=0.0)
    attention.helper.kernel.assign(np.full(attention.helper.kernel.shape, 9.0))
    model.save(tmp_path / "model.keras")
    assert before.upper is not None
    for given in (model, tmp_path / "model.keras"):
        assert opnorm.lipschitz_bound(given, around=point, radius=0.0).upper == pytest.approx(before.upper, rel=SINGLE)


def shared_by_two_models():
    x, layer = keras.Input((3,)), L.Dense(3, name="d")
    one = keras.Sequential([keras.Input((3,)), layer], name="one")
    two = keras.Sequential([keras.Input((3,)), L.Dense(3, name="e"), layer], name="two")
    return keras.Model(x, L.Add()([one(x), two(x)]))


def shared_with_a_model():
    x, layer = keras.Input((3,)), L.Dense(3, name="d")
    inner = keras.Sequential([keras.Input((3,)), layer], name="inner")
    model = keras.Model(x, L.Add()([inner(x), layer(x)]))
    model.other = scaled(L.Dense(3, name="d"), 0.01)
    return model


@pytest.mark.parametrize("make", [shared_by_two_models, shared_with_a_model])
def test_a_layer_in_several_models_has_its_weights_in_each(make):
    model = make()
    bound = opnorm.lipschitz_bound(model)
    assert truth(model) <= bound.upper * (1 + SINGLE)
    assert bound.upper <= 10 * truth(model)
    assert len(read_model(model).weights) == len(model.weights)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("make", [shared_by_two_models, shared_with_a_model])
def test_a_file_of_a_layer_in_several_models_which_keras_cannot_load_has_no_constant(make, tmp_path):
    make().save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="could not be loaded"):
        keras.models.load_model(tmp_path / "model.keras")
    bound = opnorm.lipschitz_bound(tmp_path / "model.keras")
    assert bound.upper is None
    assert "its kernel is not there" in bound.unknown[0].rule
