"""Functions of Keras that move, pick and repeat entries have the norms of their matrices."""

import keras
import numpy as np
import pytest
from jacobians import jacobian

import opnorm

L, ops = keras.layers, keras.ops
SINGLE = 1e-4  # Jacobians in float32


MOVES = {
    "flip": lambda x: ops.flip(x, axis=-1),
    "roll": lambda x: ops.roll(x, 2, axis=1),
    "swapaxes": lambda x: ops.swapaxes(x, 1, 2),
    "moveaxis": lambda x: ops.moveaxis(x, 1, -1),
    "expand": lambda x: ops.expand_dims(x, 1),
    "repeat": lambda x: ops.repeat(x, 3, axis=1),
    "tile": lambda x: ops.tile(x, (1, 3, 2)),
    "take": lambda x: ops.take(x, [0, 1, -4, 3, 0], axis=1),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_move_has_the_norm_of_its_matrix(name, tmp_path):
    x = keras.Input((4, 3))
    model = keras.Model(x, MOVES[name](x))
    model.save(tmp_path / "model.keras")
    for given in (model, tmp_path / "model.keras"):
        assert opnorm.lipschitz_bound(given).upper == pytest.approx(
            jacobian(model, np.ones((4, 3), "float32")), rel=SINGLE
        )


@pytest.mark.parametrize("make", [lambda x: ops.repeat(x, [1, 2, 3, 4], axis=1), lambda x: ops.take(x, [9, 9], axis=1)])
def test_a_move_that_is_not_read_has_no_constant(make):
    x = keras.Input((4, 3))
    assert opnorm.lipschitz_bound(keras.Model(x, make(x))).upper is None


@pytest.mark.parametrize("make", [lambda x: ops.log_softmax(x, axis=-1), L.Activation("log_softmax")])
def test_log_softmax_of_known_classes_has_the_root_of_their_number(make):
    x = keras.Input((6,))
    model = keras.Model(x, make(x))
    steep = np.array([9, -9, -9, -9, -9, -9], "float32")
    assert opnorm.lipschitz_bound(model).upper == pytest.approx(np.sqrt(6))
    assert jacobian(model, steep) <= np.sqrt(6) * (1 + SINGLE)
    assert opnorm.lipschitz_bound(model, around=steep, radius=0.1).upper >= jacobian(model, steep) * (1 - SINGLE)


def test_attention_with_dropout_is_followed_on_a_ball(tmp_path):
    x = keras.Input((4, 6))
    model = keras.Model(x, L.MultiHeadAttention(2, 3, dropout=0.1)(x, x))
    model.save(tmp_path / "model.keras")
    point = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    for given in (model, tmp_path / "model.keras"):
        bound = opnorm.lipschitz_bound(given, around=point, radius=0.0)
        assert bound.lower == pytest.approx(jacobian(model, point), rel=SINGLE)
        assert bound.upper == pytest.approx(jacobian(model, point), rel=SINGLE)
