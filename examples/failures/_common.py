"""What the scripts here share: one little training problem, the true spectral norm, one table.

Every recipe is asked for spectral norm 1 on the same job: two hidden layers, 40 steps of Adam at its default rate.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

STEPS = 40
BACKENDS = ("tensorflow", "jax", "torch")  # as KERAS_BACKEND has them, and as their packages are named


class Row(NamedTuple):
    """What became of one recipe; `figures` are the numbers that `outcome` quotes, `sigma` is nan where it crashed."""

    name: str
    outcome: str
    sigma: float = float("nan")
    figures: tuple[float, ...] = ()


def on_each_backend(script: str) -> None:
    """Run `script` once for each installed backend and exit; return at once where KERAS_BACKEND names one."""
    if os.environ.get("KERAS_BACKEND"):
        return
    backends = [name for name in BACKENDS if importlib.util.find_spec(name)]
    runs = [subprocess.run([sys.executable, script], env={**os.environ, "KERAS_BACKEND": name}) for name in backends]
    sys.exit(max(run.returncode for run in runs))


def true_sigma(kernel: Any) -> float:
    """Return the spectral norm of `kernel` reshaped to `(-1, kernel.shape[-1])`, by NumPy's SVD in float64."""
    from keras import ops

    matrix = np.asarray(ops.convert_to_numpy(kernel), "float64")
    if not np.isfinite(matrix).all():
        return float("nan")
    return float(np.linalg.svd(matrix.reshape(-1, matrix.shape[-1]), compute_uv=False)[0])


def kernel_of(layer: Any) -> Any:
    """Return the kernel of `layer`, or of the layer that it wraps."""
    inner = getattr(layer, "layer", layer)
    return inner.embeddings if hasattr(inner, "embeddings") else inner.kernel


def worst_sigma(model: Any) -> float:
    """Return the norm furthest from 1 among the kernels of the hidden layers."""
    return max((true_sigma(kernel_of(layer)) for layer in model.layers[:-1]), key=lambda sigma: abs(sigma - 1))


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return 64 inputs of 20 numbers and their targets, the same in every run."""
    draw = np.random.default_rng(0)
    return draw.standard_normal((64, 20)).astype("float32"), draw.standard_normal((64, 4)).astype("float32")


def network(hidden: Callable[[], Any], optimizer: Any = None) -> Any:
    """Return the compiled network; `hidden()` makes each of its two hidden layers, 32 units wide."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((20,)), hidden(), hidden(), keras.layers.Dense(4)])
    model.compile(optimizer or keras.optimizers.Adam(), loss="mse")
    return model


def dense(constraint: Any) -> Any:
    """Return a hidden layer with this constraint."""
    import keras

    return keras.layers.Dense(32, activation="relu", kernel_constraint=constraint)


def train(model: Any, steps: int = STEPS) -> float:
    """Take so many training steps, each on the whole data; return the loss of the last."""
    history = model.fit(*data(), batch_size=64, epochs=steps, shuffle=False, verbose=0)
    return history.history["loss"][-1]


def measured(name: str, measure: Callable[[], tuple[Any, ...]]) -> Row:
    """Return the row of `measure() -> (outcome, sigma, *figures)`, or of the error that the recipe ends in."""
    try:
        outcome, sigma, *figures = measure()
    except Exception as error:  # any error: that the recipe ends in one is the finding
        message = Text.from_ansi(str(error)).plain  # Keras prints parts of it in bold
        return Row(name, f"{type(error).__name__}: {shorten(message, 90, placeholder=' ...')}")
    return Row(name, outcome, sigma, tuple(figures))


def show(title: str, rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table("recipe", "what happens", "true sigma (wanted 1)", title=title)
    for row in rows:
        style = "green" if row.name.startswith("opnorm") else None
        table.add_row(row.name, Text(row.outcome), f"{row.sigma:.4f}", style=style)
    Console().print(table)
