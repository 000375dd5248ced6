"""Single kernels, in eager mode: cold starts, extremes of range and shape, arguments; truth is a float64 SVD."""

import copy
import json
import pickle

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import opnorm

ROUNDING = 1e-5  # float32 sums of a few dozen terms


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def sigma(kernel):
    kernel = np.asarray(kernel, "float64")
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def apply(constraint, kernel, times=1):
    """Do what an optimizer does, on a variable; return it."""
    variable = kernel if isinstance(kernel, tf.Variable) else tf.Variable(kernel)
    for _ in range(times):
        variable.assign(constraint(variable))
    return variable


def with_u(kernel, u, **arguments):
    """Return a variable whose `u`, made by a first call, has been overwritten."""
    variable = tf.Variable(kernel)
    constraint = opnorm.tf1.SpectralNorm(**arguments)
    constraint(variable)
    (vector,) = vectors(constraint)
    vector.assign(np.asarray(u, "float32"))
    return constraint, variable, vector


def vectors(constraint):
    """Return the vectors that a checkpoint of the constraint holds."""
    return [value for name, value in sorted(vars(constraint).items()) if isinstance(value, tf.Variable)]


@pytest.mark.parametrize(("seed", "wrap"), [(0, tf.Variable), (1, tf.Variable), (2, tf.constant), (3, np.asarray)])
def test_the_first_call_ever_is_within_two_percent_on_a_gaussian_kernel(seed, wrap):
    kernel = opnorm.tf1.SpectralNorm(0.95)(wrap(gaussian(512, 512, seed=seed)))
    assert 0.95 * (1 - ROUNDING) < sigma(kernel) <= 0.95 * 1.02  # C5


def test_without_warmup_one_iteration_is_far_from_the_norm():
    kernel = opnorm.tf1.SpectralNorm(warmup_iterations=0)(tf.constant(gaussian(512, 512)))
    assert sigma(kernel) > 1.2  # what the warm-up is for: from a random vector, one iteration gives 1.39 to 1.45


@pytest.mark.parametrize(
    ("kernel", "u"),
    [
        (np.diag([3.0, 1.0]), [0.0, 1.0]),
        (np.block([[gaussian(6, 6), np.zeros((6, 6))], [np.zeros((6, 6)), 5 * gaussian(6, 6)]]), [1.0] + [0.0] * 11),
        (np.vstack([np.zeros((3, 4)), np.diag([1.0, 2.0, 3.0, 4.0])]), [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_an_orthogonal_start_is_left_within_thirty_updates(kernel, u):
    constraint, variable, _ = with_u(kernel.astype("float32"), u)
    apply(constraint, variable, times=30)
    np.testing.assert_allclose(sigma(variable), 1, rtol=1e-2)  # C22


def test_without_a_perturbation_an_orthogonal_start_stays():
    constraint, variable, vector = with_u(np.diag([3.0, 1.0]).astype("float32"), [0.0, 1.0], perturbation=0)
    apply(constraint, variable, times=30)
    np.testing.assert_array_equal(vector, [0.0, 1.0])


def test_nearly_repeated_singular_values_are_no_obstacle():
    left, _ = np.linalg.qr(gaussian(64, 64).astype("float64"))
    right, _ = np.linalg.qr(gaussian(64, 64, seed=1).astype("float64"))
    values = np.r_[1.0, 0.999, np.full(62, 0.5)]
    kernel = opnorm.tf1.SpectralNorm()(tf.constant((left * values) @ right, tf.float32))
    assert sigma(kernel) <= 1.01  # C7


def test_a_small_kernel_is_scaled_up():
    assert sigma(opnorm.tf1.SpectralNorm(5.0)(tf.constant(0.01 * gaussian(8, 4)))) == pytest.approx(5, rel=1e-2)  # C22


def test_a_zero_kernel_stays_zero_and_is_constrained_once_it_is_not():
    constraint = opnorm.tf1.SpectralNorm()
    variable = apply(constraint, np.zeros((6, 4), "float32"), times=3)
    np.testing.assert_array_equal(variable, np.zeros((6, 4)))
    np.testing.assert_allclose(np.linalg.norm(vectors(constraint)[0]), 1, rtol=ROUNDING)
    variable.assign(gaussian(6, 4))
    np.testing.assert_allclose(sigma(apply(constraint, variable)), 1, rtol=1e-2)  # C22


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_kernel_that_is_not_finite_does_not_poison_u(bad):
    constraint = opnorm.tf1.SpectralNorm()
    variable = apply(constraint, gaussian(6, 4))
    before = vectors(constraint)[0].numpy()
    variable[0, 0].assign(bad)
    apply(constraint, variable)
    assert not np.isfinite(variable.numpy()).all()  # reported, not hidden
    np.testing.assert_array_equal(vectors(constraint)[0], before)
    variable.assign(gaussian(6, 4))
    np.testing.assert_allclose(sigma(apply(constraint, variable)), 1, rtol=1e-2)  # C22


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_kernels_near_the_ends_of_float32_are_brought_to_the_target(factor):
    kernel = apply(opnorm.tf1.SpectralNorm(), gaussian(32, 16) * np.float32(factor), times=5)
    np.testing.assert_allclose(sigma(kernel), 1, rtol=1e-2)  # C22


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (7,), (3, 3, 4, 5)])
def test_vectors_and_convolutions_are_matrices_too(shape):
    kernel = apply(opnorm.tf1.SpectralNorm(2.0), gaussian(*shape), times=5)
    np.testing.assert_allclose(sigma(kernel), 2, rtol=1e-2)  # C22


def test_a_kernel_of_rank_one_is_exact_at_once():
    kernel = opnorm.tf1.SpectralNorm()(tf.constant(np.outer(gaussian(9), gaussian(5, seed=1))))
    np.testing.assert_allclose(sigma(kernel), 1, rtol=ROUNDING)


def test_several_output_axes_form_the_columns():
    kernel = opnorm.tf1.SpectralNorm(axis=(0, -1))(tf.constant(gaussian(3, 4, 5)))
    np.testing.assert_allclose(sigma(np.moveaxis(kernel, 1, 0).reshape(4, 15)), 1, rtol=1e-2)  # C22


@pytest.mark.parametrize(
    ("dtype", "state", "rounding"),
    # the kernel's own unit roundoff, twice, on top of the 1 % of C22
    [("float16", "float32", 2e-3), ("bfloat16", "float32", 2e-2), ("float64", "float64", 0)],
)
def test_half_precision_kernels_of_any_size_keep_u_in_float32(dtype, state, rounding):
    constraint = opnorm.tf1.SpectralNorm()
    variable = apply(constraint, tf.Variable(tf.cast(100 * gaussian(256, 64), dtype)), times=5)
    assert variable.dtype == dtype
    assert vectors(constraint)[0].dtype == state
    np.testing.assert_allclose(sigma(tf.cast(variable, "float64")), 1, rtol=1e-2 + rounding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": -1}, r"`value` must be a positive finite number. Received: value=-1"),
        ({"value": 0}, r"`value` .* Received: value=0"),
        ({"value": float("nan")}, r"`value` .* Received: value=nan"),
        ({"value": float("inf")}, r"`value` .* Received: value=inf"),
        ({"value": "1"}, r"`value` .* Received: value='1'"),
        ({"power_iterations": 0}, r"`power_iterations` must be an integer >= 1. Received: power_iterations=0"),
        ({"power_iterations": 1.5}, r"`power_iterations` .* Received: power_iterations=1.5"),
        ({"warmup_iterations": -1}, r"`warmup_iterations` .* Received: warmup_iterations=-1"),
        ({"tolerance": 0.0}, r"`tolerance` .* Received: tolerance=0.0"),
        ({"seed": -1}, r"`seed` .* Received: seed=-1"),
        ({"perturbation": -1e-3}, r"`perturbation` .* Received: perturbation=-0.001"),
    ],
)
def test_errors_name_the_argument_and_the_value_received(arguments, message):
    with pytest.raises(ValueError, match=message):
        opnorm.tf1.SpectralNorm(**arguments)


def test_a_class_that_was_not_called_and_a_layer_that_is_no_kernel_are_told_from_others():
    for kind in opnorm.tf1.SpectralNorm, opnorm.tf1.MaxSpectralNorm, opnorm.tf1.SpectralClip:
        with pytest.raises(ValueError, match=r"make the constraint first, as `SpectralNorm\(\)`.*Received: .*Variable"):
            kind(tf.Variable(gaussian(3, 4)))  # as an optimizer calls the class
        with pytest.raises(ValueError, match=r"`w` must be a variable or tensor; a layer takes `kernel_constraint=`"):
            kind()(tf_keras.layers.Dense(3))


def test_an_argument_of_another_package_s_name_is_told_from_those_there_are():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'iterations'; it takes value, axis, power_iter"):
        opnorm.tf1.SpectralNorm(iterations=1)


def test_the_norm_of_a_variable_in_a_graph_is_that_of_its_value():
    with (
        tf.Graph().as_default(),
        pytest.raises(ValueError, match=r"of a TF1 graph what `session\.run` ret"),
    ):
        opnorm.spectral_norm(tf.compat.v1.get_variable("w", [3, 4]))


@pytest.mark.parametrize("axis", [2, -3, (0, -2)])
def test_axes_that_the_kernel_does_not_have_are_refused(axis):
    with pytest.raises(ValueError, match=r"`axis` must be one or more axes .* \[3, 4\]"):
        opnorm.tf1.SpectralNorm(axis=axis)(tf.constant(gaussian(3, 4)))


def test_a_config_is_json_and_copies_behave_the_same_without_the_vectors():
    arguments = {"value": 2.0, "axis": [0, -1], "power_iterations": 2, "warmup_iterations": 3}
    arguments |= {"tolerance": 1e-3, "perturbation": 0.01, "seed": 5}
    constraint = opnorm.tf1.SpectralNorm(**arguments)
    apply(constraint, gaussian(3, 4, 5))
    config = json.loads(json.dumps(constraint.get_config()))
    assert config == arguments
    fresh = opnorm.tf1.SpectralNorm(**arguments)(tf.constant(gaussian(3, 4, 5)))
    for other in (
        type(constraint).from_config(config),
        copy.deepcopy(constraint),
        pickle.loads(pickle.dumps(constraint)),
    ):
        assert other.get_config() == config
        assert vectors(other) == []
        np.testing.assert_array_equal(other(tf.constant(gaussian(3, 4, 5))), fresh)


def test_it_is_a_tf_keras_constraint_registered_under_the_package_name():
    constraint = opnorm.tf1.SpectralNorm(3.0)
    assert isinstance(constraint, tf_keras.constraints.Constraint)
    assert tf_keras.utils.get_registered_name(type(constraint)) == "opnorm>SpectralNorm"
    again = tf_keras.constraints.deserialize(tf_keras.constraints.serialize(constraint))
    assert again.get_config() == constraint.get_config()
