"""Fast estimates from below of a symbol's norm at many frequencies: they decide what is worth proving."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from opnorm.bounds.cells import Cells
from opnorm.bounds.certificates import norm_below
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.forks import blas_section
from opnorm.bounds.memory import Memory
from opnorm.bounds.parallel import in_batches
from opnorm.bounds.symbols import Complex, Symbol
from opnorm.checks import Array

_SMALL = 32  # symbols with a side up to this are decomposed at once; larger ones are bidiagonalized
_THREADS = 8  # at most: each takes a batch's memory
_BYTES = 2**24  # working memory of one batch; several are worked on at a time


def bytes_per_frequency(shape: tuple[int, ...]) -> int:
    """Return the working memory of one frequency, for a symbol whose taps have that shape."""
    groups, count, rows, columns = shape
    apart = 8 * count * rows * columns if groups > 1 else 0
    return 16 * (rows * columns * 4 + count * (rows + columns) * 4) + apart


def batches(symbol: Symbol, memory: Memory) -> tuple[int, int]:
    """Return how many frequencies a batch of matrices has, and how many threads may work on one at a time."""
    each = bytes_per_frequency(symbol.taps.shape)
    size = max(1, _BYTES // each)
    return size, _threads(each * size, memory)


def _vector_batches(symbol: Symbol, memory: Memory) -> tuple[int, int]:
    """Return the same where vectors alone are held: the more frequencies, the better a product uses the taps."""
    _, count, rows, columns = symbol.taps.shape
    each = 64 * count * (rows + columns)
    size = max(1, _BYTES // each)
    return size, _threads(each * size, memory)


def _threads(size: int, memory: Memory) -> int:
    return int(max(1, min(_THREADS, memory.limit // size)))


def estimate_norms(symbol: Symbol, cells: Cells, steps: int, deadline: Deadline, memory: Memory) -> Array:
    """Return estimates of `||M(centre)||` from below, (count,).

    Args:
        symbol: One group, or many with small matrices.
        cells: Where to evaluate it.
        steps: Golub-Kahan steps for large matrices; small ones are exact to rounding.
        deadline: OutOfTimeError is raised when it has passed.
        memory: What all threads together take.
    """
    small = min(symbol.taps.shape[2:]) <= _SMALL
    size, threads = batches(symbol, memory) if small else _vector_batches(symbol, memory)

    def estimate(part: slice) -> Array:
        deadline.check()
        with blas_section():
            return _decomposed(symbol, cells, part) if small else _iterated(symbol, cells.centres[part], steps)

    return np.concatenate(in_batches(estimate, len(cells), size, threads))


def _decomposed(symbol: Symbol, cells: Cells, part: slice) -> Array:
    matrices = symbol.at(cells.groups[part], cells.centres[part])
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.transpose(0, 2, 1)
    largest = np.linalg.eigvalsh(wide @ wide.conj().transpose(0, 2, 1))[:, -1]
    return np.asarray(np.sqrt(np.maximum(largest, 0)))


def _iterated(symbol: Symbol, frequencies: Array, steps: int) -> Array:
    """Bidiagonalize at all frequencies at once, in float32: no matrix is built, one product reads all taps."""
    taps = symbol.single[0]
    phases = symbol.phases(frequencies).astype(np.complex64)[:, :, None]
    count, rows, columns = taps.shape
    draw = np.random.default_rng(0).standard_normal((2, len(frequencies), rows)).astype(np.float32)
    x, _ = _unit(draw[0] + 1j * draw[1])
    y = np.zeros((len(x), columns), dtype=np.complex64)
    bidiagonals = np.zeros((len(x), steps + 1, steps))
    beta: Array = np.zeros((len(x), 1))
    for step in range(steps):
        image = _real_product((phases * x[:, None, :]).reshape(len(x), -1), taps.reshape(-1, columns))
        y, alpha = _unit(image - beta * y)
        back = _real_product(y, taps.reshape(-1, columns).T).reshape(len(x), count, rows)
        x, beta = _unit(np.sum(phases.conj() * back, axis=1) - alpha * x)
        bidiagonals[:, step, step], bidiagonals[:, step + 1, step] = alpha[:, 0], beta[:, 0]
    return np.asarray(np.linalg.svd(bidiagonals, compute_uv=False)[:, 0])


def _unit(rows: Complex) -> tuple[Complex, Array]:
    """Return the rows scaled to length one, and their lengths, (count, 1)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float32).tiny), lengths


def _real_product(x: Complex, matrix: Array) -> Complex:
    """Return `x @ matrix` for complex x and a real matrix, without making the matrix complex."""
    stacked = np.concatenate([x.real, x.imag]) @ matrix
    return np.asarray(stacked[: len(x)] + 1j * stacked[len(x) :])


def climb(symbol: Symbol, group: int, frequency: Array, rounds: int) -> tuple[float, Array, Complex]:
    """Return a proved lower bound of the symbol's supremum, and where it was found.

    From `frequency`, alternate between the largest singular pair there and the frequency that suits the pair best;
    every step raises the norm.

    Returns:
        The bound; the frequency, (axes,); the unit vector x, (rows,), whose image is that long.
    """
    best, place, vector = 0.0, frequency, np.zeros(symbol.taps.shape[2], dtype=np.complex128)
    radius = np.pi / (2 * np.maximum(symbol.degrees, 0.5))
    for _ in range(rounds):
        matrix = symbol.at(np.array([group]), frequency[None])[0]
        x, y = _top_pair(matrix)
        error = float(symbol.evaluation_error[group])
        norm = max(0.0, norm_below(matrix.T, x, float(symbol.frobenius[group]) * len(symbol.exponents)) - error)
        if norm <= best * (1 + 1e-6):  # rounds are cheap, and a bracket of a percent needs no more digits
            break
        best, place, vector = norm, frequency, x
        frequency, radius = _best_frequency(symbol, group, x, y, frequency, radius), radius / 2
    return best, place, vector


def _top_pair(matrix: Complex) -> tuple[Complex, Complex]:
    """Return approximate unit vectors x, y with `x @ matrix` close to `||matrix|| y`."""
    if min(matrix.shape) <= _SMALL:
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        return u[:, 0].conj(), v[0]
    n = len(matrix)
    gram = LinearOperator((n, n), matvec=lambda x: (matrix @ (x @ matrix).conj()).conj(), dtype=np.complex128)
    start = np.random.default_rng(0).standard_normal(n).astype(np.complex128)
    # The value errs by the square of this accuracy: a hundredth of what a bracket of a percent can see.
    x = eigsh(gram, k=1, which="LM", tol=1e-2, v0=start)[1][:, 0]
    y = x @ matrix
    return x, y / max(float(np.linalg.norm(y)), np.finfo(np.float64).tiny)


def _best_frequency(symbol: Symbol, group: int, x: Complex, y: Complex, near: Array, radius: Array) -> Array:
    """Return the point of a small grid around `near` where `|x M(w) y*|` is largest."""
    taps = symbol.taps[group]
    coefficients = (x.real @ taps + 1j * (x.imag @ taps)) @ y.conj()  # in parts: `x @ taps` would copy to complex
    line = np.linspace(-1, 1, 9)
    axes = np.meshgrid(*[line * r for r in radius], indexing="ij")
    points = near + np.stack([a.ravel() for a in axes], axis=1)
    size = max(1, _BYTES // (16 * len(coefficients)))
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    lengths = np.concatenate([np.abs(symbol.phases(part) @ coefficients) for part in parts])
    return np.asarray(points[np.argmax(lengths)])
