"""A constraint that keeps `u` in a variable of its own: no framework knows of it.

A `keras.Variable` that a constraint makes belongs to no layer and no optimizer. JAX's training step carries only the
variables of the model and the optimizer, so there the variable cannot be made in the step (ValueError) and, made
beforehand, never changes. On TensorFlow and PyTorch it works until the model is saved: the file leaves it out, so
the restored run goes another way. A constraint that is a `Layer` is saved, but crashes on JAX.
opnorm keeps `u` where momentum is kept: as a variable of the optimizer.

Run: python examples/failures/own_variable.py
"""

import tempfile
from pathlib import Path

from _common import dense, measured, network, on_each_backend, show, train, worst_sigma

if __name__ == "__main__":
    on_each_backend(__file__)

import keras
import numpy as np
from keras import ops

import opnorm


def one_iteration(w, u):
    """Return w / sigma and the next `u`: one step of power iteration, as in the paper."""
    v = ops.normalize(ops.matmul(w, u), axis=0)
    u = ops.normalize(ops.matmul(ops.transpose(w), v), axis=0)
    return w / ops.sum(v * ops.matmul(w, u)), ops.stop_gradient(u)


def first_u():
    """Return a variable for the `u` of a layer 32 wide."""
    return keras.Variable(keras.initializers.RandomNormal(seed=0)((32, 1)), trainable=False)


@keras.saving.register_keras_serializable("failures")
class FirstCall(keras.constraints.Constraint):
    """Makes its variable when it is first called."""

    u = None

    def __call__(self, w):
        """Return the constrained kernel."""
        if self.u is None:
            self.u = first_u()
        w, u = one_iteration(ops.convert_to_tensor(w), self.u)
        self.u.assign(u)
        return w


@keras.saving.register_keras_serializable("failures")
class Beforehand(FirstCall):
    """Makes its variable in the constructor."""

    def __init__(self):
        self.u = first_u()


@keras.saving.register_keras_serializable("failures")
class AsLayer(keras.layers.Layer):
    """Is a layer, so that the model tracks its variable."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.u = self.add_weight(shape=(32, 1), initializer="random_normal", trainable=False)

    def call(self, w):
        """Return the constrained kernel."""
        w, u = one_iteration(ops.convert_to_tensor(w), self.u)
        self.u.assign(u)
        return w


def gap_after_restart(model):
    """Return how far five more steps of `model` and of its saved and loaded copy lead apart."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(path := Path(folder) / "model.keras")
        restored = keras.saving.load_model(path)
    train(model, 5)
    train(restored, 5)
    return max(float(np.abs(a - b).max()) for a, b in zip(model.get_weights(), restored.get_weights(), strict=True))


def outcome(constraint):
    """Return what training makes of the sigmas, and what saving does to the training."""
    model = network(lambda: dense(constraint()))
    u = getattr(model.layers[0].kernel_constraint, "u", None)  # None where it is not made yet, or the optimizer's
    before = u is not None and ops.convert_to_numpy(u).copy()
    train(model)
    moved = "" if u is None else f"u moved by {np.abs(ops.convert_to_numpy(u) - before).max():.1f}; "
    sigma = worst_sigma(model)
    gap = gap_after_restart(model)
    return f"{moved}saved, loaded, 5 steps on: kernels differ by {gap:.1e}", sigma, gap


def rows():
    """Return one row for each place that `u` may be kept."""
    places = [
        ("variable made on first call", FirstCall),
        ("variable made beforehand", Beforehand),
        ("the constraint is a Layer", AsLayer),
        ("opnorm.SpectralNorm", opnorm.SpectralNorm),
    ]
    return [measured(name, lambda c=constraint: outcome(c)) for name, constraint in places]


if __name__ == "__main__":
    show(f"A constraint's own variable, {keras.backend.backend()}", rows())
