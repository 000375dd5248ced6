"""Parameters to train, and the truth about them: NumPy's singular values in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def two_layers(seed=0):
    """Return parameters of a small network, badly scaled."""
    one, two = jax.random.split(jax.random.key(seed))
    return {
        "first": {"kernel": 2.0 * jax.random.normal(one, (6, 10)), "bias": jnp.zeros(10)},
        "second": {"kernel": 0.1 * jax.random.normal(two, (10, 3)), "bias": jnp.zeros(3)},
    }


def gradient(params):
    """Return the gradient of a loss that wants other kernels."""
    x = jnp.linspace(-1.0, 1.0, 24).reshape(4, 6)

    def loss(p):
        hidden = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"])
        return jnp.mean((hidden @ p["second"]["kernel"] + p["second"]["bias"] - 3.0) ** 2)

    return jax.grad(loss)(params)


def stepped(optimizer, params, state):
    """Return parameters and state after one update."""
    updates, state = optimizer.update(gradient(params), state, params)
    return optax.apply_updates(params, updates), state


def values(matrix):
    """Return the singular values in float64, largest first."""
    return np.linalg.svd(np.asarray(matrix, dtype="float64"), compute_uv=False)


def norms(params):
    """Return the norms of both kernels."""
    return [values(params[name]["kernel"])[0] for name in ("first", "second")]
