"""What holds for every Keras constraint: averages, accumulated gradients and loaded weights pass it by.

`MaxNorm(1)` bounds each column, not the spectral norm. `use_ema=True` averages the kernels before the constraint acts
and writes the average back at the end. With `gradient_accumulation_steps` the constraint acts at each micro-step, so
the kernel moves where no update is made. `set_weights` asks no constraint at all.
opnorm projects the averages, leaves micro-steps alone, and has `opnorm.project(model)` for loaded weights.

Run: python examples/failures/keras_constraints.py
"""

from _common import dense, measured, network, on_each_backend, show, train, true_sigma, worst_sigma

if __name__ == "__main__":
    on_each_backend(__file__)

import keras
import numpy as np
from keras import ops

import opnorm

SHAPE = (20, 32)


class Exact(keras.constraints.Constraint):
    """Divides by the largest singular value: exact, costly, and no state to lose."""

    def __call__(self, w):
        """Return the constrained kernel."""
        w = ops.convert_to_tensor(w)
        return w / ops.svd(w, compute_uv=False)[0]


def trained(constraint, **options):
    """Return the sigma after training with these options of the optimizer."""
    model = network(lambda: dense(constraint), keras.optimizers.Adam(**options))
    train(model)
    column = max(float(np.linalg.norm(layer.get_weights()[0], axis=0).max()) for layer in model.layers[:-1])
    return f"largest column {column:.2f}", worst_sigma(model), column


def accumulated(constraint):
    """Return how far three micro-steps move the kernel, and its sigma after the fourth, the update."""
    draw = np.random.default_rng(0)
    kernel = keras.Variable(draw.standard_normal(SHAPE).astype("float32"))
    kernel.constraint = constraint
    start = ops.convert_to_numpy(kernel).copy()
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=4)
    optimizer.build([kernel])
    for _ in range(3):
        optimizer.apply([ops.convert_to_tensor(draw.standard_normal(SHAPE).astype("float32"))], [kernel])
    moved = float(np.linalg.norm(ops.convert_to_numpy(kernel) - start) / np.linalg.norm(start))
    optimizer.apply([ops.ones(SHAPE)], [kernel])
    return f"moved by {moved:.0%} of its norm before any update", true_sigma(kernel), moved


def loaded(constraint, then=lambda model: None):
    """Return the sigma after `set_weights`, and after what `then` does."""
    model = network(lambda: dense(constraint))
    model.set_weights([3 * w for w in model.get_weights()])
    then(model)
    return "after set_weights", worst_sigma(model)


def rows():
    """Return one row for each way past a constraint, each beside opnorm's."""
    exact, ours = Exact(), opnorm.SpectralNorm()
    return [
        measured("MaxNorm(1, axis=0)", lambda: trained(keras.constraints.MaxNorm(1.0, axis=0))),
        measured("opnorm", lambda: trained(ours)),
        measured("MaxNorm(1, axis=0), use_ema", lambda: trained(keras.constraints.MaxNorm(1.0, axis=0), use_ema=True)),
        measured("exact spectral norm, use_ema", lambda: trained(exact, use_ema=True)),
        measured("opnorm, use_ema", lambda: trained(ours, use_ema=True)),
        measured("exact spectral norm, accumulation", lambda: accumulated(exact)),
        measured("opnorm, accumulation", lambda: accumulated(ours)),
        measured("exact spectral norm, set_weights", lambda: loaded(exact)),
        measured("opnorm, set_weights and opnorm.project", lambda: loaded(ours, opnorm.project)),
    ]


if __name__ == "__main__":
    show(f"Keras constraints, {keras.backend.backend()}", rows())
