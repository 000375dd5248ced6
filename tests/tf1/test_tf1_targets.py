"""Norms by shape, and singular values with a lower end, in `opnorm.tf1`."""

import json

import numpy as np
import pytest
import tensorflow as tf

import opnorm

KINDS = {
    "SpectralNorm": (lambda: opnorm.tf1.SpectralNorm("0.5 rms"), lambda s, unit: 0.5 * unit * s / s[0]),
    "MaxSpectralNorm": (lambda: opnorm.tf1.MaxSpectralNorm("rms"), lambda s, unit: unit * s / s[0]),
    "SpectralClip": (
        lambda: opnorm.tf1.SpectralClip("rms", min_value="0.8 rms"),
        lambda s, unit: np.clip(s, 0.8 * unit, unit),
    ),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def gaussian(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def with_values(kernel, change):
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    return u * change(s) @ vt


@every_kind
def test_an_update_in_a_graph_is_the_dense_truth_of_the_kernels_own_shape(name):
    make, values = KINDS[name]
    v1, kernel = tf.compat.v1, gaussian(20, 8)
    with tf.Graph().as_default():
        w = v1.get_variable("w", initializer=kernel.astype("float32"), constraint=make())
        update = v1.train.GradientDescentOptimizer(0.0).minimize(tf.reduce_sum(w**2))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(update)
            made = session.run(w)
    unit = (8 / 20) ** 0.5
    np.testing.assert_allclose(made, with_values(kernel, lambda s: values(s, unit)), atol=1e-3 * unit)  # as documented


@every_kind
def test_the_configuration_is_json_and_makes_the_same(name):
    constraint = KINDS[name][0]()
    twin = type(constraint).from_config(json.loads(json.dumps(constraint.get_config())))
    assert repr(twin) == repr(constraint)
    assert "rms'" in repr(twin)


def test_the_gradient_of_both_ends_is_that_of_finite_differences():
    kernel, cotangent = gaussian(6, 4), tf.constant(gaussian(4, 6).T)
    clip = opnorm.tf1.SpectralClip(2.5, min_value=1.5)
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(clip(variable) * cotangent)
    expected = np.zeros_like(kernel)
    for index in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel)
        step[index] = 1e-5
        ends = [with_values(kernel + way * step, lambda s: np.clip(s, 1.5, 2.5)) for way in (1, -1)]
        expected[index] = np.sum((ends[0] - ends[1]) * cotangent.numpy()) / 2e-5
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, atol=1e-6)  # differences of 1e-5


@pytest.mark.parametrize("value", [lambda step: 1.0, "rms rms", 0.0], ids=["a function", "twice a unit", "zero"])
def test_a_function_of_the_step_or_nonsense_is_refused(value):
    for kind in (opnorm.tf1.SpectralNorm, opnorm.tf1.MaxSpectralNorm, opnorm.tf1.SpectralClip):
        with pytest.raises(ValueError, match=r"value` must be a positive finite number.*Received: "):
            kind(value)
