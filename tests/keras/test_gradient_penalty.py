"""Gradient penalties: a gradient by the inputs, differentiated once more by the kernels, through sigma."""

import dense
import keras
import numpy as np
import pytest
from cases import gaussian

import opnorm

L = keras.layers
BACKEND = keras.backend.backend()
# PyTorch compiles no second derivatives; JAX's training steps are compiled, and eager ones take seconds.
COMPILED = {"torch": [False], "tensorflow": [False, True], "jax": [True]}[BACKEND]


def wrapped(layer, **options):
    return opnorm.SpectralNormalization(layer, tolerance=1e-6, **options)


def dense_critic():
    return [wrapped(L.Dense(4, "tanh", use_bias=False)), wrapped(L.Dense(1, use_bias=False))]


def convolutional_critic():
    convolution = L.Conv1D(2, 2, activation="tanh", use_bias=False)
    return [wrapped(convolution, operator="convolution"), L.Flatten(), wrapped(L.Dense(1, use_bias=False))]


def matrix_norm(kernel):
    return np.linalg.norm(kernel, 2)


def convolution_norm(kernel):
    """Return the largest norm over all frequencies w of the sum of kernel[a] exp(-iaw), for two taps."""
    grid = np.linspace(0, np.pi, 65)
    for _ in range(8):  # each pass is 16 times finer: 65 / 16**8 of a radian, and a peak is flat
        symbols = kernel[0] + np.exp(-1j * grid)[:, None, None] * kernel[1]
        norms = np.linalg.svd(symbols, compute_uv=False)[:, 0]
        peak, step = grid[np.argmax(norms)], grid[1] - grid[0]
        grid = np.linspace(peak - 2 * step, peak + 2 * step, 65)
    return norms.max()


def explicit(kernel, length):
    """Return the matrix of a dense layer, or of a convolution without padding of inputs of `length`."""
    if kernel.ndim == 2:
        return kernel
    taps, inputs, outputs = kernel.shape
    matrix = np.zeros((length, inputs, length - taps + 1, outputs))
    for position in range(length - taps + 1):
        matrix[position : position + taps, :, position] = kernel
    return matrix.reshape(length * inputs, -1)


def penalty_of(kernels, x):
    """Return the mean of (|df/dx|^2 - 1)^2 for f(x) = tanh(x A) B, A and B of the normalized kernels; float64."""
    norms = [convolution_norm(k) if k.ndim == 3 else matrix_norm(k) for k in kernels]
    a, b = (explicit(k / norm, x.shape[1]) for k, norm in zip(kernels, norms, strict=True))
    flat = x.reshape(len(x), -1)
    slopes = ((1 - np.tanh(flat @ a) ** 2) * b[:, 0]) @ a.T
    return np.mean((np.sum(slopes**2, axis=-1) - 1) ** 2)


def finite_differences(kernels, which, x, step=1e-6):
    result = np.zeros_like(kernels[which])
    for index in np.ndindex(result.shape):
        shifts = []
        for sign in (1, -1):
            changed = [kernel.copy() for kernel in kernels]
            changed[which][index] += sign * step
            shifts.append(penalty_of(changed, x))
        result[index] = (shifts[0] - shifts[1]) / (2 * step)
    return result


def penalty_and_gradients(model, kernels, x, training, compiled):
    """Return the penalty and its gradients by the kernels, by the backend's own double backward."""
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[BACKEND](model, kernels, x, training, compiled)


def _tensorflow(model, kernels, x, training, compiled):
    import tensorflow as tf

    def run(x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                outputs = tf.reduce_sum(model(x, training=training))
            slopes = tf.reshape(inner.gradient(outputs, x), (len(x), -1))
            penalty = tf.reduce_mean((tf.reduce_sum(slopes**2, axis=-1) - 1) ** 2)
        return penalty, outer.gradient(penalty, [kernel.value for kernel in kernels])

    return (tf.function(run) if compiled else run)(tf.constant(x))


def _jax(model, kernels, x, training, compiled):
    import jax
    import jax.numpy as jnp

    def outputs(x, values):
        with keras.StatelessScope(state_mapping=list(zip(kernels, values, strict=True))):
            return jnp.sum(model(x, training=training))

    def penalty(values):
        slopes = jax.grad(outputs)(jnp.asarray(x), values).reshape(len(x), -1)
        return jnp.mean((jnp.sum(slopes**2, axis=-1) - 1) ** 2)

    run = jax.value_and_grad(penalty)
    return (jax.jit(run) if compiled else run)([kernel.value for kernel in kernels])


def _torch(model, kernels, x, training, compiled):
    import torch

    x = torch.tensor(x, requires_grad=True)
    slopes = torch.autograd.grad(model(x, training=training).sum(), x, create_graph=True)[0]
    penalty = ((slopes.reshape(len(x), -1).square().sum(dim=-1) - 1) ** 2).mean()
    return penalty.detach(), torch.autograd.grad(penalty, [kernel.value for kernel in kernels])


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("critic", "shape"), [(dense_critic, (5,)), (convolutional_critic, (4, 2))], ids=["dense", "convolutional"]
)
def test_the_gradient_of_a_gradient_penalty_is_that_of_the_normalized_kernels(critic, shape, training, compiled):
    model = keras.Sequential([keras.Input(shape), *critic()])
    kernels, x = model.trainable_variables, gaussian(3, *shape, seed=3)
    for kernel in kernels:
        kernel.assign(2 * gaussian(*kernel.shape))
    values = [dense.array(kernel).astype("float64") for kernel in kernels]
    penalty, gradients = penalty_and_gradients(model, kernels, x, training, compiled)
    # 1e-3 is the design's for gradients and 1 % its for the norm of a convolution, on which both then depend
    tolerance = 1e-3 if critic is dense_critic else 1e-2
    assert float(penalty) == pytest.approx(penalty_of(values, x), rel=tolerance)
    for which, found in enumerate(gradients):
        truth = finite_differences(values, which, x)
        np.testing.assert_allclose(dense.array(found), truth, atol=tolerance * np.abs(truth).max())


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_gradient_penalty_of_a_zero_kernel_has_no_gradient(compiled):
    model = keras.Sequential([keras.Input((5,)), *dense_critic()])
    kernels = model.trainable_variables
    kernels[0].assign(0 * kernels[0].value)
    penalty, gradients = penalty_and_gradients(model, kernels, gaussian(3, 5), training=True, compiled=compiled)
    assert float(penalty) == pytest.approx(1)  # no slope
    for gradient in gradients:
        assert not np.any(dense.array(gradient))
