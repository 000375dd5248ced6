"""`tf.matmul(x, constraint(w))`: the constraint in the forward pass, in a graph and eagerly; truth is float64 NumPy."""

import itertools
import re
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

import opnorm

v1 = tf.compat.v1


def gaussian(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def sigma(kernel):
    return np.linalg.svd(np.asarray(kernel, "float64"), compute_uv=False)[0]


def kernel_of(values):
    """Return a 6 x 4 kernel with these singular values."""
    left, right = np.linalg.qr(gaussian(6, 4))[0], np.linalg.qr(gaussian(4, 4))[0]
    return left * values @ right


# At rest u is off by the perturbation, 1e-3, times r^2 / (1 - r^2), r the ratio of the second value to the first.
KERNEL = kernel_of([3.5, 2.2, 1.0, 0.5])
X, Y = gaussian(9, 6, seed=1), gaussian(9, 4, seed=2)


def clipped(kernel, bound):
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    return u * np.minimum(s, bound) @ vt


CASES = {  # the constraint, and what it makes of a kernel
    "SpectralNorm": (partial(opnorm.tf1.SpectralNorm, 2.0), lambda w: 2.0 * w / sigma(w)),
    "MaxSpectralNorm outside": (partial(opnorm.tf1.MaxSpectralNorm, 2.0), lambda w: 2.0 * w / sigma(w)),
    "MaxSpectralNorm inside": (partial(opnorm.tf1.MaxSpectralNorm, 9.0), lambda w: w),
    "SpectralClip outside": (partial(opnorm.tf1.SpectralClip, 2.0), lambda w: clipped(w, 2.0)),
    "SpectralClip inside": (partial(opnorm.tf1.SpectralClip, 9.0), lambda w: w),
}
CONSTRAINTS = {
    "SpectralNorm": opnorm.tf1.SpectralNorm,
    "MaxSpectralNorm": opnorm.tf1.MaxSpectralNorm,
    "SpectralClip": opnorm.tf1.SpectralClip,
}


def unperturbed(name):
    """Return the constraint without the perturbation, whose errors add up where several kernels meet."""
    build, effective = CASES[name]
    return build() if "Clip" in name else build(perturbation=0), effective


def loss_of(x, y, kernel):
    """Return the loss of a layer, in TensorFlow."""
    return tf.reduce_mean((tf.tanh(tf.matmul(tf.cast(x, kernel.dtype), kernel)) - tf.cast(y, kernel.dtype)) ** 2)


def truth_of(effective, x=X, y=Y):
    """Return the same loss in float64, of the kernel's constrained value."""
    return lambda w: np.mean((np.tanh(x @ effective(w)) - y) ** 2)


def differences(function, kernel, step=1e-5):
    """Return the derivative of `function` by central differences."""
    result = np.zeros_like(kernel)
    for place in np.ndindex(kernel.shape):
        shift = np.zeros_like(kernel)
        shift[place] = step
        result[place] = (function(kernel + shift) - function(kernel - shift)) / (2 * step)
    return result


def assert_gradient(got, truth):
    assert np.linalg.norm(got - truth) <= 1e-3 * np.linalg.norm(truth)  # W1


@pytest.fixture(autouse=True)
def _seed():
    tf.random.set_seed(7)


@contextmanager
def graph():
    with tf.Graph().as_default():
        v1.set_random_seed(7)
        yield


def variable(name="w", kernel=KERNEL, dtype=tf.float32):
    return v1.get_variable(name, initializer=tf.constant(kernel, dtype))


def named_vectors():
    return [v for v in v1.global_variables() if re.search(r"/u(_\d+)?:0$", v.name)]


def in_a_graph(constraint, dtype):
    with graph():
        w = variable(dtype=dtype)
        gradient = tf.gradients(loss_of(X, Y, constraint(w)), w)[0]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(10):  # evaluations, that move u to rest
                result = session.run(gradient)
    return result


def eagerly(constraint, dtype, wrap=lambda function: function):
    w = tf.Variable(KERNEL, dtype=dtype)

    @wrap
    def gradient():
        with tf.GradientTape() as tape:
            loss = loss_of(X, Y, constraint(w))
        return tape.gradient(loss, w)

    for _ in range(10):
        result = gradient()
    return result.numpy()


MODES = {
    "graph": in_a_graph,
    "eager": eagerly,
    "function": lambda constraint, dtype: eagerly(constraint, dtype, tf.function),
}


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_constrained_kernel_by_finite_differences(name, mode, dtype):
    build, effective = CASES[name]
    assert_gradient(MODES[mode](build(), dtype), differences(truth_of(effective), KERNEL))


def test_inside_the_ball_kernel_and_gradient_are_those_of_the_variable_itself():
    with graph():
        w = variable()
        constrained = [opnorm.tf1.MaxSpectralNorm(9.0)(w), opnorm.tf1.SpectralClip(9.0)(w)]
        gradients = [tf.gradients(loss_of(X, Y, kernel), w)[0] for kernel in [w, *constrained]]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            free, *bounded = session.run(gradients)
            for kernel in session.run(constrained):
                np.testing.assert_array_equal(kernel, KERNEL.astype("float32"))
    for gradient in bounded:
        np.testing.assert_allclose(gradient, free, rtol=1e-5, atol=1e-7)  # float32, terms of zero among the sums


@pytest.mark.parametrize("name", CASES)
def test_a_second_call_in_one_graph_shares_u_and_both_gradients_count(name):
    constraint, effective = unperturbed(name)
    real, fake = X, gaussian(9, 6, seed=3)
    with graph():
        w = variable()
        loss = loss_of(real, Y, constraint(w)) - loss_of(fake, Y, constraint(w))
        gradient = tf.gradients(loss, w)[0]
        assert len(named_vectors()) == (0 if "Clip" in name else 1)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(10):
                result = session.run(gradient)
    on_real, on_fake = truth_of(effective), truth_of(effective, fake)
    assert_gradient(result, differences(lambda k: on_real(k) - on_fake(k), KERNEL))


def test_a_second_call_in_a_reused_scope_shares_u():
    constraint = opnorm.tf1.SpectralNorm()
    with graph():
        kernels = []
        for _ in ("real", "fake"):
            with v1.variable_scope("critic", reuse=v1.AUTO_REUSE):
                kernels.append(constraint(variable()))
        (u,) = named_vectors()
        assert u.name == "critic/w/u:0"
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for kernel in session.run(kernels):
                assert sigma(kernel) == pytest.approx(1, rel=1e-2)  # C22


def test_every_run_of_the_session_moves_u_until_sigma_is_found():
    kernel = gaussian(48, 32)
    with graph():
        w = variable(kernel=kernel)
        constrained = opnorm.tf1.SpectralNorm(2.0, warmup_iterations=0, seed=1)(w)  # one iteration a run
        (u,) = named_vectors()
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            vectors, norms = [session.run(u)], []
            for _ in range(60):
                norms.append(sigma(session.run(constrained)))
                vectors.append(session.run(u))
            np.testing.assert_array_equal(session.run(w), kernel.astype("float32"))  # the variable stays free
    assert norms[0] > 2.4  # one iteration from a random vector: far from the norm yet
    moved = [np.abs(new - old).max() for old, new in itertools.pairwise(vectors)]
    assert min(moved[:10]) > 1e-3
    assert norms[-1] == pytest.approx(2, rel=1e-2)  # C22
    left = np.linalg.svd(kernel)[2][0]
    assert abs(left @ vectors[-1]) == pytest.approx(1, abs=1e-2)  # u is the leading singular vector


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_critic_of_two_layers_trains_inside_the_ball(name):
    x = np.float32(X)
    with graph():
        constraint = CONSTRAINTS[name]()
        kernels = []
        for shape, layer in (((6, 32), "hidden"), ((32, 1), "last")):
            with v1.variable_scope(layer):
                kernels.append(constraint(variable(kernel=gaussian(*shape))))
        real, fake = tf.constant(x + 1), tf.constant(x[::-1] - 1)

        def critic(inputs):
            return tf.matmul(tf.nn.leaky_relu(tf.matmul(inputs, kernels[0])), kernels[1])

        loss = tf.reduce_mean(critic(fake)) - tf.reduce_mean(critic(real))
        update = v1.train.AdamOptimizer(1e-2).minimize(loss)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            before = session.run(loss)
            for _ in range(30):
                session.run(update)
            after, *effective = session.run([loss, *kernels])
    assert after < before - 0.5  # it learns to tell them apart
    assert max(map(sigma, effective)) <= 1 + 1e-2  # C22
    if name != "MaxSpectralNorm":  # the gradient through a cap may lead inside; the others started outside
        assert min(map(sigma, effective)) >= 1 - 1e-2


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_zero_kernel_has_a_finite_gradient(name):
    with graph():
        w = variable(kernel=np.zeros((6, 4)))
        constrained = CONSTRAINTS[name]()(w)
        gradient = tf.gradients(loss_of(X, Y, constrained), w)[0]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            kernel, slope = session.run([constrained, gradient])
    np.testing.assert_array_equal(kernel, np.zeros((6, 4)))
    assert np.isfinite(slope).all()


def penalty_in_float64(first, last):
    """Return mean((|df/dx| - 1)^2) of f(x) = tanh(x A) b, by hand."""
    slopes = (1 - np.tanh(X @ first) ** 2) * last[:, 0] @ first.T
    return np.mean((np.linalg.norm(slopes, axis=1) - 1) ** 2)


@pytest.mark.parametrize("name", ["SpectralNorm", "MaxSpectralNorm outside", "SpectralClip outside"])
def test_a_gradient_penalty_goes_back_twice(name):
    constraint, effective = unperturbed(name)
    last = 3 * gaussian(4, 1, seed=5)
    with graph():
        variables = [variable("first"), variable("last", last)]
        kernels = [constraint(w) for w in variables]
        inputs = tf.constant(X, tf.float32)
        scores = tf.matmul(tf.tanh(tf.matmul(inputs, kernels[0])), kernels[1])
        slopes = tf.gradients(scores, inputs)[0]
        penalty = tf.reduce_mean((tf.norm(slopes, axis=1) - 1) ** 2)
        gradients = tf.gradients(penalty, variables)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(10):
                result = session.run(gradients)
    assert_gradient(result[0], differences(lambda k: penalty_in_float64(effective(k), effective(last)), KERNEL))
    truth = differences(lambda k: penalty_in_float64(effective(KERNEL), effective(k)), last)
    # The norm of one column is fixed: what is left is at most the rounding of a gradient that the projection took away.
    assert np.linalg.norm(result[1] - truth) <= 1e-3 * max(1.0, np.linalg.norm(truth))


@pytest.mark.parametrize("name", CASES)
def test_the_derivative_of_the_gradient_itself_is_finite(name):
    with graph():
        w = variable()
        slope = tf.gradients(loss_of(X, Y, CASES[name][0]()(w)), w)[0]
        second = tf.gradients(tf.reduce_sum(slope**2), w)[0]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            result = session.run(second)
    assert np.isfinite(result).all()
    assert np.abs(result).max() > 0
