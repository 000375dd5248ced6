"""CPU seconds that a constraint or a wrapper adds to the first `fit` of a model, and those of `opnorm.project`.

    python benchmarks/first_step.py [--backend jax] [--model mlp] [--repeats 3]

The first `fit`, of one batch, builds the optimizer, traces and compiles. Every measurement has a process of its own, so
that nothing is compiled before; the backend has started, by a small model of other shapes. CPU seconds count all
threads of the process. The tables show medians over the repeats and go between the markers of `benchmarks/README.md`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from constraint_overhead import BACKENDS
from tables import read_rows, write_rows, write_table

BATCH = 32
MODELS = ("mlp", "cnn", "mobilenet")
PROJECT = "opnorm.project"
CONSTRAINT, SLIDING = "opnorm.SpectralNorm", "opnorm.SpectralNorm, convolution"
WRAPPERS = ("opnorm.SpectralNormalization", "keras SpectralNormalization")


def variants(name):
    return ("none", CONSTRAINT, *([SLIDING] if name == "cnn" else []), *WRAPPERS)


def widths(first, last, count):
    return np.linspace(first, last, count).astype(int).tolist()


def build(name):
    from keras import Input, Sequential, applications, layers

    if name == "mobilenet":
        return applications.MobileNetV3Small((96, 96, 3), weights=None, classes=10, classifier_activation=None)
    if name == "mlp":
        return Sequential([Input((64,)), *(layers.Dense(n, activation="relu") for n in widths(64, 1024, 20))])
    body = [layers.Conv2D(n, 3, activation="relu", padding="same") for n in widths(16, 128, 10)]
    return Sequential([Input((32, 32, 3)), *body, layers.GlobalAveragePooling2D()])


def varied(model, variant):
    """Return `model` with the constraint or the wrappers of `variant`."""
    import keras

    import opnorm

    if variant in (CONSTRAINT, SLIDING):
        opnorm.constrain(model, opnorm.SpectralNorm(operator="convolution" if variant == SLIDING else "matrix"))
    if variant not in WRAPPERS:
        return model
    wrap = (opnorm if variant.startswith("opnorm") else keras.layers).SpectralNormalization
    taken = (keras.layers.Dense, keras.layers.Conv2D)  # Keras's wrapper takes depthwise kernels for the wrong matrix

    def copy(layer):
        fresh = type(layer).from_config(layer.get_config())
        return wrap(fresh) if type(layer) in taken else fresh

    return keras.models.clone_model(model, clone_function=copy)


def seconds(action):
    """Return the wall and the CPU seconds that `action()` takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return [time.perf_counter() - wall, time.process_time() - cpu]


def first_fit(model):
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).standard_normal((BATCH, *model.input_shape[1:]), dtype="float32")
    return seconds(lambda: model.fit(images, np.arange(BATCH) % 10, batch_size=BATCH, verbose=0))


def project(model):
    import opnorm

    opnorm.project(model)
    model.get_weights()  # JAX computes while Python goes on: wait


def measure(name, variant):
    """Return wall and CPU seconds: of the first `fit`, or of the first `project` and then of the second."""
    import keras

    keras.utils.set_random_seed(0)
    first_fit(keras.Sequential([keras.Input((5,)), keras.layers.Dense(11)]))
    if variant != PROJECT:
        return first_fit(varied(build(name), variant))
    model = varied(build(name), CONSTRAINT)
    return seconds(lambda: project(model)) + seconds(lambda: project(model))


def measure_or_tell(name, variant):
    """Return what `measure` does, or the type of its error."""
    try:
        return measure(name, variant)
    except Exception as error:
        return type(error).__name__


def in_own_process(backend, name, variant):
    """Return what `measure_or_tell` does in a fresh process on `backend`."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--model", name, "--variant", variant, "--rows", str(rows)]
        code = subprocess.run(command, env=environment).returncode
        found = f"exit code {code}" if code else read_rows(rows)[0]
    print(backend, name, variant, found, file=sys.stderr, flush=True)
    return found


def medians(runs):
    """Return the median of each figure over the runs, or the error of a run that failed."""
    errors = [run for run in runs if isinstance(run, str)]
    return errors[0] if errors else np.median(runs, axis=0)


def fit_rows(backend, name, repeats):
    runs = [[in_own_process(backend, name, variant) for variant in variants(name)] for _ in range(repeats)]
    found = [medians(of_one) for of_one in zip(*runs, strict=True)]
    return [[backend, name, v, *fit_cells(f, found[0])] for v, f in zip(variants(name), found, strict=True)]


def fit_cells(found, none):
    if isinstance(found, str):
        return [found, ""]
    return [f"{found[1]:.1f}", "" if isinstance(none, str) else f"{found[1] - none[1]:.1f}"]


def project_row(backend, repeats):
    found = medians([in_own_process(backend, "mobilenet", PROJECT) for _ in range(repeats)])
    return [backend, *([found, "", "", ""] if isinstance(found, str) else [f"{value:.2f}" for value in found])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: all three")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all; `project` goes with mobilenet")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        return write_rows(options.rows, [measure_or_tell(options.model[0], options.variant)])
    backends, models = options.backend or BACKENDS, options.model or MODELS
    rows = [row for backend in backends for name in models for row in fit_rows(backend, name, options.repeats)]
    write_table("first_step", ("backend", "model", "variant", "CPU s of the first fit", "minus none"), rows)
    if "mobilenet" in models:
        rows = [project_row(backend, options.repeats) for backend in backends]
        write_table("first_project", ("backend", "first: wall s", "CPU s", "second: wall s", "CPU s"), rows)
    return None


if __name__ == "__main__":
    main()
