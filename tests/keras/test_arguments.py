"""Public names of the Keras front end refuse what they cannot use, by the argument's name and the value received."""

import keras
import numpy as np
import pytest

import opnorm

CONSTRAINTS = opnorm.SpectralNorm, opnorm.MaxSpectralNorm, opnorm.SpectralClip, opnorm.Orthogonal
EMPTY = [(0, 3), (3, 0), (2, 0, 4)]


@pytest.mark.parametrize("make", [*CONSTRAINTS, opnorm.SpectralRegularizer], ids=lambda make: make.__name__)
@pytest.mark.parametrize("given", [{"axis": "x"}, {"axis": None}, {"axis": b"x"}, {"groups": "2"}, {"groups": 10**400}])
def test_a_constraint_refuses_arguments_of_other_types(make, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"`{name}`.*Received: "):
        make(**given)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: opnorm.SpectralNorm(companion="x"), "companion"),
        (lambda: opnorm.SpectralNorm(10**400), "value"),
        (lambda: opnorm.SpectralNorm(operator=np.ones(2)), "operator"),
        (lambda: opnorm.Orthogonal(operator=np.ones(2)), "operator"),
        (lambda: opnorm.SpectralNormalization(keras.layers.Dense(2), cap="no"), "cap"),
        (lambda: opnorm.SpectralNormalization("x"), "layer"),
        (lambda: opnorm.SpectralMonitor(include=3), "include"),
        (lambda: opnorm.SpectralMonitor(per_kernel="x"), "per_kernel"),
        (lambda: opnorm.project(None), "model"),
        (lambda: opnorm.bake(None), "model"),
        (lambda: opnorm.constrain(None, opnorm.SpectralNorm()), "model"),
        (lambda: opnorm.lipschitz_bound(None), "model"),
        (
            lambda: opnorm.linear_operators(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), gates="x"),
            "gates",
        ),
        (lambda: opnorm.SpectralNorm()([[3, 0], [4, 1]]), "kernel"),
        (lambda: opnorm.SpectralNorm()(np.array([[3, 0], [4, 1]])), "kernel"),
        (lambda: opnorm.SpectralRegularizer()([[3, 0], [4, 1]]), "kernel"),
    ],
)
def test_a_call_names_the_argument_and_the_value(call, name):
    with pytest.raises((ValueError, TypeError), match=f"(?s)`{name}`.*Received: "):
        call()


@pytest.mark.parametrize(
    "data", ["x", 3, [[1, 2, 3]], np.zeros((0, 3)), np.zeros((2, 4)), [[1.0], [2.0, 3.0]]], ids=str
)
def test_points_that_a_model_cannot_take_are_refused(data):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"(?s)`data`.*Received: "):
        opnorm.lipschitz_bound(model, data)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("make", CONSTRAINTS, ids=lambda make: make.__name__)
def test_a_kernel_without_entries_passes_untouched(make, shape):
    constraint, kernel = make(), keras.ops.zeros(shape)
    assert constraint.initial_state(kernel) is None
    assert tuple(constraint(kernel).shape) == shape
    assert tuple(constraint.project(kernel).shape) == shape
    changed, state = constraint.update(kernel, None)
    assert tuple(changed.shape) == shape
    assert state is None
    assert float(opnorm.SpectralRegularizer()(kernel)) == 0


def test_integers_inside_the_wrapper_are_refused():
    class Table(keras.layers.Layer):
        def build(self, input_shape):
            self.kernel = self.add_weight(shape=(2, 2), dtype="int32", initializer="ones", trainable=False)

        def call(self, x):
            return x

    opnorm.kernels.register(Table, lambda layer: (opnorm.KernelGeometry(),))
    with pytest.raises(ValueError, match=r"(?s)`kernel`.*int32"):
        opnorm.SpectralNormalization(Table())(np.ones((1, 2), "float32"))
