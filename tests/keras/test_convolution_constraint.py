"""`operator="convolution"`: the norm of the sliding operator, against explicit matrices and certificates."""

import json

import keras
import numpy as np
import pytest
from cases import gaussian, op_by_op, repeated
from dense import array, matrix_of
from keras import layers

import opnorm
from opnorm.iterations.frequencies import grid_factor


def true_norm(layer, input_shape):
    return np.linalg.svd(matrix_of(layer, input_shape), compute_uv=False)[0]


def sliding(**options):
    return opnorm.SpectralNorm(operator="convolution", seed=3, **options)


def clipping(**options):
    return opnorm.SpectralClip(0.7, operator="convolution", **options)


def bracket(kernel, strides=1, groups=1):
    return opnorm.spectral_norm(opnorm.Convolution(array(kernel), strides=strides, groups=groups), tolerance=1e-3)


FITTED = {
    "1-D": (layers.Conv1D, 1, {}, (16, 3)),
    "1-D strided, causal": (layers.Conv1D, 2, {"padding": "causal"}, (17, 3)),
    "1-D dilated": (layers.Conv1D, 1, {"dilation_rate": 2, "padding": "same"}, (16, 3)),
    "2-D": (layers.Conv2D, 1, {"padding": "same"}, (8, 8, 2)),
    "2-D strided": (layers.Conv2D, 2, {"padding": "same"}, (9, 9, 3)),
    "2-D strided unevenly": (layers.Conv2D, (2, 1), {}, (9, 7, 2)),
    "2-D grouped": (layers.Conv2D, 1, {"padding": "same", "groups": 2}, (8, 8, 4)),
    "3-D": (layers.Conv3D, 1, {"padding": "same"}, (5, 5, 5, 1)),
    "3-D strided": (layers.Conv3D, 2, {"padding": "same"}, (6, 6, 6, 2)),
}


@pytest.mark.parametrize("name", FITTED)
def test_the_layers_explicit_matrix_keeps_the_norm_in_fit(name):
    build, strides, options, shape = FITTED[name]
    constraint = sliding(strides=strides, groups=options.get("groups", 1))
    layer = build(4, 3, strides=strides, kernel_constraint=constraint, **options)
    model = keras.Sequential([keras.Input(shape), layer, layers.Flatten(), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    rng = np.random.default_rng(0)
    before = array(layer.kernel)
    model.fit(rng.standard_normal((48, *shape)), rng.standard_normal((48, 1)), batch_size=8, epochs=2, verbose=0)
    layer.bias.assign(np.zeros(4))
    assert not np.allclose(before, array(layer.kernel), rtol=1e-2)
    certified = bracket(layer.kernel, strides, options.get("groups", 1))
    assert true_norm(layer, shape) <= 1 + 1e-2  # case T7
    assert certified.upper >= 1 - 1e-3  # equality: sigma is from below, so the norm is not below the target
    assert certified.lower <= 1 + 1e-2


COMPILED = {"tensorflow": [False, True], "jax": [True], "torch": [False]}[keras.backend.backend()]


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_holds_the_norm_in_fit_however_it_is_compiled(policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    built = sliding(value=0.7), clipping()
    convolutions = [layers.Conv1D(4, 3, kernel_constraint=constraint) for constraint in built]
    model = keras.Sequential([keras.Input((16, 4)), *convolutions, layers.Flatten(), layers.Dense(1)])
    for layer in convolutions:
        layer.kernel.assign(3 * layer.kernel.value)
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=jit_compile)
    model.fit(gaussian(48, 16, 4), gaussian(48, 1), batch_size=8, epochs=2, verbose=0)
    for layer in convolutions:
        assert array(layer.kernel).dtype == np.float32
        assert bracket(layer.kernel).lower <= 0.7 * (1 + 1e-2)  # case T7
    assert bracket(convolutions[0].kernel).upper >= 0.7 * (1 - 1e-3)  # equality, as above
    assert bracket(convolutions[1].kernel).upper >= 0.7 * 0.95  # it is clipped to 0.99, and steps of 1e-3 may shrink it


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2])
def test_transposed_convolution_holds_the_norm_of_its_explicit_matrix(strides, padding):
    layer = layers.Conv2DTranspose(3, 3, strides, padding, use_bias=False)
    layer.build((None, 9, 9, 2))
    for constraint in (sliding(value=0.7, strides=strides), clipping(strides=strides)):
        layer.kernel.assign(gaussian(3, 3, 3, 2))
        layer.kernel.assign(op_by_op(constraint.project)(layer.kernel))
        norm = true_norm(layer, (9, 9, 2))
        assert 0.7 * 0.9 <= norm <= 0.7 * (1 + 1e-2)  # an image of nine pixels loses some percent at its border


CERTIFIED = {
    "even": (gaussian(2, 2, 3, 5), 1, 1),
    "odd": (gaussian(3, 3, 8, 8), 1, 1),
    "five": (gaussian(5, 5, 2, 3), 1, 1),
    "one_by_three": (gaussian(1, 3, 6, 4), 1, 1),
    "strided": (gaussian(3, 3, 4, 8), 2, 1),
    "strided_beyond_the_size": (gaussian(2, 4, 3), 3, 1),
    "grouped": (gaussian(3, 3, 3, 8), 1, 2),
    "depthwise_as_groups": (gaussian(3, 3, 1, 6), 1, 6),
    "one_channel": (gaussian(4, 1, 1), 1, 1),
    "volume": (gaussian(2, 3, 2, 2, 3), (1, 2, 1), 1),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_projected_kernel_has_the_target_norm_by_the_certificate(name):
    kernel, strides, groups = CERTIFIED[name]
    constraint = sliding(value=0.7, strides=strides, groups=groups)
    certified = bracket(op_by_op(constraint.project)(kernel), strides, groups)
    assert certified.upper >= 0.7 * (1 - 1e-4)  # sigma is from below, up to float32 and the perturbation
    assert certified.lower <= 0.7 * (1 + 4e-3)  # the climb's steps are 0.3 % apart


@pytest.mark.parametrize("name", CERTIFIED)
def test_converged_search_bounds_the_norm_by_the_grids_factor(name):
    kernel, strides, groups = CERTIFIED[name]
    constraint = sliding(value=0.7, strides=strides, groups=groups, tolerance=2e-7, warmup_iterations=300)
    result, _ = constraint.update(kernel, constraint.initial_state(kernel))
    proved = 0.7 * grid_factor(kernel.shape[:-2], strides)
    assert bracket(result, strides, groups).lower <= proved * (1 + 1e-6)  # float32


def test_peak_between_the_points_of_the_grid_is_found():
    # Two taps, the identity and a rotation by an angle a: the norm is 2 at the frequencies a and -a, less elsewhere.
    for angle in (np.pi / 6, 0.4, 1.3):
        c, s = np.cos(angle), np.sin(angle)
        kernel = np.array([[[1, 0], [0, 1]], [[c, -s], [s, c]]], "float32")
        result = array(sliding().project(kernel))
        np.testing.assert_allclose(2 * result[0, 0, 0], 1, rtol=4e-3)  # 3.5 % on the grid alone


def test_one_by_one_convolution_is_the_matrix():
    kernel = gaussian(1, 1, 6, 4)
    truth = kernel / np.linalg.svd(kernel.reshape(6, 4).astype("float64"), compute_uv=False)[0]
    np.testing.assert_allclose(array(sliding().project(kernel)), truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strides", [1, 2])
def test_first_update_from_a_cold_start_is_within_two_percent(strides):
    kernel = gaussian(3, 3, 24, 32)
    constraint = sliding(strides=strides)
    result, _ = repeated(constraint, kernel, constraint.initial_state(kernel), 1)
    assert bracket(result, strides).lower <= 1.02  # as case C5


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_range_of_float32_is_covered(scale):
    kernel = gaussian(3, 3, 4, 4)
    result, _ = repeated(sliding(), np.float32(scale) * kernel, sliding().initial_state(kernel), 20)
    expected, _ = repeated(sliding(), kernel, sliding().initial_state(kernel), 20)
    np.testing.assert_allclose(array(result), array(expected), rtol=1e-3, atol=1e-5)


def test_zero_kernel_stays_zero_and_is_constrained_once_nonzero():
    kernel = gaussian(3, 3, 4, 4)
    result, state = repeated(sliding(), 0 * kernel, sliding().initial_state(kernel), 2)
    assert not array(result).any()
    np.testing.assert_allclose(np.linalg.norm(array(state), axis=-1), 1, rtol=1e-5)
    result, _ = repeated(sliding(), kernel, state, 2)
    assert bracket(result).lower <= 1 + 1e-2


def test_nan_kernel_does_not_poison_the_vectors():
    kernel = gaussian(3, 3, 4, 4)
    _, state = repeated(sliding(), np.nan * kernel, sliding().initial_state(kernel), 1)
    assert np.isfinite(array(state)).all()


def test_cap_leaves_a_kernel_inside_the_ball_bit_identical_and_stops_one_outside():
    constraint = opnorm.MaxSpectralNorm(operator="convolution", seed=3)
    kernel = gaussian(3, 3, 4, 4)
    inside = kernel / np.float32(1.1 * bracket(kernel).upper)
    np.testing.assert_array_equal(array(op_by_op(constraint.project)(inside)), inside)
    assert bracket(op_by_op(constraint.project)(kernel)).lower <= 1 + 4e-3  # as above


def test_half_precision_kernel_is_constrained():
    kernel = keras.ops.cast(100 * gaussian(3, 3, 4, 4), "bfloat16")
    result, state = repeated(sliding(), kernel, sliding().initial_state(kernel), 3)
    assert keras.backend.standardize_dtype(state.dtype) == "float32"
    assert bracket(keras.ops.cast(result, "float32")).lower <= 1 + 2e-2  # bfloat16 rounds entries by 0.4 %


def test_state_is_saved_with_the_optimizer(tmp_path):
    layer = layers.Conv2D(4, 3, kernel_constraint=sliding(strides=2), strides=2)
    model = keras.Sequential([keras.Input((8, 8, 2)), layer, layers.Flatten(), layers.Dense(1)])
    model.compile("adam", "mse")
    x, y = gaussian(16, 8, 8, 2), gaussian(16, 1)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(array(loaded.layers[0].kernel), array(layer.kernel), rtol=0, atol=1e-6)  # case C11
    states = [[array(v) for v in m.optimizer.variables if v.name.endswith("_u")] for m in (model, loaded)]
    assert states[0][0].shape == (1, 20, 8)  # 6 x 6 frequencies by symmetry 20; 4 complex entries
    np.testing.assert_allclose(states[0][0], states[1][0], atol=1e-5)


def test_config_survives_json():
    for build in (opnorm.SpectralNorm, opnorm.MaxSpectralNorm):
        constraint = build(0.9, operator="convolution", strides=(2, 1), groups=2)
        again = build.from_config(json.loads(json.dumps(constraint.get_config())))
        assert again.get_config() == constraint.get_config()
        assert (again.operator, again.strides, again.groups) == ("convolution", (2, 1), 2)


@pytest.mark.parametrize("value", [0, -1, 1.5, (2, 0), "two", ()], ids=repr)
def test_wrong_strides_are_refused(value):
    with pytest.raises(ValueError, match=r"Argument `strides` must be .*\. Received: strides="):
        sliding(strides=value)


def test_unknown_operator_and_other_axes_are_refused():
    with pytest.raises(ValueError, match=r"Argument `operator` must be .*\. Received: operator='sliding'$"):
        opnorm.SpectralNorm(operator="sliding")
    with pytest.raises(ValueError, match=r"Argument `axis` must be -1 .*\. Received: axis=0$"):
        sliding(axis=0)


@pytest.mark.parametrize(
    ("options", "shape", "name"),
    [({}, (6, 8), "operator"), ({"strides": (2, 2)}, (3, 4, 8), "strides"), ({"groups": 3}, (3, 4, 8), "groups")],
)
def test_kernel_that_does_not_fit_is_refused(options, shape, name):
    constraint = sliding(**options)
    for use in (constraint.initial_state, constraint.project):
        with pytest.raises(ValueError, match=rf"Argument `{name}` must .*\. Received: {name}="):
            use(gaussian(*shape))
