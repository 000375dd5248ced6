"""Bounds of dense networks beside LipSDP's optimum and ECLipsE-Fast, and the table of `benchmarks/README.md`.

    python benchmarks/networks.py [--order 130] [--repeats 3] [--depth 64] [--width 128]

It wants `clarabel` (a solver of semidefinite programs, for LipSDP), `eclipse-nn` (which needs `torch` and `cvxpy`) and
`scikit-learn` (digits and a trainer); what is not installed has empty cells, or no row.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from tables import write_table

from opnorm.bounds.deadlines import Deadline
from opnorm.networks.bound import TIGHTENING
from opnorm.networks.sector_bounds import bound_chain

HEADER = [
    "network", "slopes", "product", "ECLipsE-Fast", "LipSDP", "opnorm", "opnorm / LipSDP", "solver", "opnorm", "faster",
]  # fmt: skip
SOLVED = ("Status.Solved", "Solved", "AlmostSolved")
Slopes = tuple[float, float]


class Network(NamedTuple):
    """A chain of matrices, (outputs, inputs) each, and the slopes of the activation between them."""

    name: str
    matrices: list[np.ndarray]
    slopes: Slopes

    @property
    def order(self) -> int:
        """The order of LipSDP's matrix."""
        return sum(W.shape[1] for W in self.matrices)


def package(name: str) -> Any:
    """Return a package, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: what needs it is left out", flush=True)
        return None


def lipsdp(network: Network, clarabel: Any) -> float | None:
    """Return the optimum of LipSDP with one multiplier a neuron by Clarabel, None where the solver does not end well.

    min s over T >= 0 such that s X_0 - W_n^T W_n - sum_k t_k (l_k r_k^T + r_k l_k^T) is semidefinite, as the upper
    triangle by columns, off its diagonal times sqrt(2).
    """
    sizes = [W.shape[1] for W in network.matrices]
    order, starts = network.order, np.cumsum([0, *sizes])
    columns, rows = np.tril_indices(order)  # the upper triangle, column by column
    weights = np.where(rows == columns, 1.0, np.sqrt(2))

    def packed(M: np.ndarray) -> np.ndarray:
        return M[rows, columns] * weights

    unit = np.zeros((order, order))
    unit[: sizes[0], : sizes[0]] = np.eye(sizes[0])
    found = [packed(unit)]
    low, high = network.slopes
    for k, W in enumerate(network.matrices[:-1]):
        for r, row in enumerate(W):
            left, right = np.zeros(order), np.zeros(order)
            left[starts[k] : starts[k + 1]], right[starts[k] : starts[k + 1]] = -low * row, high * row
            left[starts[k + 1] + r], right[starts[k + 1] + r] = 1.0, -1.0
            found.append(-packed(np.outer(left, right) + np.outer(right, left)))
    lost = np.zeros((order, order))
    lost[starts[-2] :, starts[-2] :] = -network.matrices[-1].T @ network.matrices[-1]
    count = len(found)
    A = sparse.vstack([-sparse.csc_matrix(np.array(found).T), -sparse.eye(count).tocsr()[1:]]).tocsc()
    b = np.concatenate([packed(lost), np.zeros(count - 1)])
    cones = [clarabel.PSDTriangleConeT(order), clarabel.NonnegativeConeT(count - 1)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    objective = np.eye(1, count)[0]
    solution = clarabel.DefaultSolver(sparse.csc_matrix((count, count)), objective, A, b, cones, settings).solve()
    return float(np.sqrt(solution.x[0])) if str(solution.status) in SOLVED else None


def eclipse_fast(network: Network, eclipse: Any) -> float:
    """Return the bound of `eclipse-nn`, in float64, which proves nothing in floating point."""
    torch = importlib.import_module("torch")
    weights = [torch.tensor(W, dtype=torch.float64) for W in network.matrices]
    low, high = network.slopes
    ends = [low] * (len(weights) - 1), [high] * (len(weights) - 1)
    estimator = eclipse.LipConstEstimator(weights=weights, alphas=ends[0], betas=ends[1])
    return float(estimator.estimate("ECLipsE_Fast"))


def ours(network: Network) -> float | None:
    slopes = [network.slopes] * (len(network.matrices) - 1)
    return bound_chain(network.matrices, slopes, Deadline.after(TIGHTENING))


def product(network: Network) -> float:
    steepest = max(map(abs, network.slopes))
    norms = [np.linalg.norm(W, 2) for W in network.matrices]
    return float(np.prod(norms) * steepest ** (len(norms) - 1))


def random(dims: tuple[int, ...], slopes: Slopes = (0.0, 1.0), seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    pairs = pairwise(dims)
    matrices = [rng.standard_normal((out, inputs)) / np.sqrt(inputs) for inputs, out in pairs]
    text = "-".join(map(str, dims)) if len(dims) < 8 else f"{len(dims) - 1} x {dims[1]}"
    return Network(f"random {text}", matrices, slopes)


def trained(hidden: tuple[int, ...], sklearn: Any) -> Iterator[Network]:
    """Yield a network trained on the digits: the logit of the digit 0, then all ten."""
    datasets, networks = (
        importlib.import_module(f"{sklearn.__name__}.{part}") for part in ("datasets", "neural_network")
    )
    images, labels = datasets.load_digits(return_X_y=True)
    model = networks.MLPClassifier(hidden, random_state=0, max_iter=400, early_stopping=True).fit(images / 16, labels)
    matrices = [W.T for W in model.coefs_]
    text = "-".join(map(str, (64, *hidden)))
    yield Network(f"digits {text}-1", [*matrices[:-1], matrices[-1][:1]], (0.0, 1.0))
    yield Network(f"digits {text}-10", matrices, (0.0, 1.0))


def networks(deepest: int, widest: int) -> Iterator[Network]:
    sklearn = package("sklearn")
    for hidden in ((32,), (32, 32)):
        yield from trained(hidden, sklearn) if sklearn is not None else ()
        yield random((64, *hidden, 1))
        yield random((64, *hidden, 10))
    for slopes in ((0.01, 1.0), (0.2, 1.0), (0.5, 1.0), (0.0, 0.25)):
        yield random((20, 30, 30, 5), slopes)
    for depth in (2, 4, 8, 16, 32, 64):
        for width in (16, 64, 128):
            if depth <= deepest and width <= widest:
                yield random((width,) * depth + (10,))


def timed(function: Callable[[], float | None], limit: bool = True) -> tuple[float, float | None]:
    begin = time.perf_counter()
    found = function() if limit else None
    return time.perf_counter() - begin, found


def row(network: Network, arguments: argparse.Namespace, clarabel: Any, eclipse: Any) -> list[str]:
    """Return the row of one network; the solver and opnorm in turn."""
    solves = clarabel is not None and network.order <= arguments.order
    pairs = [
        (timed(lambda: lipsdp(network, clarabel), solves), timed(lambda: ours(network)))
        for _ in range(arguments.repeats)
    ]
    optimum, bound = pairs[0][0][1], pairs[0][1][1]
    seconds = [statistics.median(pair[k][0] for pair in pairs) for k in (0, 1)]
    ratio = statistics.median(a / b for (a, _), (b, _) in pairs)
    fast = None if eclipse is None else eclipse_fast(network, eclipse)
    solved = optimum is not None and bound is not None
    cells = [
        network.name,
        "[{:g}, {:g}]".format(*network.slopes),
        *map(shown, (product(network), fast, optimum, bound)),
    ]
    cells += [f"{bound / optimum:.6f}", f"{seconds[0]:.2f} s"] if solved else ["", ""]
    cells += [f"{seconds[1]:.3f} s", f"{ratio:.0f} x" if solved else ""]
    print(*cells, flush=True)
    return cells


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", type=int, default=130, help="largest order of LipSDP's matrix that is solved")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=64, help="of the random networks, at most")
    parser.add_argument("--width", type=int, default=128, help="of the random networks, at most")
    arguments = parser.parse_args()
    clarabel, eclipse = package("clarabel"), package("eclipse_nn")
    chosen = networks(arguments.depth, arguments.width)
    write_table("networks", HEADER, [row(network, arguments, clarabel, eclipse) for network in chosen])


if __name__ == "__main__":
    main()
