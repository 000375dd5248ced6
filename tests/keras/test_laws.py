"""The laws that every constraint of the registry obeys on every kernel, against the dense truth."""

from functools import cache

import dense
import numpy as np
import pytest
from cases import CAPS, CONSTRAINTS, DTYPES, EVERY, KERNELS, gaussian, op_by_op, repeated
from keras import ops

TARGET = 0.95


@cache  # several laws look at the same results
def applied(constraint_name, kernel_name):
    """Return the first update's kernel and state, and the projection, of a kernel of the registry."""
    constraint = EVERY[constraint_name].seeded(TARGET)
    kernel = KERNELS[kernel_name]

    def run(kernel, state):
        return *constraint.update(kernel, state), constraint.project(kernel)

    return [x if x is None else dense.array(x) for x in op_by_op(run)(kernel, constraint.initial_state(kernel))]


def truth(constraint_name, kernel):
    return dense.with_values(kernel, lambda s: EVERY[constraint_name].values(s, TARGET))


def error(result, kernel):
    """Return how far `result` is from the truth `kernel`, relative, in spectral norm."""
    assert np.all(np.isfinite(result))
    return dense.norm(result.astype("float64") - kernel) / dense.norm(kernel)


every_constraint = pytest.mark.parametrize("constraint_name", EVERY)
every_kernel = pytest.mark.parametrize("kernel_name", KERNELS)


@every_constraint
@every_kernel
def test_first_update_is_the_dense_truth_within_two_percent(constraint_name, kernel_name):
    result, _, _ = applied(constraint_name, kernel_name)
    assert error(result, truth(constraint_name, KERNELS[kernel_name])) <= 0.02  # C5's promise of a cold start


@every_constraint
@every_kernel
def test_projection_is_the_dense_truth(constraint_name, kernel_name):
    _, _, result = applied(constraint_name, kernel_name)
    assert error(result, truth(constraint_name, KERNELS[kernel_name])) <= 1e-3  # what `project` documents


@pytest.mark.parametrize("constraint_name", CONSTRAINTS)
@every_kernel
def test_state_stays_a_stack_of_float32_unit_vectors(constraint_name, kernel_name):
    _, state, _ = applied(constraint_name, kernel_name)
    assert state.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(state, axis=-1), 1, atol=1e-5)  # rounding of a dozen float32 squares


@every_constraint
@pytest.mark.parametrize("target", [0.1, 0.95, 5.0])
def test_every_target_is_met_from_above_and_from_below(constraint_name, target):
    case = EVERY[constraint_name]
    constraint = case.seeded(target)
    for norm_before in (0.5, 10.0):  # below and above: 0.5 also lies above the target 0.1
        kernel = gaussian(12, 8)
        kernel *= np.float32(norm_before / dense.norm(kernel))
        result, _ = repeated(constraint, kernel, constraint.initial_state(kernel), updates=10)
        expected = dense.with_values(kernel, lambda s: case.values(s, target))
        assert error(dense.array(result), expected) <= 1e-3  # the norm of a kernel at rest, C2's promise


@pytest.mark.skipif("float64" not in DTYPES, reason="JAX has float64 only by a global flag")
@pytest.mark.parametrize("operator", ["matrix", "convolution"])
@pytest.mark.parametrize("constraint_name", CONSTRAINTS)
def test_float64_kernel_is_multiplied_by_one_factor_in_float64(constraint_name, operator):
    constraint = CONSTRAINTS[constraint_name].build(0.5, operator=operator, seed=1)
    kernel = gaussian(3, 4, 6).astype("float64") + 1e-12 * gaussian(3, 4, 6, seed=1)  # no float32 numbers
    result = dense.array(op_by_op(constraint.project)(ops.convert_to_tensor(kernel)))
    assert result.dtype == "float64"
    np.testing.assert_allclose(result / kernel, result[0, 0, 0] / kernel[0, 0, 0], rtol=1e-15)  # two roundings


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constraint_name", CAPS)
def test_cap_leaves_a_kernel_inside_the_ball_bit_for_bit(constraint_name, dtype):
    constraint = EVERY[constraint_name].seeded(5.0)
    kernel = gaussian(12, 8).astype("float64")
    kernel = ops.convert_to_tensor(kernel * (0.99 * 5.0 / dense.norm(kernel)), dtype=dtype)
    update = op_by_op(constraint.update)
    result, _ = update(kernel, constraint.initial_state(kernel))
    assert result.dtype == kernel.dtype
    assert bool(ops.all(result == kernel))
