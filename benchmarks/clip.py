"""Clipping by `opnorm.SpectralClip` against U min(S, c) V^T by the same backend's SVD.

Run as `python benchmarks/clip.py`: one process for each backend, pairs in turn, medians of their ratios.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from tables import read_rows, write_rows, write_table

PAIRS = 7
GOAL = 2.5
LARGE = (512, 512), (2048, 512)
SMALL = ((128, 128),)  # XLA's SVD of a larger kernel takes minutes on a CPU
CASES = ("jax", "jit", LARGE), ("torch", "eager", LARGE), ("tensorflow", "graph", LARGE), ("tensorflow", "XLA", SMALL)


def compiled(function, way):
    if way == "jit":
        import jax

        return jax.jit(function)
    if way == "eager":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=way == "XLA")


def seconds(function, kernel):
    from keras import ops

    start = perf_counter()
    result = ops.convert_to_numpy(function(kernel))
    return perf_counter() - start, result


def by_svd(kernel):
    from keras import ops

    u, s, vt = ops.svd(kernel, full_matrices=False)
    return (u * ops.minimum(s, 1.0)) @ vt


def decomposed(kernel):
    """Return eigenvalues of the Gram matrix and, added up, its eigenvectors: the least that clipping by them takes."""
    from keras import ops

    values, vectors = ops.linalg.eigh(ops.transpose(kernel) @ kernel)
    return values + ops.sum(vectors)


def kernel_of(shape):
    """Return a Gaussian kernel of norm 2: half of its singular values, or more, are above 1."""
    kernel = np.random.default_rng(0).standard_normal(shape)
    return (2 / np.linalg.norm(kernel, 2) * kernel).astype("float32")


def truth(kernel):
    u, s, vt = np.linalg.svd(kernel.astype("float64"), full_matrices=False)
    return (u * np.minimum(s, 1)) @ vt


def measure(backend, way, shape):
    """Return one row: the medians of both, of the ratio, and the error in spectral norm."""
    import opnorm

    kernel = kernel_of(shape)
    ways = [compiled(function, way) for function in (opnorm.SpectralClip(1.0).project, by_svd, decomposed)]
    first = [seconds(function, kernel)[1] for function in ways]  # compiled
    error = np.linalg.norm(first[0] - truth(kernel), 2)
    times = [[seconds(function, kernel)[0] for function in ways] for _ in range(PAIRS)]
    ratio = median(svd / clip for clip, svd, _ in times)
    clip, svd, eigh = (median(column) for column in zip(*times, strict=True))
    name = f"{backend}, {way}, {shape[0]} x {shape[1]}"
    goal = f">= {GOAL}" + (": missed" if ratio < GOAL else "")
    return [
        name,
        f"{1e3 * clip:.0f} ms",
        f"{1e3 * svd:.0f} ms",
        f"{1e3 * eigh:.0f} ms",
        f"{ratio:.1f}",
        f"{error:.0e}",
        goal,
    ]


def run(backend, way, shape):
    """Return the row that a fresh process measures."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.json")
        command = [sys.executable, __file__, backend, way, *map(str, shape), path]
        subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, check=True)
        return read_rows(path)[0]


def main():
    rows = [run(backend, way, shape) for backend, way, shapes in CASES for shape in shapes]
    header = "backend, kernel", "SpectralClip", "by SVD", "Gram and eigh alone", "SVD / SpectralClip", "error", "goal"
    write_table("clip", header, rows)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        backend, way, rows, columns, path = sys.argv[1:]
        write_rows(path, [measure(backend, way, (int(rows), int(columns)))])
