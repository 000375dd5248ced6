"""One state a kernel, whichever way the kernels, the layers and the models came about."""

import dense
import keras
import numpy as np
import pytest
from cases import CONSTRAINTS, STATELESS, built_optimizer, gaussian, take_steps
from keras import layers

import opnorm
from opnorm.keras.slots import state_of


def constrained(model):
    return [v for v in model.trainable_variables if v.constraint is not None]


def states(optimizer, kernels):
    return [state_of(optimizer, kernel) for kernel in kernels]


def assert_each_has_its_own_state(optimizer, kernels):
    """Assert one variable a kernel, of its width, no two alike, all of them saved with the optimizer."""
    found = states(optimizer, kernels)
    assert [s.shape[-1] for s in found] == [kernel.shape[-1] for kernel in kernels]
    assert len({id(s) for s in found}) == len(kernels)
    assert len({dense.array(s).tobytes() for s in found}) == len(kernels)
    assert {id(s) for s in found} <= {id(v) for v in optimizer.variables}


def scaled_up(model):
    for kernel in constrained(model):
        kernel.assign(5 * kernel.value)
    return model


def stacked(*widths, constraint):
    return [layers.Dense(width, kernel_constraint=constraint) for width in widths]


def attention(constraint):
    x = keras.Input((6, 8))
    y = layers.MultiHeadAttention(2, 4, kernel_constraint=constraint)(x, x)
    return keras.Model(x, y)


SHARED = {
    "two_of_one_width": lambda c: keras.Sequential([keras.Input((12,)), *stacked(8, 8, constraint=c)]),
    "two_widths": lambda c: keras.Sequential([keras.Input((12,)), *stacked(8, 4, constraint=c)]),
    "square_and_not": lambda c: keras.Sequential([keras.Input((8,)), *stacked(8, 8, 4, constraint=c)]),
    "attention": attention,
}


@pytest.mark.parametrize("constraint_name", CONSTRAINTS)
@pytest.mark.parametrize("shared", SHARED)
def test_one_instance_serves_many_kernels(constraint_name, shared):
    keras.utils.set_random_seed(1)
    model = scaled_up(SHARED[shared](CONSTRAINTS[constraint_name].build(0.9)))
    kernels = constrained(model)
    optimizer = built_optimizer(kernels)
    assert_each_has_its_own_state(optimizer, kernels)
    before = [dense.array(s).copy() for s in states(optimizer, kernels)]
    take_steps(optimizer, kernels, steps=3)
    for kernel, u in zip(kernels, before, strict=True):
        assert abs(dense.norm(kernel) / 0.9 - 1) <= 1e-3  # C3
        assert np.max(np.abs(dense.array(state_of(optimizer, kernel)) - u)) >= 1e-3  # C2: it lives, no float noise


@pytest.mark.parametrize("constraint_name", STATELESS)
@pytest.mark.parametrize("shared", SHARED)
def test_one_instance_without_state_serves_many_kernels(constraint_name, shared):
    keras.utils.set_random_seed(1)
    case = STATELESS[constraint_name]
    model = scaled_up(SHARED[shared](case.build(0.9)))
    kernels = constrained(model)
    expected = [dense.with_values(kernel, lambda s: case.values(s, 0.9)) for kernel in kernels]
    optimizer = built_optimizer(kernels)
    assert states(optimizer, kernels) == [None] * len(kernels)
    take_steps(optimizer, kernels)
    for kernel, truth in zip(kernels, expected, strict=True):
        assert dense.array(kernel) == pytest.approx(truth, abs=1e-4)  # what `SpectralClip` documents


def test_one_instance_holds_every_kernel_in_fit():
    keras.utils.set_random_seed(1)
    constraint = opnorm.SpectralNorm(0.9)
    x = keras.Input((6, 8))
    y = layers.Flatten()(layers.MultiHeadAttention(2, 4, kernel_constraint=constraint)(x, x))
    for layer in stacked(10, 10, 5, constraint=constraint):
        y = layer(y)
    model = keras.Model(x, y)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(gaussian(256, 6, 8), gaussian(256, 5), batch_size=16, epochs=2, verbose=0)
    assert len(constrained(model)) == 7
    assert_each_has_its_own_state(model.optimizer, constrained(model))
    for kernel in constrained(model):
        assert abs(dense.norm(kernel) / 0.9 - 1) <= 1e-3  # C3


def named_model(constraint):
    return keras.Sequential([keras.Input((6,)), layers.Dense(6, name="same", kernel_constraint=constraint)], name="net")


def from_a_function(width):
    return layers.Dense(width, kernel_constraint=opnorm.SpectralNorm())


def test_layers_from_a_function_in_a_loop_have_each_their_own_state():
    model = keras.Sequential([keras.Input((8,)), *(from_a_function(8) for _ in range(4))])
    kernels = constrained(model)
    assert_each_has_its_own_state(built_optimizer(kernels), kernels)


def test_equal_names_in_two_models_never_clash():
    constraint = opnorm.SpectralNorm(seed=3)
    first, second = named_model(constraint), named_model(constraint)
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    kernels = [first.layers[0].kernel, second.layers[0].kernel]
    together = built_optimizer(kernels)
    assert_each_has_its_own_state(together, kernels)
    apart = [built_optimizer([kernel]) for kernel in kernels]
    assert state_of(apart[0], kernels[0]) is not state_of(apart[1], kernels[1])
    assert state_of(apart[0], kernels[1]) is None


def test_clone_shares_no_state_with_its_origin():
    origin = scaled_up(named_model(opnorm.SpectralNorm()))
    clone = keras.models.clone_model(origin)
    clone.set_weights(origin.get_weights())
    (kernel,), (copy,) = constrained(origin), constrained(clone)
    optimizers = built_optimizer([kernel]), built_optimizer([copy])
    before = dense.array(kernel).copy(), dense.array(state_of(optimizers[0], kernel)).copy()
    take_steps(optimizers[1], [copy])
    assert abs(dense.norm(copy) - 1) <= 0.02  # a cold start, C5
    assert np.array_equal(dense.array(kernel), before[0])
    assert np.array_equal(dense.array(state_of(optimizers[0], kernel)), before[1])
