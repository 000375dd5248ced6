"""`SpectralClip(operator="convolution")` ends inside the ball, and moves away from no kernel that is there."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest
from cases import DTYPES, gaussian
from dense import array, matrix_of, norm, with_values
from keras import layers, ops

import opnorm
from opnorm.keras.slots import state_of

BOUND = 0.7
ABOVE = 1e-2  # case T7: sigma is from below, by 0.5 % on 41 of 42 kernels
MARGIN = 1e-2  # singular values are clipped so far below the bound, as documented


def clip(**options):
    return opnorm.SpectralClip(BOUND, operator="convolution", **options)


def bracket(kernel, strides=1, groups=1):
    return opnorm.spectral_norm(opnorm.Convolution(array(kernel), strides=strides, groups=groups), tolerance=1e-3)


def scaled_to(sigma, kernel, strides=1, groups=1):
    return kernel * np.float32(sigma / bracket(kernel, strides, groups).upper)


def projected(constraint, kernel):
    return array(constraint.project(kernel))  # compiled on JAX: op by op its many rounds would take far longer


FITTED = {
    "1-D strided, causal": (layers.Conv1D, 2, {"padding": "causal"}, (17, 3)),
    "2-D": (layers.Conv2D, 1, {"padding": "same"}, (8, 8, 2)),
    "2-D strided": (layers.Conv2D, 2, {"padding": "same"}, (9, 9, 3)),
    "2-D grouped": (layers.Conv2D, 1, {"padding": "same", "groups": 2}, (8, 8, 4)),
    "3-D": (layers.Conv3D, (1, 2, 1), {"padding": "same"}, (5, 5, 5, 1)),
}


@pytest.mark.parametrize("name", FITTED)
def test_the_layers_explicit_matrix_keeps_the_bound_in_fit(name):
    build, strides, options, shape = FITTED[name]
    constraint = clip(strides=strides, groups=options.get("groups", 1))
    layer = build(4, 3, strides=strides, kernel_constraint=constraint, **options)
    model = keras.Sequential([keras.Input(shape), layer, layers.Flatten(), layers.Dense(1)])
    layer.kernel.assign(3 * layer.kernel.value)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(gaussian(48, *shape), gaussian(48, 1), batch_size=8, epochs=2, verbose=0)
    layer.bias.assign(np.zeros(4))
    assert state_of(model.optimizer, layer.kernel) is not None
    assert np.linalg.svd(matrix_of(layer, shape), compute_uv=False)[0] <= BOUND * (1 + ABOVE)  # case T7
    certified = bracket(layer.kernel, strides, constraint.groups)
    assert certified.upper >= BOUND * 0.9  # it started outside, and twelve steps of 1e-3 may also shrink it
    assert certified.lower <= BOUND * (1 + ABOVE)


GEOMETRIES = {
    "even": ((2, 2, 3, 5), 1, 1),
    "odd": ((3, 3, 8, 8), 1, 1),
    "five": ((5, 5, 2, 3), 1, 1),
    "strided": ((3, 3, 4, 8), 2, 1),
    "strided_beyond_the_size": ((2, 4, 3), 3, 1),
    "grouped": ((3, 3, 3, 8), 1, 2),
    "depthwise_as_groups": ((3, 3, 1, 6), 1, 6),
    "volume": ((2, 3, 2, 2, 3), (1, 2, 1), 1),
}


@pytest.fixture(scope="module", params=GEOMETRIES)
def moved(request):
    """Return a kernel at twice the bound, what becomes of it, and its geometry."""
    shape, strides, groups = GEOMETRIES[request.param]
    kernel = scaled_to(2 * BOUND, gaussian(*shape), strides, groups)
    return kernel, projected(clip(strides=strides, groups=groups), kernel), (strides, groups)


def test_result_is_at_the_bound_by_the_certificate(moved):
    _, result, geometry = moved
    certified = bracket(result, *geometry)
    assert certified.lower <= BOUND * (1 + ABOVE)
    assert certified.upper >= BOUND * (1 - MARGIN - 1e-3)  # it went no deeper into the ball; 1e-3: the bracket's width


def test_no_kernel_of_the_ball_is_farther_from_the_result_than_from_the_start(moved):
    kernel, result, geometry = moved
    inside = [gaussian(*kernel.shape, seed=i) for i in range(1, 20)] + [kernel, result, 0 * kernel]
    for other in inside:
        other = other * np.float32((1 - MARGIN) * BOUND / max(bracket(other, *geometry).upper, 1e-30))
        assert np.linalg.norm(result - other) <= np.linalg.norm(kernel - other) * (1 + 1e-6)  # float32


def test_more_is_kept_than_by_scaling(moved):
    kernel, result, geometry = moved
    scaled = kernel * np.float32(BOUND / bracket(kernel, *geometry).upper)
    assert np.linalg.norm(kernel - result) < 0.95 * np.linalg.norm(kernel - scaled)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_kernel_inside_the_ball_is_left_bit_for_bit(name):
    shape, strides, groups = GEOMETRIES[name]
    kernel = scaled_to(0.999 * BOUND, gaussian(*shape), strides, groups)
    constraint = clip(strides=strides, groups=groups)
    updated, _ = constraint.update(kernel, constraint.initial_state(kernel))
    assert np.array_equal(array(updated), kernel)


def test_group_inside_the_ball_is_left_bit_for_bit_beside_one_outside():
    kernel = gaussian(3, 3, 3, 8)
    kernel[..., :4] = scaled_to(0.99 * BOUND, kernel[..., :4])
    kernel[..., 4:] = scaled_to(3 * BOUND, kernel[..., 4:])
    result = projected(clip(groups=2), kernel)
    assert np.array_equal(result[..., :4], kernel[..., :4])
    assert bracket(result[..., 4:]).lower <= BOUND * (1 + ABOVE)


def test_channels_that_do_not_meet_those_outside_stay():
    kernel = np.zeros((3, 3, 7, 9), "float32")
    kernel[:, :, :3, :4] = scaled_to(2 * BOUND, gaussian(3, 3, 3, 4))
    kernel[:, :, 3:, 4:] = scaled_to(0.9 * BOUND, gaussian(3, 3, 4, 5))
    result = projected(clip(), kernel)
    assert bracket(result).lower <= BOUND * (1 + ABOVE)
    assert result[:, :, 3:, 4:] == pytest.approx(kernel[:, :, 3:, 4:], rel=1e-4)  # rounding: nothing was scaled


def test_one_by_one_convolution_is_clipped_like_the_matrix():
    kernel = gaussian(1, 1, 6, 4)
    kernel *= np.float32(2 * BOUND / norm(kernel))
    truth = with_values(kernel, lambda s: np.minimum(s, (1 - MARGIN) * BOUND))
    assert projected(clip(), kernel) == pytest.approx(truth, abs=1e-4 * BOUND)  # what `SpectralClip` documents


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_range_of_float32_is_covered(scale):
    kernel = gaussian(3, 3, 8, 8)
    bound = float(4 * scale)  # the kernel's norm is near 14
    result = projected(opnorm.SpectralClip(bound, operator="convolution"), np.float32(scale) * kernel)
    result = result.astype("float64") / scale
    certified = bracket(result)
    assert certified.lower <= 4 * (1 + ABOVE)
    assert certified.upper >= 4 * (1 - MARGIN - 1e-3)  # 1e-3: the bracket's width
    assert np.linalg.norm(result) > 1.1 * 4 / bracket(kernel).upper * np.linalg.norm(kernel)  # it was not only scaled


def test_norm_far_outside_ends_at_the_bound():
    result = projected(clip(), np.float32(1e30) * gaussian(3, 3, 8, 8))
    certified = bracket(result)
    assert certified.lower <= BOUND * (1 + ABOVE)
    assert certified.upper >= BOUND * (1 - MARGIN - 1e-3)  # as above


def test_zero_kernel_stays_zero_and_is_clipped_once_nonzero():
    kernel = gaussian(3, 3, 8, 8)
    update = clip().update
    result, state = update(0 * kernel, clip().initial_state(kernel))
    assert not array(result).any()
    result, _ = update(kernel, state)
    assert bracket(result).lower <= BOUND * (1 + ABOVE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_kernel_that_is_not_finite_is_left_alone_and_does_not_poison_the_vectors(bad):
    kernel = gaussian(3, 3, 3, 8)
    kernel[0, 1, 2, 3] = bad
    constraint = clip(groups=2)
    result, state = constraint.update(kernel, constraint.initial_state(kernel))
    assert np.array_equal(array(result), kernel, equal_nan=True)
    assert np.isfinite(array(state)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_is_kept_and_the_bound_held(dtype):
    kernel = ops.cast(gaussian(3, 3, 8, 8), dtype)
    result = clip().project(kernel)
    assert result.dtype == kernel.dtype
    rounding = 2**-8 if dtype == "bfloat16" else 0  # of an entry, relative, and at most so much of the norm
    assert bracket(array(ops.cast(result, "float32"))).lower <= BOUND * (1 + ABOVE + rounding)


COPIES = {
    "keras": lambda c: keras.constraints.deserialize(json.loads(json.dumps(keras.constraints.serialize(c)))),
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
}


@pytest.mark.parametrize("way", COPIES)
def test_copy_has_the_same_config(way):
    constraint = clip(strides=(2, 1), groups=2)
    twin = COPIES[way](constraint)
    assert twin.get_config() == constraint.get_config()
    assert (twin.max_value, twin.operator, twin.strides, twin.groups) == (BOUND, "convolution", (2, 1), 2)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"strides": 0}, "strides"), ({"strides": ()}, "strides"), ({"axis": 0}, "axis"), ({"groups": 0}, "groups")],
)
def test_wrong_argument_is_refused(options, name):
    with pytest.raises(ValueError, match=rf"Argument `{name}` must .*\. Received: {name}="):
        clip(**options)


@pytest.mark.parametrize(
    ("options", "shape", "name"),
    [({}, (6, 8), "operator"), ({"strides": (2, 2)}, (3, 4, 8), "strides"), ({"groups": 3}, (3, 4, 8), "groups")],
)
def test_kernel_that_does_not_fit_is_refused(options, shape, name):
    for use in (clip(**options).initial_state, clip(**options).project):
        with pytest.raises(ValueError, match=rf"Argument `{name}` must .*\. Received: {name}="):
            use(gaussian(*shape))


def test_orthogonal_convolution_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"Argument `operator` must be 'matrix': .* Received: operator='convolution'$"):
        opnorm.Orthogonal(operator="convolution")


def test_without_a_slot_it_acts_and_warns_of_the_missing_vectors():
    layer = layers.Conv1D(4, 3, kernel_constraint=clip())
    layer.build((None, 8, 3))
    layer.kernel.assign(gaussian(3, 3, 4))
    with pytest.warns(UserWarning, match="Remedy"):
        result = layer.kernel.constraint(layer.kernel)
    assert bracket(result).lower <= BOUND * (1 + ABOVE)
