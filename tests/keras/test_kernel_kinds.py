"""Kernels of every kind of number: real floating point is constrained, whatever its width, anything else refused."""

import keras
import numpy as np
import pytest
from cases import ALL, gaussian, op_by_op
from dense import array, norm

import opnorm

KINDS = {
    "complex64": np.array([[2j, 0], [0, 1]], "complex64"),
    "int32": np.array([[2, 0], [0, 1]], "int32"),
    "uint8": np.array([[2, 0], [0, 1]], "uint8"),
    "bool": np.array([[True, False], [False, True]]),
}
CALLS = {
    "update": lambda constraint, kernel: constraint.update(kernel, constraint.initial_state(kernel)),
    "project": lambda constraint, kernel: constraint.project(kernel),
    "call": lambda constraint, kernel: constraint(kernel),
}
FORMS = {"array": lambda kernel: kernel, "tensor": keras.ops.convert_to_tensor}


@pytest.mark.parametrize("constraint_name", ALL)
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_a_kernel_that_is_not_real_and_floating_point_is_refused_with_its_dtype(constraint_name, dtype, form, call):
    constraint, kernel = ALL[constraint_name].build(1.0), FORMS[form](KINDS[dtype])
    message = rf"`kernel` must be real and floating point\. Received: kernel='{dtype}'"
    with pytest.raises(ValueError, match=message):
        CALLS[call](constraint, kernel)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_penalty_of_such_a_kernel_is_refused_too(dtype):
    with pytest.raises(ValueError, match=rf"Received: kernel='{dtype}'"):
        opnorm.SpectralRegularizer()(KINDS[dtype])


@pytest.mark.parametrize("constraint_name", ALL)
@pytest.mark.parametrize("dtype", ["complex64", "int32"])
def test_an_optimizer_refuses_it_when_it_is_built(constraint_name, dtype):
    kernel = keras.Variable(KINDS[dtype], dtype=dtype, trainable=False, name="kernel")  # PyTorch trains no integers
    kernel.constraint = ALL[constraint_name].build(1.0)
    with pytest.raises(ValueError, match=rf"Received: kernel='{dtype}'"):
        keras.optimizers.SGD(0.0).build([kernel])


@pytest.mark.parametrize("constraint_name", ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_real_floating_point_kernel_keeps_its_dtype(constraint_name, dtype):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only by a flag for the whole process")
    constraint = ALL[constraint_name].build(1.0)
    kernel = keras.ops.cast(gaussian(6, 4), dtype)
    for result in (op_by_op(CALLS["update"])(constraint, kernel)[0], op_by_op(constraint.project)(kernel)):
        assert keras.backend.standardize_dtype(result.dtype) == dtype
        rounded = 2e-2 if dtype == "bfloat16" else 2e-3  # C5; the kernel's own roundings, 2**-9 of bfloat16's entries
        assert norm(keras.ops.cast(result, "float32")) == pytest.approx(1, abs=0.02 + rounded)


@pytest.fixture
def floatx(request):
    before = keras.config.floatx()
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)  # as in a process that set it before it made a layer
    yield request.param
    keras.config.set_floatx(before)


WIDTHS = [
    pytest.param(
        "float64",
        marks=pytest.mark.skipif(
            keras.backend.backend() == "jax", reason="JAX has float64 only by a flag for the whole process"
        ),
    ),
    "float16",
    "bfloat16",
]


@pytest.mark.parametrize("floatx", WIDTHS, indirect=True)
def test_the_penalty_has_the_kernels_dtype_and_trains_whatever_floatx_is(floatx, data):
    regularizer = opnorm.SpectralRegularizer(0.1)
    layer = keras.layers.Dense(4, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((12,)), layer])
    layer.kernel.assign(gaussian(12, 4))
    assert keras.backend.standardize_dtype(layer.kernel.dtype) == floatx
    before = norm(keras.ops.cast(layer.kernel, "float32"))
    penalty = regularizer(layer.kernel)
    assert keras.backend.standardize_dtype(penalty.dtype) == floatx
    rounding = 2**-7 if floatx != "float64" else 1e-5  # bfloat16 rounds by 2**-9 ...
    value = float(array(keras.ops.cast(penalty, "float32")))
    assert value == pytest.approx(0.05 * before**2, rel=rounding)  # ... and the search ends within 1e-6
    model.compile(keras.optimizers.SGD(0.5), keras.losses.MeanSquaredError())
    history = model.fit(np.zeros((64, 12)), np.zeros((64, 4)), batch_size=8, verbose=0)
    assert all(np.isfinite(float(loss)) for loss in history.history["loss"])
    after = norm(keras.ops.cast(layer.kernel, "float32"))
    # No data pulls: eight steps of 0.5 times 0.1 sigma shrink sigma by 0.95 each, but where the second overtakes it.
    assert 0.95**8 * before * 0.98 <= after <= 0.95**8 * before * 1.3
