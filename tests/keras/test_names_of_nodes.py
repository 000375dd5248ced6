"""Names that opnorm makes for parts of layers, and for layers that it joins, are none of the model's own."""

import keras
import numpy as np
import pytest
from jacobians import jacobian

import opnorm

L, ops = keras.layers, keras.ops
SINGLE = 1e-4  # Jacobians in float32
by_jacobians = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="TensorFlow calls no model of layers with such names"
)


def filled(layer, factor):
    layer.kernel.assign(np.full(layer.kernel.shape, factor))


@by_jacobians
@pytest.mark.parametrize("swapped", [False, True])
def test_a_layer_that_is_called_as_two_joined_ones_is_none_of_them(swapped, tmp_path):
    x = keras.Input((6,))
    pair, one = [L.Dense(5, name="a"), L.Dense(4, name="b")], L.Dense(4, name="a + b")
    branches = {"pair": lambda: pair[1](pair[0](x)), "one": lambda: one(x)}
    made = {name: branches[name]() for name in (("one", "pair") if swapped else ("pair", "one"))}
    model = keras.Model(x, L.Add()([ops.relu(made["pair"]), ops.tanh(made["one"])]))
    for layer, factor in ((pair[0], 0.01), (pair[1], 0.01), (one, 9.0)):
        filled(layer, factor)
    model.save(tmp_path / "model.keras")
    point = np.zeros(6, "float32")
    for given in (model, tmp_path / "model.keras"):
        upper = opnorm.lipschitz_bound(given).upper
        assert jacobian(model, point) <= upper * (1 + SINGLE)
        assert jacobian(model, point) <= opnorm.lipschitz_bound(given, around=point, radius=0.1).upper * (1 + SINGLE)


@by_jacobians
def test_calls_of_a_layer_and_a_layer_called_as_one_of_them_are_told_apart():
    x = keras.Input((6,))
    layer, other = L.Dense(6, name="d"), L.Dense(2, name="d#1")
    model = keras.Model(x, other(layer(layer(x))))
    bound = opnorm.lipschitz_bound(model)
    assert jacobian(model, np.zeros(6, "float32")) <= bound.upper * (1 + SINGLE)


@by_jacobians
def test_parts_of_a_split_and_a_layer_called_as_one_are_told_apart():
    x = keras.Input((6,))
    one, two = keras.ops.split(x, 2, axis=-1)
    name = two._keras_history.operation.name
    model = keras.Model(x, L.Concatenate()([L.Dense(3, name=f"{name}:1")(one), two]))
    bound = opnorm.lipschitz_bound(model)
    assert jacobian(model, np.zeros(6, "float32")) <= bound.upper * (1 + SINGLE)
    assert {f"{name}:1", name} < {step.name for step in bound.steps}


@pytest.mark.parametrize("name", ["logit 1 - logit 0", "last + logit 1 - logit 0"])
def test_a_layer_called_as_a_difference_of_logits_changes_no_certificate(name):
    x = keras.Input((3,))
    steep = L.Dense(3, name=name)
    end = ops.tanh if name.startswith("logit") else L.Identity()  # nothing is joined to the first
    model = keras.Model(x, end(L.Dense(2, name="last")(ops.tanh(steep(x)))))
    filled(steep, 9.0)
    plain = keras.Model(x, end(L.Dense(2, name="other")(ops.tanh(L.Dense(3)(x)))))
    plain.set_weights(model.get_weights())
    points = np.eye(3, dtype="float32")
    found, expected = opnorm.certify(model, points), opnorm.certify(plain, points)
    assert found.radius == pytest.approx(expected.radius)
