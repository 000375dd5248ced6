"""Live layers that do something else than their configs say: functions called as Keras's are, methods replaced."""

import functools

import keras
import numpy as np
import pytest

import opnorm

L, ops = keras.layers, keras.ops


class Steep:
    """Callable, and with a method of that name."""

    __name__ = "relu"

    def __init__(self):
        self.__name__ = "relu"

    def relu(self, x):
        return 5 * ops.relu(x)

    def __call__(self, x):
        return 5 * ops.relu(x)


@functools.wraps(keras.activations.relu)
def wrapped(x):
    return 5 * keras.activations.relu(x)


def of(layer):
    return keras.Sequential([keras.Input((4,)), L.Dense(4), layer])


WITHIN = {
    "dense": lambda use: L.Dense(4, activation=use),
    "layer": L.Activation,
    "for each position": lambda use: L.TimeDistributed(L.Dense(4, activation=use)),
    "inner model": lambda use: keras.Sequential([L.Dense(4, activation=use)]),
}


@pytest.mark.parametrize("function", [Steep(), Steep().relu, wrapped], ids=["object", "method", "wrapped"])
@pytest.mark.parametrize("where", WITHIN)
def test_what_merely_has_the_name_of_one_of_keras_s_functions_has_no_constant(where, function):
    model = keras.Sequential([keras.Input((3, 4)), WITHIN[where](function)])
    (unknown,) = opnorm.lipschitz_bound(model).unknown
    assert "relu" in unknown.rule
    assert opnorm.lipschitz_bound(model, around=np.ones((3, 4)), radius=0.1).upper is None


@pytest.mark.parametrize("function", [Steep(), Steep().relu], ids=["object", "method"])
def test_a_file_that_says_that_an_activation_is_no_function_has_no_constant(function, tmp_path):
    of(L.Dense(4, activation=function)).save(tmp_path / "model.keras")
    assert opnorm.lipschitz_bound(tmp_path / "model.keras").upper is None


@pytest.mark.parametrize("function", [keras.activations.silu, keras.activations.swish, ops.silu, "silu", ops.tanh])
def test_keras_s_own_functions_are_known_wherever_they_are_taken_from(function):
    assert opnorm.lipschitz_bound(of(L.Dense(4, activation=function))).upper is not None


def test_the_operation_gelu_is_another_function_than_the_activation():
    """By default it is the form with tanh, which a ball would take for the one with erf."""
    assert opnorm.lipschitz_bound(of(L.Dense(4, activation=keras.activations.gelu))).upper is not None
    assert opnorm.lipschitz_bound(of(L.Dense(4, activation=ops.gelu))).upper is None


def _steeper(layer, method):
    old = getattr(layer, method)
    setattr(layer, method, lambda *args, **kwargs: 7 * old(*args, **kwargs))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: _steeper(L.Dense(4), "call"),
        lambda: _steeper(L.ReLU(), "call"),
        lambda: L.TimeDistributed(_steeper(L.Dense(4), "call")),
        lambda: L.Dense(4, activation=_steeper(L.LeakyReLU(), "call")),
        lambda: _steeper(L.Conv1D(4, 1), "convolution_op"),
        lambda: keras.Sequential([keras.Input((3, 4)), _steeper(L.Dense(4), "call")]),
        lambda: _steeper(keras.Sequential([keras.Input((3, 4)), L.Dense(4)]), "call"),
    ],
    ids=["dense", "relu", "wrapped", "activation", "operation", "inner-model", "model"],
)
def test_a_layer_whose_method_was_replaced_has_no_constant(make):
    x = keras.Input((3, 4))
    model = keras.Model(x, L.Dense(2)(make()(x)))
    for bound in (
        opnorm.lipschitz_bound(model),
        opnorm.lipschitz_bound(model, around=np.ones((3, 4)), radius=0.1),
    ):
        assert bound.upper is None
        assert len(bound.unknown) == 1
