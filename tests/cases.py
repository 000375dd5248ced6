"""The registry of the laws: every constraint, with what it makes of singular values, and kernels of every kind.

A new constraint is one line in `CONSTRAINTS`, or in `STATELESS`; it then has to obey every law of `tests/keras`.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

import keras
import numpy as np

import opnorm


class Case(NamedTuple):
    build: Callable[..., Any]  # the constraint of (c, **options)
    values: Callable[[np.ndarray, float], np.ndarray]  # what must become of singular values, largest first

    def seeded(self, c):
        """Return the constraint of `c`, made reproducible where it draws vectors."""
        return self.build(c, **{"seed": 1} if "seed" in signature(self.build).parameters else {})

    def options(self, options):
        """Return those of the `options` that the constraint takes."""
        taken = signature(type(self.build(1.0))).parameters
        return {name: value for name, value in options.items() if name in taken}

    @property
    def fills(self):
        """Whether a norm below c is brought up to c."""
        return bool(self.values(np.array([0.5]), 1.0)[0] == 1.0)


CONSTRAINTS = {  # with vectors of their own
    "SpectralNorm": Case(opnorm.SpectralNorm, lambda s, c: c * s / s[0]),
    "MaxSpectralNorm": Case(opnorm.MaxSpectralNorm, lambda s, c: s / max(1.0, s[0] / c)),
}
STATELESS = {
    "SpectralClip": Case(opnorm.SpectralClip, np.minimum),
}
EVERY = CONSTRAINTS | STATELESS
UNTARGETED = {
    "Orthogonal": Case(lambda c, **options: opnorm.Orthogonal(**options), lambda s, c: np.float64(s > 1e-3 * s[0])),
}
ALL = EVERY | UNTARGETED
CAPS = [name for name, case in EVERY.items() if not case.fills]
DTYPES = ["float32", "bfloat16"] + ["float64"] * (keras.backend.backend() != "jax")  # JAX has it only by a global flag


def gaussian(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype("float32")


def with_values(rows, columns, values, seed=0):
    """Return a float32 matrix with these singular values and random singular vectors."""
    u, _ = np.linalg.qr(gaussian(rows, rows, seed=seed).astype("float64"))
    v, _ = np.linalg.qr(gaussian(columns, columns, seed=seed + 1).astype("float64"))
    return (u[:, : len(values)] * values @ v[:, : len(values)].T).astype("float32")


def zero_rows(kernel, every):
    kernel = kernel.copy()
    kernel[::every] = 0
    return kernel


def block_diagonal(small, large):
    return np.diag([small] * 8 + [large] * 4).astype("float32")


KERNELS = {  # few shapes, since JAX compiles for each
    "tall": gaussian(12, 8),
    "wide": gaussian(8, 12),
    "convolution": gaussian(3, 3, 4, 8),
    "one_entry": gaussian(1, 1),
    "one_row": gaussian(1, 9),
    "one_column": gaussian(9, 1),
    "vector": gaussian(9),
    "rank_one": with_values(12, 8, [3.0]),
    "nearly_repeated": with_values(12, 8, [4.0, 3.996, 3.996, 2.0, 2.0]),
    "repeated": with_values(12, 8, [3.0] * 8),
    "zero_rows": zero_rows(gaussian(12, 8), every=2),
    "block_diagonal": block_diagonal(1.0, 3.0),
    "tiny": 1e-30 * gaussian(12, 8),
    "huge": 1e30 * gaussian(12, 8),
}


def op_by_op(function):
    """Return `function` run eagerly on JAX too, which compiles each loop anew at every call, half a second each.

    That the compiled forms do the same is what the tests with `fit` show.
    """
    if keras.backend.backend() != "jax":
        return function
    import jax

    @wraps(function)
    def run(*args, **options):
        with jax.disable_jit():
            return function(*args, **options)

    return run


def repeated(constraint, kernel, state, updates):
    """Return what `updates` updates make of the same `kernel`, the state carried along: the kernel and the state."""
    update = op_by_op(constraint.update)
    for _ in range(updates):
        result, state = update(kernel, state)
    return result, state


def built_optimizer(variables):
    """Return an optimizer, built on `variables`, that leaves them where they are: what acts is the constraints."""
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(variables)
    return optimizer


@op_by_op
def take_steps(optimizer, variables, steps=1):
    """Apply zero gradients to `variables`, `steps` times."""
    for _ in range(steps):
        optimizer.apply([keras.ops.zeros_like(v.value) for v in variables], variables)
