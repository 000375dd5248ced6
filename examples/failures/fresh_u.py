"""Three short cuts with `u`: a fresh one at each call, one for all layers, and `call` instead of `__call__`.

One iteration finds the norm only from a `u` that is nearly right, as it is after many steps with the same kernel. From
a random start it finds too little, so dividing by it leaves too much. One `u` for all layers is a random start
for each of them. And a `keras.constraints.Constraint` that overrides `call` overrides nothing: Keras uses `__call__`.
opnorm keeps one `u` for each kernel, and iterates longer where one step still moves sigma, as at a cold start.

Run: python examples/failures/fresh_u.py
"""

from _common import dense, measured, network, on_each_backend, show, train, true_sigma, worst_sigma

if __name__ == "__main__":
    on_each_backend(__file__)

import keras
from keras import ops

import opnorm

LARGE = (512, 512)


def one_iteration(w, u):
    """Return w / sigma and the next `u`: one step of power iteration, as in the paper."""
    v = ops.normalize(ops.matmul(w, u), axis=0)
    u = ops.normalize(ops.matmul(ops.transpose(w), v), axis=0)
    return w / ops.sum(v * ops.matmul(w, u)), ops.stop_gradient(u)


class FreshU(keras.constraints.Constraint):
    """Draws `u` at each call."""

    def __call__(self, w):
        """Return the constrained kernel."""
        w = ops.convert_to_tensor(w)
        return one_iteration(w, keras.random.normal((w.shape[-1], 1)))[0]


class SharedU(keras.constraints.Constraint):
    """Keeps one `u`; the same object constrains all layers."""

    def __init__(self):
        self.u = keras.Variable(keras.random.normal((32, 1)), trainable=False)

    def __call__(self, w):
        """Return the constrained kernel."""
        w, u = one_iteration(ops.convert_to_tensor(w), self.u)
        self.u.assign(u)
        return w


class Call(keras.constraints.Constraint):
    """Overrides `call`, as one does in a layer."""

    def call(self, w):
        """Return the constrained kernel; nobody calls this."""
        return FreshU()(w)


def after_training(constraint):
    """Return the sigma of a network whose two hidden layers have this one constraint."""
    model = network(lambda: dense(constraint))
    train(model)
    return "after 40 steps of fit", worst_sigma(model)


def after_first_update(constraint):
    """Return the sigma that the first update makes of a large random kernel."""
    keras.utils.set_random_seed(0)
    kernel = keras.Variable(keras.random.normal(LARGE))
    kernel.constraint = constraint
    keras.optimizers.SGD().apply([ops.zeros(LARGE)], [kernel])
    return "after the first update of a 512x512 kernel", true_sigma(kernel)


def rows():
    """Return one row for each short cut, and opnorm's."""
    return [
        measured("a fresh u, cold", lambda: after_first_update(FreshU())),
        measured("opnorm.SpectralNorm, cold", lambda: after_first_update(opnorm.SpectralNorm())),
        measured("a fresh u at each call", lambda: after_training(FreshU())),
        measured("one u for all layers", lambda: after_training(SharedU())),
        measured("call instead of __call__", lambda: after_training(Call())),
        measured("opnorm.SpectralNorm, one object for all layers", lambda: after_training(opnorm.SpectralNorm())),
    ]


if __name__ == "__main__":
    show(f"Short cuts with u, {keras.backend.backend()}", rows())
