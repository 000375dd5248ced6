"""Time certified bounds against uncertified singular values, and write the table of `benchmarks/README.md`."""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import h5py
import numpy as np
from tables import write_table

from opnorm.bounds.brackets import spectral_norm
from opnorm.operators.convolution import Convolution

HEADER = ["what", "opnorm", "reference", "opnorm / reference", "upper / lower - 1", "goal"]
GRID = 32  # the recipe's frequencies on each axis
TIMED = 8  # of its GRID**2 singular value decompositions, the rest takes as long


def timed(function: Callable[[], object]) -> tuple[float, object]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def seconds(function: Callable[[], object]) -> float:
    return timed(function)[0]


def compare(name: str, x: object, reference: Callable[[], float], runs: int, goal: str) -> list[str]:
    """Return the row of one comparison; `reference` returns the seconds that it takes."""
    pairs = [(*timed(lambda: spectral_norm(x)), reference()) for _ in range(runs)]
    ours, bounds, theirs = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    lower, upper = bounds[0]
    width = f"{upper / lower - 1:.1e}"
    print(name, f"{ratio:.3f}", width, flush=True)
    return [name, f"{statistics.median(ours):.3g} s", f"{statistics.median(theirs):.3g} s", f"{ratio:.3f}", width, goal]


def matrices() -> Iterator[list[str]]:
    rng = np.random.default_rng(0)
    for rows, columns in ((1024, 1024), (2048, 512)):
        matrix = rng.standard_normal((rows, columns)).astype(np.float32)

        def svd(matrix: np.ndarray = matrix) -> float:
            return seconds(lambda: np.linalg.svd(matrix.astype(np.float64), compute_uv=False))

        yield compare(f"float32 matrix {rows} x {columns}", matrix, svd, 9, "<= 0.4, 1e-6")


def fourier(kernel: np.ndarray) -> float:
    """Return the seconds of the recipe in circulation: FFT on a grid, then all singular values."""
    begin = time.perf_counter()
    symbols = np.fft.fft2(kernel, (GRID, GRID), axes=(0, 1)).reshape(GRID**2, *kernel.shape[-2:])
    transform = time.perf_counter() - begin
    some = symbols[:: GRID**2 // TIMED].copy()
    del symbols
    return transform + seconds(lambda: np.linalg.svd(some, compute_uv=False)) * GRID**2 / TIMED


def convolution(name: str, kernel: np.ndarray, runs: int, goal: str) -> list[str]:
    return compare(name, Convolution(kernel), lambda: fourier(kernel), runs, goal)


def trained(path: str | None) -> list[np.ndarray]:
    """Return the kernels of VGG-16's convolutions from a Keras file, none without one."""
    if path is None:
        return []
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        return [file[n][()] for n in names if n.startswith("block") and getattr(file[n], "ndim", 0) == 4]


def alone(kernels: list[np.ndarray]) -> Iterator[list[str]]:
    """Yield the rows of opnorm by itself; to run first, because the recipe needs gigabytes."""
    if kernels:
        total = seconds(lambda: [spectral_norm(Convolution(kernel)) for kernel in kernels])
        yield [f"all {len(kernels)} convolutions of VGG-16", f"{total:.3g} s", "", "", "1.0e-02", "<= 60 s"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        yield ["peak memory of the process after these", f"{peak:.2f} GiB", "", "", "", "<= 1 GiB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vgg", metavar="FILE", help="trained VGG-16 kernels, a .weights.h5")
    kernels = trained(parser.parse_args().vgg)
    rows = [*alone(kernels), *matrices()]
    for i, kernel in enumerate(k for k in kernels if k.shape == (3, 3, 512, 512)):
        rows.append(convolution(f"VGG-16 3 x 3 x 512 x 512, number {i + 1}", kernel, 1, "<= 0.05, 1e-2"))
    gaussian = np.random.default_rng(0).standard_normal((3, 3, 512, 512)).astype(np.float32)
    rows.append(convolution("Gaussian 3 x 3 x 512 x 512", gaussian, 1, "<= 0.25, 1e-2"))
    write_table("bounds", HEADER, rows)


if __name__ == "__main__":
    main()
