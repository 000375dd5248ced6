"""The recipe in circulation for `layers.dense(kernel_constraint=...)`, beside opnorm.tf1.

The recipe makes `u` by name: `lambda w: spectral_norm(w, 1, "layer_%d_u" % i)`, in the loop that makes the layers. The
optimizer calls the lambdas when the loop has ended, so every one of them sees the last `i`. Layers of one width then
share one vector, which fits none of them; layers of different widths cannot be trained at all.

Run: python examples/failures/tf1_recipe.py
"""

import os
from typing import NamedTuple

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before tensorflow is imported: tf.compat.v1.layers comes from tf_keras

import numpy as np
import tensorflow as tf

import opnorm

v1 = tf.compat.v1
STEPS = 50


class Row(NamedTuple):
    """What became of one network: the true spectral norms of its kernels after training, or the error."""

    constraint: str
    widths: tuple[int, ...]
    sigmas: tuple[float, ...] = ()
    error: str = ""


def spectral_norm(w, iterations, name):
    """Return w / sigma with a `u` found by name: the recipe as it is copied about."""
    shape = w.shape.as_list()
    w = tf.reshape(w, [-1, shape[-1]])
    with v1.variable_scope(name, reuse=v1.AUTO_REUSE):
        u = v1.get_variable(name, [1, shape[-1]], initializer=v1.random_normal_initializer(), trainable=False)
    u_hat = u
    for _ in range(iterations):
        v_hat = tf.nn.l2_normalize(tf.matmul(u_hat, tf.transpose(w)))
        u_hat = tf.nn.l2_normalize(tf.matmul(v_hat, w))
    sigma = tf.matmul(tf.matmul(v_hat, w), tf.transpose(u_hat))
    with tf.control_dependencies([u.assign(u_hat)]):
        return tf.reshape(w / sigma, shape)


def recipe(hidden, widths):
    """Return the network with the recipe's constraints."""
    for i, width in enumerate(widths):
        # Ruff's B023 is the very bug: the lambda binds the name `i`, not its value.
        constraint = lambda w: spectral_norm(w, 1, "layer_%d_u" % i)  # noqa: B023, E731, UP031
        hidden = v1.layers.dense(hidden, width, activation=tf.nn.relu, kernel_constraint=constraint)
    return hidden


def with_opnorm(hidden, widths):
    """Return the same network with one `opnorm.tf1.SpectralNorm` for all layers."""
    constraint = opnorm.tf1.SpectralNorm()
    for width in widths:
        hidden = v1.layers.dense(hidden, width, activation=tf.nn.relu, kernel_constraint=constraint)
    return hidden


def true_sigmas(build, widths):
    """Return the kernels' norms, by float64 SVD, after some steps of Adam."""
    data = np.random.default_rng(0).standard_normal((64, 20)).astype("float32")
    with tf.Graph().as_default():
        v1.set_random_seed(0)
        inputs = v1.placeholder(tf.float32, [None, 20])
        loss = tf.reduce_mean((build(inputs, widths) - 1.0) ** 2)
        update = v1.train.AdamOptimizer(1e-2).minimize(loss)
        kernels = [v for v in v1.trainable_variables() if v.op.name.endswith("kernel")]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(STEPS):
                session.run(update, {inputs: data})
            return tuple(float(np.linalg.svd(k.astype("float64"))[1][0]) for k in session.run(kernels))


def measure(name, build, widths):
    """Return the row of one network."""
    try:
        return Row(name, widths, sigmas=true_sigmas(build, widths))
    except ValueError as error:
        return Row(name, widths, error=f"ValueError: {error}")


def main():
    """Print one table, sigma being 1 where the constraint works; return its rows."""
    rows = [
        measure(name, build, widths)
        for widths in [(32, 32, 32), (32, 16, 8)]
        for name, build in [("the recipe", recipe), ("opnorm.tf1", with_opnorm)]
    ]
    print(f"{'constraint':<12}{'widths':<14}sigma of each kernel after {STEPS} steps (target 1)")
    for row in rows:
        outcome = row.error or "  ".join(f"{s:.4f}" for s in row.sigmas)
        print(f"{row.constraint:<12}{', '.join(map(str, row.widths)):<14}{outcome}")
    return rows


if __name__ == "__main__":
    main()
