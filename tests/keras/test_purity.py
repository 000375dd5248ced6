"""A constraint writes in an optimizer's update and nowhere else, and only to what that update trains."""

import dense
import keras
import numpy as np
import pytest
from cases import ALL, CONSTRAINTS, EVERY, built_optimizer, gaussian, take_steps
from keras import layers

import opnorm
from opnorm.keras.slots import state_of

BACKEND = keras.backend.backend()
every_constraint = pytest.mark.parametrize("constraint_name", ALL)


def linear(case, rows=4, columns=5):
    """Return f(x) = x A b, compiled, with A and b far outside the ball: whatever writes is seen."""
    keras.utils.set_random_seed(1)
    hidden = layers.Dense(columns, use_bias=False, kernel_constraint=case.build(0.5))
    last = layers.Dense(1, use_bias=False, kernel_constraint=case.build(0.5))
    model = keras.Sequential([keras.Input((rows,)), hidden, last])
    model.set_weights([gaussian(rows, columns), gaussian(columns, 1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def snapshot(model):
    """Return copies of all kernels and states."""
    kernels = [v for v in model.variables if getattr(v, "constraint", None) is not None]
    states = [state_of(model.optimizer, kernel) for kernel in kernels]
    return [dense.array(v).copy() for v in [*kernels, *(s for s in states if s is not None)]]


def assert_unchanged(model, before):
    for was, value in zip(before, snapshot(model), strict=True):
        assert np.array_equal(was, value)


@every_constraint
def test_predict_evaluate_and_call_leave_kernel_and_u_bitwise_unchanged(constraint_name):
    model = linear(ALL[constraint_name])
    before = snapshot(model)
    assert len(before) == (4 if constraint_name in CONSTRAINTS else 2)  # two kernels, and their states
    x = gaussian(8, 4)
    model.predict(x, verbose=0)
    model.evaluate(x, np.ones((8, 1)), verbose=0)
    model(x, training=False)
    model(x, training=True)
    assert_unchanged(model, before)


def gradients(function, values, repeat=1):
    """Return the gradients of `function(values)`, taken `repeat` times from one graph and added."""
    if BACKEND == "jax":
        import jax

        _, pull = jax.vjp(function, values)
        return jax.tree.map(lambda *g: sum(g), *[pull(np.float32(1))[0] for _ in range(repeat)])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(values)
            y = function(values)
        return [sum(g) for g in zip(*[tape.gradient(y, values) for _ in range(repeat)], strict=True)]
    import torch

    y = function(values)
    taken = [torch.autograd.grad(y, values, retain_graph=True, create_graph=True) for _ in range(repeat)]
    return [sum(g) for g in zip(*taken, strict=True)]


def leaves(arrays):
    tensors = [keras.ops.convert_to_tensor(a) for a in arrays]
    return [t.requires_grad_() for t in tensors] if BACKEND == "torch" else tensors


def output(model, kernels, x):
    """Return the sum of the model's outputs with these `kernels`, which its own variables lend their place."""
    return keras.ops.sum(model.stateless_call(kernels, [], x, training=True)[0])


@every_constraint
def test_two_forwards_and_two_backwards_of_one_graph_see_the_stored_kernels(constraint_name):
    model = linear(ALL[constraint_name])
    before = snapshot(model)
    real, fake = gaussian(8, 4, seed=1), gaussian(8, 4, seed=2)
    (a, b), x = model.get_weights(), np.sum(real + fake, axis=0, keepdims=True)
    taken = gradients(lambda k: output(model, k, real) + output(model, k, fake), leaves([a, b]), repeat=2)
    np.testing.assert_allclose(dense.array(taken[0]), 2 * x.T @ b.T, rtol=1e-4, atol=1e-5)  # float32 sums of 8
    np.testing.assert_allclose(dense.array(taken[1]), 2 * (x @ a).T, rtol=1e-4, atol=1e-5)  # as above
    assert_unchanged(model, before)


@every_constraint
def test_gradient_penalty_goes_back_twice_through_the_stored_kernels(constraint_name):
    model = linear(ALL[constraint_name])
    before = snapshot(model)
    a, b = model.get_weights()

    def penalty(kernels):
        (slope,) = gradients(lambda xs: output(model, kernels, xs[0]), leaves([gaussian(1, 4)]))
        return keras.ops.sum(keras.ops.square(slope))  # of f(x) = x A b: |A b|^2, whatever x

    taken = gradients(penalty, leaves([a, b]))
    np.testing.assert_allclose(dense.array(taken[0]), 2 * a @ b @ b.T, rtol=1e-4, atol=1e-5)  # float32 sums of 5
    np.testing.assert_allclose(dense.array(taken[1]), 2 * a.T @ a @ b, rtol=1e-4, atol=1e-5)  # as above
    assert_unchanged(model, before)


@every_constraint
def test_update_is_no_part_of_the_gradient(constraint_name):
    constraint, kernel = ALL[constraint_name].build(0.5), gaussian(4, 5)
    state = constraint.initial_state(kernel)
    (taken,) = gradients(lambda k: keras.ops.sum(constraint.update(k[0], state)[0] + k[0]), leaves([kernel]))
    assert np.array_equal(dense.array(taken), np.ones((4, 5)))


@pytest.mark.parametrize("constraint_name", EVERY)
def test_frozen_before_compile_is_untouched_by_fit(constraint_name):
    model = linear(EVERY[constraint_name])
    frozen, trained = model.layers
    frozen.trainable = False
    model.compile("sgd", "mse")
    before = dense.array(frozen.kernel).copy()
    model.fit(gaussian(32, 4), np.ones((32, 1)), batch_size=8, verbose=0)
    assert np.array_equal(dense.array(frozen.kernel), before)
    assert state_of(model.optimizer, frozen.kernel) is None
    assert dense.norm(trained.kernel) <= 0.5 * (1 + 1e-3)  # C2: the optimizer did act


@pytest.mark.parametrize("constraint_name", EVERY)
def test_frozen_after_the_optimizer_was_built_keeps_kernel_and_u(constraint_name):
    model = linear(EVERY[constraint_name])
    kernels = list(model.trainable_variables)
    optimizer = built_optimizer(kernels)
    before = [dense.array(v).copy() for v in (kernels[0], state_of(optimizer, kernels[0])) if v is not None]
    model.layers[0].trainable = False
    take_steps(optimizer, kernels[1:])
    opnorm.project(model)
    after = [dense.array(v) for v in (kernels[0], state_of(optimizer, kernels[0])) if v is not None]
    assert len(after) == (2 if constraint_name in CONSTRAINTS else 1)
    assert all(map(np.array_equal, before, after))
    assert abs(dense.norm(kernels[1]) - 0.5) <= 1e-3  # what `project` documents
