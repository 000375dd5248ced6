"""Clipped and orthogonal kernels, against U min(S, c) V^T and U V^T by NumPy in float64."""

import copy
import json
import pickle
import warnings

import dense
import keras
import numpy as np
import pytest
from cases import DTYPES, KERNELS, gaussian, op_by_op, with_values
from keras import layers, ops

import opnorm
from opnorm.iterations.clipping import norm_bound
from opnorm.keras.slots import state_of

EXACT = 1e-4  # what `SpectralClip` documents
COMPILED = {"tensorflow": [False, True], "jax": [True], "torch": [False]}[keras.backend.backend()]
SPECTRA = {
    "slightly_outside": np.linspace(1.02, 0.0, 24),
    "far_outside": np.linspace(40.0, 5.0, 24),
    "crowded_at_the_bound": np.r_[1.5, 1.0 + 1e-5 * np.linspace(1, -1, 23)],
    "one_large": np.r_[100.0, np.linspace(0.9, 0.1, 23)],
    "over_six_decades": np.geomspace(1e3, 1e-3, 24),
}


def clipped(kernel, c):
    return dense.with_values(kernel, lambda s: np.minimum(s, c))


def applied(constraint, kernel):
    return dense.array(op_by_op(constraint.project)(kernel))


def error(result, truth):
    return dense.norm(result.astype("float64") - truth) / dense.norm(truth)


@pytest.mark.parametrize("shape", [(24, 24), (70, 24), (24, 70)], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_every_singular_value_is_clipped(spectrum, shape):
    kernel = np.float32(0.3) * with_values(*shape, SPECTRA[spectrum])
    result = applied(opnorm.SpectralClip(0.3), kernel)
    assert error(result, clipped(kernel, 0.3)) <= EXACT
    assert dense.norm(result) <= 0.3 * (1 + EXACT)


@pytest.mark.parametrize("largest", [1e4, 1e8, 1e30])
def test_norm_is_held_however_large_it_was(largest):
    kernel = with_values(40, 24, np.geomspace(largest, largest * 1e-6, 24))
    result = applied(opnorm.SpectralClip(1.0), kernel)
    assert np.all(np.isfinite(result))
    assert dense.norm(result) <= 1 + EXACT
    above = np.linalg.svd(result.astype("float64"), compute_uv=False)
    expected = np.minimum(np.linalg.svd(kernel.astype("float64"), compute_uv=False), 1)
    # The kernel itself is only known within float32's resolution times its norm.
    assert np.all(above >= expected * (1 - EXACT) - 1e-6 * largest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_has_the_dtype_and_the_precision_of_the_kernel(dtype):
    kernel = ops.cast(gaussian(40, 24), dtype)
    for constraint, change in (
        (opnorm.SpectralClip(2.0), lambda s: np.minimum(s, 2)),
        (opnorm.Orthogonal(), np.ones_like),
    ):
        result = op_by_op(constraint.project)(kernel)
        assert result.dtype == kernel.dtype
        wide = dense.array(ops.cast(kernel, "float64" if dtype == "float64" else "float32"))
        truth = dense.with_values(wide, change)
        tolerance = {"float64": 1e-9, "float32": EXACT, "bfloat16": 2**-7}[dtype]  # bfloat16: 8 bits a number
        assert error(dense.array(ops.cast(result, wide.dtype)), truth) <= tolerance


@pytest.mark.parametrize("constraint", [opnorm.SpectralClip(0.9), opnorm.Orthogonal()], ids=lambda c: type(c).__name__)
def test_kernel_with_a_nan_or_an_infinity_is_left_alone(constraint):
    for bad in (np.nan, np.inf):
        kernel = gaussian(12, 6)
        kernel[3, 2] = bad
        assert np.array_equal(applied(constraint, kernel), kernel, equal_nan=True)
        grouped = type(constraint)(**{**constraint.get_config(), "groups": 2})
        assert np.array_equal(applied(grouped, kernel), kernel, equal_nan=True)


def test_zero_kernel_stays_zero():
    for constraint in opnorm.SpectralClip(0.9), opnorm.Orthogonal():
        assert not np.any(applied(constraint, np.zeros((6, 4), "float32")))


def test_clipping_twice_is_clipping_once():
    constraint = opnorm.SpectralClip(0.5)
    once = applied(constraint, gaussian(40, 24))
    assert applied(constraint, once) == pytest.approx(once, abs=0.5 * EXACT)


def test_each_group_is_projected_and_one_inside_the_ball_is_left_bit_for_bit():
    kernel = gaussian(3, 3, 4, 12)
    kernel[..., 4:8] *= np.float32(0.5 / dense.norm(kernel[..., 4:8]))
    clip = applied(opnorm.SpectralClip(2.0, groups=3), kernel)
    orthogonal = applied(opnorm.Orthogonal(groups=3), kernel)
    assert np.array_equal(clip[..., 4:8], kernel[..., 4:8])
    for block in (slice(0, 4), slice(4, 8), slice(8, 12)):
        assert error(clip[..., block], clipped(kernel[..., block], 2.0)) <= EXACT
        assert error(orthogonal[..., block], dense.with_values(kernel[..., block], np.ones_like)) <= EXACT


@pytest.mark.parametrize("axis", [0, 1, (0, 2), (2, 0), (-2, -1)], ids=str)
def test_output_axes_are_the_columns_wherever_they_lie(axis):
    kernel = gaussian(4, 5, 6)
    axes = sorted(i % 3 for i in np.atleast_1d(axis))
    moved = np.moveaxis(kernel, axes, range(-len(axes), 0))
    columns = moved.reshape(-1, np.prod([kernel.shape[i] for i in axes]))
    for constraint, change in (
        (opnorm.SpectralClip(1.5, axis=axis), lambda s: np.minimum(s, 1.5)),
        (opnorm.Orthogonal(axis=axis), np.ones_like),
    ):
        result = np.moveaxis(applied(constraint, kernel), axes, range(-len(axes), 0)).reshape(columns.shape)
        assert error(result, dense.with_values(columns, change)) <= EXACT


@pytest.mark.parametrize("shape", [(24, 24), (70, 24), (24, 70)], ids=str)
@pytest.mark.parametrize("condition", [1, 10, 1e3])
def test_orthogonal_is_the_nearest_orthogonal_matrix(condition, shape):
    kernel = with_values(*shape, np.geomspace(7.0, 7.0 / condition, 24))
    result = applied(opnorm.Orthogonal(), kernel)
    assert (
        error(result, dense.with_values(kernel, np.ones_like)) <= 1e-3
    )  # float32's 1e-7 times 1e3, and a margin of 10
    values = np.linalg.svd(result.astype("float64"), compute_uv=False)
    assert np.abs(values - 1).max() <= EXACT


@pytest.mark.parametrize("kernel_name", KERNELS)
def test_orthogonal_keeps_the_null_space_and_brings_the_rest_to_one(kernel_name):
    kernel = KERNELS[kernel_name]
    truth = dense.with_values(kernel, lambda s: np.where(s > 1e-3 * s[0], 1.0, 0.0))
    assert error(applied(opnorm.Orthogonal(), kernel), truth) <= 1e-3  # rounding in the null space grows a thousandfold


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("values", [[1.0] * 24, [1.0], np.geomspace(1, 1e-4, 24)], ids=["flat", "one", "decaying"])
def test_bound_is_above_the_norm_and_near_it(values, scale):
    kernel = np.float32(scale) * with_values(40, 24, values)
    bound = float(dense.array(norm_bound(ops.convert_to_tensor(kernel)))[0, 0])
    assert 1 - 1e-5 <= bound / dense.norm(kernel) <= 24 ** (1 / 64) * (1 + 1e-5)  # rounding of float32


@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_fit_holds_the_singular_values_after_real_updates_only(mlp, data, policy, jit_compile):
    keras.config.set_dtype_policy(policy)
    model = mlp(opnorm.SpectralClip(0.7))
    optimizer = keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    start = [dense.array(layer.kernel) for layer in model.layers]
    model.train_on_batch(*data)
    for layer, kernel in zip(model.layers, start, strict=True):
        assert np.array_equal(dense.array(layer.kernel), kernel)  # gradients only accumulated
        assert state_of(optimizer, layer.kernel) is None
    for _ in range(9):
        model.train_on_batch(*data)
    for layer in model.layers:  # they started near 7
        assert 0.65 <= dense.norm(layer.kernel) <= 0.7 * (1 + EXACT)  # nine steps of 1e-3 may also shrink it


def test_with_a_margin_most_updates_find_nothing_to_do_and_none_leaves_the_ball(mlp, data):
    model = mlp(opnorm.SpectralClip(0.7, margin=0.1))
    optimizer = keras.optimizers.Adam(1e-3)
    model.compile(optimizer, "mse")
    highest, low = [], 0
    for _ in range(60):
        before = [dense.norm(layer.kernel) for layer in model.layers]
        model.train_on_batch(*data)
        after = [dense.norm(layer.kernel) for layer in model.layers]
        highest.append(max(after))
        low += sum(now <= 0.63 * (1 + EXACT) < then for now, then in zip(after, before, strict=True))
    assert max(highest) <= 0.7
    assert max(highest[20:]) > 0.64  # it moves between clips ...
    assert 0 < low < 60  # ... of which there are some in 60 updates of several kernels
    assert state_of(optimizer, model.layers[0].kernel) is not None


def test_with_a_margin_a_kernel_inside_the_ball_is_left_bit_for_bit():
    u, s, vt = np.linalg.svd(gaussian(30, 20), full_matrices=False)
    kernel = ((u * np.minimum(s / s[0], 0.9)) @ vt * 0.98 / 0.9).astype("float32")  # a crowd between 1 - margin and 1
    constraint = opnorm.SpectralClip(1.0, margin=0.05)
    assert np.array_equal(dense.array(constraint.project(kernel)), kernel)
    projected = dense.array(constraint.project(kernel * 1.1))
    assert error(projected, clipped(kernel * 1.1, 0.95)) <= EXACT


def test_fit_keeps_a_kernel_orthogonal(mlp, data):
    model = mlp(opnorm.Orthogonal())
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(*data, batch_size=16, epochs=2, verbose=0)
    for layer in model.layers:
        values = np.linalg.svd(dense.array(layer.kernel).astype("float64"), compute_uv=False)
        assert np.abs(values - 1).max() <= EXACT


def test_without_a_slot_it_acts_and_does_not_warn():
    layer = layers.Dense(4, kernel_constraint=opnorm.SpectralClip(0.5))
    layer.build((None, 6))
    layer.kernel.assign(gaussian(6, 4))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = dense.array(layer.kernel.constraint(layer.kernel))
    assert not [w for w in record if "Remedy" in str(w.message)]
    assert error(result, clipped(gaussian(6, 4), 0.5)) <= EXACT


CONSTRAINTS = [opnorm.SpectralClip(0.9, axis=(-2, -1), groups=4), opnorm.Orthogonal(axis=0, groups=2)]
COPIES = {
    "keras": lambda c: keras.constraints.deserialize(json.loads(json.dumps(keras.constraints.serialize(c)))),
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
}


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("way", COPIES)
def test_copy_has_the_same_config(constraint, way):
    twin = COPIES[way](constraint)
    assert type(twin) is type(constraint)
    assert twin.get_config() == constraint.get_config()
    assert twin.get_config()["groups"] == constraint.groups != 1


def test_a_saved_model_continues_as_if_never_interrupted(mlp, data, tmp_path):
    model = mlp(opnorm.SpectralClip(0.8))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.train_on_batch(*data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for _ in range(3):
        model.train_on_batch(*data)
        loaded.train_on_batch(*data)
    for ours, theirs in zip(model.layers, loaded.layers, strict=True):
        assert theirs.kernel_constraint.get_config() == ours.kernel_constraint.get_config()
        assert dense.array(theirs.kernel) == pytest.approx(dense.array(ours.kernel), abs=1e-6)  # the same arithmetic


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_value", 0),
        ("max_value", float("nan")),
        ("operator", "sliding"),
        ("groups", 0),
        ("axis", ()),
        ("margin", 1),
        ("margin", -0.1),
    ],
)
def test_wrong_argument_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"Argument `{name}` must .*\. Received: {name}="):
        opnorm.SpectralClip(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("axis", 2), ("groups", 3)])
def test_option_that_does_not_fit_the_kernel_is_refused(name, value):
    constraint = opnorm.Orthogonal(**{name: value})
    for use in (constraint.initial_state, constraint.project):
        with pytest.raises(ValueError, match=rf"Argument `{name}` must .*\. Received: {name}={value}"):
            use(gaussian(6, 8))


@pytest.mark.parametrize(("seed", "margin"), [(29, 0.1), (19, 0.1), (3, 0.3)])
def test_with_a_margin_a_kernel_just_outside_the_ball_is_brought_inside(seed, margin):
    random = np.random.default_rng(seed)
    kernel = random.standard_normal(random.integers(8, 200, 2))
    kernel *= random.uniform(1, 1.05) / np.linalg.norm(kernel, 2)
    result = applied(opnorm.SpectralClip(1.0, margin=margin), kernel.astype("float32"))
    assert error(result, clipped(kernel, 1 - margin)) <= EXACT


def test_with_a_margin_fast_training_does_not_leave_the_ball():
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    hidden = [layers.Dense(32, "relu", kernel_constraint=opnorm.SpectralClip(0.95, margin=0.05)) for _ in range(2)]
    model = keras.Sequential([keras.Input((20,)), *hidden, layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    highest = []
    for _ in range(150):  # a crowd of singular values at the last cut, and large steps
        x = random.standard_normal((32, 20))
        model.train_on_batch(x, 3 * x[:, :1] * x[:, 1:2])
        highest.append(max(dense.norm(layer.kernel) for layer in hidden))
    assert max(highest) <= 0.95 * (1 + 1e-3)
    assert max(highest[50:]) > 0.92
