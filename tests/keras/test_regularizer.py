"""The penalty is (strength / 2) sigma^2 and its gradient the derivative, against float64 NumPy."""

import json

import cases
import dense
import keras
import numpy as np
import pytest

import opnorm
from opnorm.keras.regularizers import SpectralRegularizer

SIMPLE = cases.with_values(12, 8, [2.0, 1.4, 1.0, 0.5])  # a gap between the first two values, as trained kernels have
STRENGTH = 0.3


def penalty(kernel):
    """Return the formula in float64."""
    return STRENGTH / 2 * dense.norm(kernel) ** 2


def supremum(kernel, points=48):
    """Return the largest norm of the symbol on a fine grid, float64: within 1 / cos(2 pi / 96)^2 of the supremum."""
    frequencies = 2 * np.pi * np.arange(points) / points
    a, b = (np.exp(-1j * np.outer(frequencies, np.arange(k))) for k in kernel.shape[:2])
    symbols = np.einsum("xa,yb,abio->xyio", a, b, kernel.astype("float64"))
    return np.linalg.norm(symbols, 2, axis=(2, 3)).max()


@pytest.fixture
def derivative(gradients):
    """Return a function of a regularizer and a kernel: the gradient by the backend."""

    def take(regularizer, kernel):
        variable = keras.Variable(kernel)
        return dense.array(gradients(lambda: regularizer(variable), [variable])[0])

    return take


def difference(function, kernel, direction, h=1e-5):
    kernel = kernel.astype("float64")
    return (function(kernel + h * direction) - function(kernel - h * direction)) / (2 * h)


SHAPES = ["tall", "wide", "convolution", "one_row", "one_column", "vector", "rank_one", "repeated"]


@pytest.mark.parametrize("name", SHAPES)
def test_the_penalty_is_the_formula(name):
    kernel = cases.KERNELS[name]
    value = cases.op_by_op(SpectralRegularizer(STRENGTH))(kernel)
    assert float(value) == pytest.approx(penalty(kernel), rel=1e-4)  # settled to 1e-6, singular values far apart


def test_the_gradient_is_that_of_finite_differences(derivative):
    found = derivative(SpectralRegularizer(STRENGTH), SIMPLE)
    rng = np.random.default_rng(3)
    for _ in range(5):
        direction = rng.standard_normal(SIMPLE.shape)
        wanted = difference(penalty, SIMPLE, direction)
        scale = STRENGTH * dense.norm(SIMPLE) * np.linalg.norm(direction)  # the largest that the derivative could be
        assert np.sum(found * direction) == pytest.approx(wanted, abs=1e-3 * scale)  # the goal
    u, s, vt = np.linalg.svd(SIMPLE.astype("float64"))
    exact = STRENGTH * s[0] * np.outer(u[:, 0], vt[0])
    assert np.linalg.norm(found - exact) <= 1e-3 * np.linalg.norm(exact)  # the goal


def test_output_axes_and_groups_mean_the_largest_block(derivative):
    kernel = cases.gaussian(3, 3, 4, 2)
    regularizer = SpectralRegularizer(STRENGTH, axis=(-2, -1), groups=4, power_iterations=100)
    blocks = kernel.reshape(9, 4, 2).transpose(1, 0, 2).astype("float64")
    norms = np.linalg.norm(blocks, 2, axis=(1, 2))
    assert float(cases.op_by_op(regularizer)(kernel)) == pytest.approx(STRENGTH / 2 * norms.max() ** 2, rel=1e-4)
    gradient = derivative(regularizer, kernel).reshape(9, 4, 2)
    largest = int(np.argmax(norms))
    assert np.linalg.norm(gradient[:, largest]) == pytest.approx(STRENGTH * norms.max(), rel=1e-4)
    assert not np.delete(gradient, largest, axis=1).any()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_the_gradient_is_finite_at_every_size(derivative, size):
    kernel = np.float32(size) * SIMPLE
    regularizer = SpectralRegularizer(STRENGTH)
    assert not np.isnan(float(cases.op_by_op(regularizer)(kernel)))  # infinite at 1e30: its square leaves float32
    gradient = derivative(regularizer, kernel).astype("float64")
    # float32's rounding; a zero kernel has a zero gradient, exactly
    assert np.linalg.norm(gradient) == pytest.approx(STRENGTH * size * 2.0, rel=1e-4, abs=0.0)


def test_repeated_singular_values_have_a_subgradient(derivative):
    kernel = cases.KERNELS["repeated"]
    gradient = derivative(SpectralRegularizer(STRENGTH), kernel).astype("float64")
    nuclear = np.linalg.svd(gradient, compute_uv=False).sum()
    assert nuclear == pytest.approx(STRENGTH * 3.0, rel=1e-4)  # a subgradient: nuclear norm strength * sigma
    assert np.sum(gradient * kernel) == pytest.approx(STRENGTH * 9.0, rel=1e-4)  # ... that attains sigma


def test_a_convolution_is_penalized_by_its_operator_norm(derivative):
    kernel = cases.gaussian(3, 3, 4, 8, seed=1)
    regularizer = SpectralRegularizer(STRENGTH, operator="convolution", power_iterations=100)
    value = float(regularizer(kernel))
    lower, upper = opnorm.spectral_norm(opnorm.Convolution(kernel))
    # 1.3 %: how far the constraint's sigma may be below; `lower` is itself a percent wide
    assert STRENGTH / 2 * (lower * (1 - 0.013)) ** 2 <= value <= STRENGTH / 2 * upper**2
    gradient = derivative(regularizer, kernel).astype("float64")
    assert np.sum(gradient * kernel) == pytest.approx(2 * value, rel=1e-4)  # sigma is homogeneous: <dsigma, K> = sigma
    moved = kernel - 0.01 * gradient / np.linalg.norm(gradient)
    predicted = np.sqrt(2 * value / STRENGTH) - 0.01 * np.linalg.norm(gradient) / np.sqrt(2 * value * STRENGTH)
    exact = supremum(moved)
    assert exact == pytest.approx(predicted, rel=2e-3)  # second order in the step, and the search's own error


def small_model(kernel_regularizer, policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    return keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(8, kernel_regularizer=kernel_regularizer), keras.layers.Dense(4)]
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_compiled_step_lowers_the_norm_by_the_formula(data, policy):
    model = small_model(SpectralRegularizer(20.0), policy)
    kernel = model.layers[0].kernel
    kernel.assign(SIMPLE)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    x, y = data
    loss = model.fit(np.zeros_like(x), y * 0, batch_size=64, verbose=0).history["loss"][
        0
    ]  # no gradient but the penalty's
    assert loss == pytest.approx(10 * 2.0**2, rel=1e-3)  # the rounding of half precision
    values = np.linalg.svd(dense.array(kernel).astype("float64"), compute_uv=False)
    np.testing.assert_allclose(values[:4], [2.0 - 0.01 * 20 * 2.0, 1.4, 1.0, 0.5], atol=1e-3)  # the gradient's goal


def test_a_saved_model_keeps_its_penalty(tmp_path):
    model = small_model(SpectralRegularizer(0.25, operator="matrix", power_iterations=7, seed=3))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    config = loaded.layers[0].kernel_regularizer.get_config()
    assert config == model.layers[0].kernel_regularizer.get_config()
    assert json.loads(json.dumps(config))["power_iterations"] == 7
    assert dense.array(loaded.losses[0]) == dense.array(model.losses[0])


@pytest.mark.parametrize(
    ("name", "value"), [("strength", -1), ("strength", float("nan")), ("operator", "conv"), ("power_iterations", 0)]
)
def test_wrong_arguments_are_named_with_their_value(name, value):
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: {name}={value!r}"):
        SpectralRegularizer(**{name: value})
