"""Graph code, against the float64 singular values of each kernel as the session returns it."""

import gc
import itertools
import re
import weakref

import numpy as np
import pytest
import tensorflow as tf

import opnorm

v1 = tf.compat.v1
DATA = np.random.default_rng(0).standard_normal((64, 20)).astype("float32")
SUM_OF_ROUNDING = 1e-5  # float32 sums of some dozen terms, a few units in the last place each


def sigma(kernel, axis=-1):
    kernel = np.moveaxis(np.asarray(kernel, "float64"), axis, -1)
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def dense_layers(widths, constraint):
    hidden = v1.placeholder(tf.float32, [None, 20], name="inputs")
    for width in widths:
        hidden = v1.layers.dense(hidden, width, activation=tf.nn.relu, kernel_constraint=constraint)
    return tf.reduce_mean((hidden - 1.0) ** 2)


def named(ending):
    """Return the global variables of that name, with those that TensorFlow numbered because the name was taken."""
    return [v for v in v1.global_variables() if re.search(rf"{ending}(_\d+)?:0$", v.name)]


@pytest.fixture(autouse=True)
def graph():
    with tf.Graph().as_default() as graph:
        v1.set_random_seed(7)
        yield graph


def train(session, operations, steps):
    for operation in itertools.islice(itertools.cycle(operations), steps):
        session.run(operation, {"inputs:0": DATA})


@pytest.mark.parametrize("widths", [(32, 16, 8), (32, 32, 32)])
@pytest.mark.parametrize("value", [1.0, 0.1, 5.0])
def test_layers_made_in_a_loop_with_one_shared_object_all_reach_the_target(widths, value):
    loss = dense_layers(widths, opnorm.tf1.SpectralNorm(value))
    update = v1.train.AdamOptimizer(1e-2).minimize(loss)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        before = session.run(named("/u"))
        train(session, [update], 50)
        after = session.run(named("/u"))
        sigmas = [sigma(k) for k in session.run(named("kernel"))]
    assert [u.shape for u in after] == [(width,) for width in widths]
    assert all(np.abs(old - new).max() > 1e-3 for old, new in zip(before, after, strict=True))  # u has moved visibly
    np.testing.assert_allclose(sigmas, value, rtol=1e-2)  # C22


@pytest.mark.parametrize("widths", [(32, 16, 8), (32, 32, 32)])
def test_two_optimizers_on_the_same_kernels_share_one_u_per_kernel(widths):
    loss = dense_layers(widths, opnorm.tf1.SpectralNorm())
    updates = [
        v1.train.AdamOptimizer(1e-2).minimize(loss),
        v1.train.MomentumOptimizer(1e-2, 0.9).minimize(loss),
    ]
    assert [u.shape.as_list() for u in named("/u")] == [[width] for width in widths]
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for turn in range(2):
            train(session, updates[turn:] + updates[:turn], 25)
            np.testing.assert_allclose([sigma(k) for k in session.run(named("kernel"))], 1, rtol=1e-2)


def test_a_gan_applies_the_constraint_from_both_of_its_optimizers():
    constraint = opnorm.tf1.SpectralNorm()

    def critic(x):
        with v1.variable_scope("critic", reuse=v1.AUTO_REUSE):
            for i, width in enumerate((32, 32, 1)):
                x = v1.layers.dense(x, width, activation=tf.nn.leaky_relu, kernel_constraint=constraint, name=f"d{i}")
        return x

    with v1.variable_scope("generator"):
        fake = v1.layers.dense(v1.random_normal([64, 4]), 20, kernel_constraint=constraint)
    gap = tf.reduce_mean(critic(fake)) - tf.reduce_mean(critic(v1.placeholder(tf.float32, [None, 20], name="inputs")))
    critic_step = v1.train.AdamOptimizer(1e-3).minimize(gap, var_list=v1.trainable_variables("critic"))
    generator_step = v1.train.AdamOptimizer(1e-3).minimize(-gap)  # all variables: both optimizers constrain the critic
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        train(session, [critic_step, generator_step], 50)
        kernels = session.run(named("kernel"))
    assert len(kernels) == len(named("/u")) == 4
    np.testing.assert_allclose([sigma(k) for k in kernels], 1, rtol=1e-2)


@pytest.mark.parametrize("reuse", [None, True, v1.AUTO_REUSE])
def test_variable_scopes_and_reuse_in_force_at_minimize_make_no_difference(reuse):
    constraint = opnorm.tf1.SpectralNorm()
    losses = []
    for name in ("one", "two"):
        with v1.variable_scope(name):
            losses.append(tf.reduce_sum(v1.layers.dense(tf.ones([1, 3]), 3, name="same", kernel_constraint=constraint)))
    with v1.variable_scope("one", reuse=reuse), tf.name_scope("anything"):
        update = [v1.train.GradientDescentOptimizer(0.1).minimize(loss) for loss in losses]
    assert [u.op.name for u in named("/u")] == ["one/same/kernel/u", "two/same/kernel/u"]
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(update)
        np.testing.assert_allclose([sigma(k) for k in session.run(named("kernel"))], 1, rtol=1e-2)  # as C22


def test_u_is_a_global_variable_and_not_a_trainable_one():
    v1.train.GradientDescentOptimizer(0.1).minimize(dense_layers((4,), opnorm.tf1.SpectralNorm()))
    (u,) = named("/u")
    assert u.name == "dense/kernel/u:0"
    assert u in v1.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
    assert [v.name for v in v1.trainable_variables()] == ["dense/kernel:0", "dense/bias:0"]


def test_a_saver_restores_u_and_the_run_goes_on_as_if_uninterrupted(tmp_path):
    def build():
        update = v1.train.AdamOptimizer(1e-2).minimize(dense_layers((32, 32, 32), opnorm.tf1.SpectralNorm()))
        return update, named("kernel"), named("/u"), v1.train.Saver()

    update, kernels, vectors, saver = build()
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        train(session, [update], 20)
        path = saver.save(session, str(tmp_path / "model"))
        saved = session.run(vectors)
        train(session, [update], 5)
        expected = session.run(kernels)
    with tf.Graph().as_default():
        update, kernels, vectors, saver = build()
        with v1.Session() as session:
            saver.restore(session, path)
            for u, restored in zip(saved, session.run(vectors), strict=True):
                np.testing.assert_array_equal(u, restored)
            train(session, [update], 5)
            for kernel, resumed in zip(expected, session.run(kernels), strict=True):
                np.testing.assert_allclose(kernel, resumed, atol=1e-6)  # threads may sum in another order


def test_a_file_without_u_is_restored_and_u_is_warmed_up_again(tmp_path):
    loss = dense_layers((32, 32), opnorm.tf1.SpectralNorm())
    plain = v1.train.Saver()  # before `minimize`: no u yet
    update = v1.train.GradientDescentOptimizer(1e-2).minimize(loss)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        path = plain.save(session, str(tmp_path / "model"))
        train(session, [update], 20)
        plain.restore(session, path)
        train(session, [update], 1)
        np.testing.assert_allclose([sigma(k) for k in session.run(named("kernel"))], 1, rtol=1e-2)


@pytest.mark.parametrize("kind", ["resource", "ref", "cached"])
def test_one_step_is_the_formula_of_the_paper_on_the_kernel_after_its_update(kind):
    constraint = opnorm.tf1.SpectralNorm(warmup_iterations=0, perturbation=0)
    start = np.array([[0.5, 0.0], [0.0, 0.5]], "float32")
    cache = (lambda op: op.device) if kind == "cached" else None  # reads a value from before the update, if asked to
    with v1.variable_scope("", use_resource=kind != "ref", caching_device=cache):
        kernel = v1.get_variable("w", initializer=start, constraint=constraint)
    loss = tf.reduce_sum(kernel * np.array([[-0.5, 0.0], [0.0, -1.5]], "float32"))
    update = v1.train.GradientDescentOptimizer(1.0).minimize(loss)  # makes the kernel diag(1, 2)
    (u,) = named("/u")
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        u.load(np.array([0.03, 0.01], "float32"), session)
        session.run(update)
        got_kernel, got_u = session.run([kernel.read_value(), u])
    expected_sigma = np.hypot(0.03, 4 * 0.01) / np.hypot(0.03, 2 * 0.01)
    np.testing.assert_allclose(got_u, np.array([0.03, 0.04]) / 0.05, rtol=SUM_OF_ROUNDING)
    np.testing.assert_allclose(got_kernel, np.diag([1.0, 2.0]) / expected_sigma, rtol=SUM_OF_ROUNDING)


@pytest.mark.parametrize("factor", [0.5, 2.0, 1e-20])
def test_u_is_a_direction_whatever_its_length(factor):
    kernel = v1.get_variable("w", initializer=DATA, constraint=opnorm.tf1.SpectralNorm(warmup_iterations=0))
    constrained = kernel.constraint(kernel)
    (u,) = named("/u")
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        start = session.run(u)
        expected = session.run(constrained)
        u.load(start * np.float32(factor), session)
        np.testing.assert_allclose(session.run(constrained), expected, rtol=SUM_OF_ROUNDING, atol=1e-7)


def test_convolutions_are_constrained_as_matrices_with_the_output_channels_as_columns():
    images = tf.constant(DATA[:8].reshape(8, 4, 5, 1))
    hidden = v1.layers.conv2d(images, 6, 3, kernel_constraint=opnorm.tf1.SpectralNorm(2.0))
    transposed = opnorm.tf1.SpectralNorm(2.0, axis=-2)
    hidden = v1.layers.conv2d_transpose(hidden, 4, 3, kernel_constraint=transposed)
    update = v1.train.AdamOptimizer(1e-2).minimize(tf.reduce_mean((hidden - 1.0) ** 2))
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        for _ in range(50):
            session.run(update)
        forward, backward = session.run(named("kernel"))
    assert backward.shape == (3, 3, 4, 6)
    np.testing.assert_allclose([sigma(forward), sigma(backward, axis=-2)], 2, rtol=1e-2)


def test_each_kernel_has_its_own_start_and_a_seed_repeats_it():
    def draw(constraint, graph_seed=None):
        with tf.Graph().as_default():
            v1.set_random_seed(graph_seed)
            v1.train.GradientDescentOptimizer(0.1).minimize(dense_layers((32, 32), constraint))
            with v1.Session() as session:
                session.run(v1.global_variables_initializer())
                return session.run(named("/u"))

    first, second = draw(opnorm.tf1.SpectralNorm(seed=3))
    assert abs(first @ second) < 0.9
    np.testing.assert_allclose(np.linalg.norm([first, second], axis=1), 1, rtol=SUM_OF_ROUNDING)
    np.testing.assert_array_equal(draw(opnorm.tf1.SpectralNorm(seed=3)), [first, second])
    np.testing.assert_array_equal(draw(opnorm.tf1.SpectralNorm(), 5), draw(opnorm.tf1.SpectralNorm(), 5))
    assert np.abs(draw(opnorm.tf1.SpectralNorm())[0] - draw(opnorm.tf1.SpectralNorm())[0]).max() > 1e-3
    assert np.abs(draw(opnorm.tf1.SpectralNorm(seed=4))[0] - first).max() > 1e-3


def test_a_constraint_that_lives_on_does_not_keep_a_graph_alive():
    constraint = opnorm.tf1.SpectralNorm()
    with tf.Graph().as_default() as graph:
        v1.train.GradientDescentOptimizer(0.1).minimize(dense_layers((4,), constraint))
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None
