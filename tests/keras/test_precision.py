"""Half precision: the norm is computed in float32, and float32 masters stay float32."""

import keras
import numpy as np
import pytest
from dense import array, norm

import opnorm
from opnorm.keras.slots import state_of

# A kernel of 16 x 16 numbers, each rounded by at most half a unit: 2**-9 relative in bfloat16, and the norm of the
# errors is about 2 sqrt(16) / sqrt(12) * 2**-9 of a typical entry, far below 1e-2 of the kernel's norm.
ROUNDED = 1e-2
EXACT = 1e-3  # the design's tolerance in float32
HALF = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}


def halved(x, dtype):
    return array(keras.ops.cast(keras.ops.cast(x, dtype), "float32"))


def vectors(optimizer):
    return [v for v in optimizer.variables if v.name.endswith("_u")]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_huge_weights_are_constrained_in_half_precision(mlp, data, policy):
    keras.config.set_dtype_policy(policy)
    model = mlp(stddev=100.0)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    assert [norm(layer.kernel) for layer in model.layers] > [500, 400]
    model.fit(data[0] / 100, data[1], batch_size=8, epochs=4, verbose=0)
    for layer in model.layers:
        assert np.isfinite(array(layer.kernel).astype("float32")).all()
        assert norm(layer.kernel) == pytest.approx(1, abs=ROUNDED if policy == "bfloat16" else EXACT)
    for u in vectors(model.optimizer):
        assert u.dtype == "float32"
        assert np.linalg.norm(array(u), axis=-1) == pytest.approx(
            1, abs=1e-6
        )  # float32 rounding: it was not stored in half
    assert len(vectors(model.optimizer)) == 2


@pytest.mark.parametrize("policy", HALF)
def test_float32_masters_are_not_rounded_to_half_precision(mlp, data, policy):
    keras.config.set_dtype_policy(policy)
    model = mlp()
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(*data, batch_size=16, epochs=2, verbose=0)
    opnorm.project(model)
    for layer in model.layers:
        kernel = array(layer.kernel)
        assert kernel.dtype == np.float32
        assert (halved(kernel, HALF[policy]) != kernel).mean() > 0.9  # few float32 numbers are half-precision ones


def test_a_step_skipped_by_loss_scaling_leaves_kernel_and_vector_alone(mlp, data):
    keras.config.set_dtype_policy("mixed_float16")
    model = mlp()
    inner = keras.optimizers.Adam(1e-3)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=1.0), "mse")
    model.train_on_batch(*data)  # one sound step
    everything = [*model.trainable_variables, *inner.variables]
    before = [array(v) for v in everything]
    model.train_on_batch(np.full_like(data[0], np.inf), data[1])
    assert array(model.optimizer.dynamic_scale) == 0.5  # the step was skipped
    for variable, old in zip(everything, before, strict=True):
        assert np.array_equal(array(variable), old), variable.path
    model.train_on_batch(*data)
    assert array(inner.iterations) == 2
    assert [norm(layer.kernel) for layer in model.layers] == pytest.approx([1, 1], abs=EXACT)


def test_loss_scaling_keeps_the_vectors_in_the_inner_optimizer_alone(mlp):
    model = mlp()
    inner = keras.optimizers.Adam(1e-3)
    outer = keras.optimizers.LossScaleOptimizer(inner)
    outer.build(model.trainable_variables)
    assert len(vectors(outer)) == len(vectors(inner)) == 2
    for layer in model.layers:
        assert state_of(outer, layer.kernel) is None
        assert any(state_of(inner, layer.kernel) is v for v in inner.variables)
