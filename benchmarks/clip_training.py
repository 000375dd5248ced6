"""Training step of the demo's network with `opnorm.SpectralClip`, at several margins, over the step without it.

Run as `python benchmarks/clip_training.py`: one process for each backend, epochs of all variants in turn after one that
compiles; the ratio of an epoch's mean step to the one without a constraint in its round, medians over the rounds.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from tables import read_rows, write_rows, write_table

ROUNDS, BATCH, GOAL = 9, 64, 2.0
MARGINS = (0.0, 0.05, 0.1)  # the last is the demo's: the goal is meant for it


def network(constraint):
    import keras

    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(n, activation="relu", kernel_constraint=constraint) for n in (256, 256)]
    ends = [keras.layers.Dense(10, kernel_constraint=constraint), keras.layers.Rescaling(10.0)]
    model = keras.Sequential([keras.Input((784,)), *body, *ends])
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def measure():
    """Return the rows of this process's backend."""
    import keras
    from constraint_overhead import digits

    import opnorm

    images, labels = digits(4000)
    images -= images.mean(0)
    models = {"no constraint": network(None)}
    models |= {f"margin={margin:g}": network(opnorm.SpectralClip(1.0, margin=margin)) for margin in MARGINS}
    times = {name: [] for name in models}
    for _ in range(ROUNDS + 1):
        for name, model in models.items():
            start = perf_counter()
            model.fit(images, labels, batch_size=BATCH, verbose=0)
            times[name].append((perf_counter() - start) * BATCH / len(images))
    base = np.array(times.pop("no constraint")[1:])
    return [
        row(keras.backend.backend(), name, np.array(seconds[1:]), base, models[name]) for name, seconds in times.items()
    ]


def row(backend, name, seconds, base, model):
    from keras import ops

    kernels = [ops.convert_to_numpy(layer.kernel).astype("float64") for layer in model.layers[:3]]
    norm, ratio = max(np.linalg.norm(kernel, 2) for kernel in kernels), float(np.median(seconds / base))
    goal = f"<= {GOAL:g}" + (": missed" if ratio > GOAL else "") if name == f"margin={MARGINS[-1]:g}" else ""
    return [backend, name, f"{1e3 * np.median(seconds):.2f}", f"{ratio:.2f}", f"{norm:.4f}", goal]


def run(backend):
    """Return the rows that a fresh process measures."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.json")
        subprocess.run([sys.executable, __file__, path], env={**os.environ, "KERAS_BACKEND": backend}, check=True)
        return read_rows(path)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        header = (
            "backend",
            "SpectralClip(1.0, ...)",
            "ms a step",
            "over no constraint",
            "largest norm at the end",
            "goal",
        )
        write_table(
            "clip_training", header, [row for backend in ("tensorflow", "jax", "torch") for row in run(backend)]
        )
    else:
        write_rows(sys.argv[1], measure())
