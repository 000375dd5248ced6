"""Bounds of convolutional and residual networks as a whole, beside the product of their norms and LipSDP's optimum.

    python benchmarks/joint_networks.py [--depth 16] [--channels 32] [--trained 8 16 32] [--order 100] [--seconds 10]

Convolutions 3x3 on images of 28x28 with ReLUs between them: He-initialized, or trained on scikit-learn's digits,
enlarged, with PyTorch. Residual blocks `x + B relu(A x)`. Small convolutions with a dense layer behind them, as the
chain of their matrices for the solver. It wants `clarabel` for LipSDP, `torch` and `scikit-learn`
for training; what is not installed has empty cells, or no rows. The product is that of the kernels' proved norms, `1 +
product` for each block; "chains alone" is what inner chains give by themselves.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from networks import SOLVED, package
from networks import Network as Chain
from networks import lipsdp as chain_lipsdp
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator
from tables import write_table

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.records import Geometry, Graph, Node, Weight
from opnorm.networks.bound import network_bound
from opnorm.operators.convolution import Convolution

HEADER = [
    "network",
    "product",
    "chains alone",
    "LipSDP",
    "opnorm",
    "/ product",
    "/ chains",
    "/ LipSDP",
    "solver",
    "opnorm",
]
SIZE = (28, 28)


class Network(NamedTuple):
    """A graph, and for a solver the matrices (A, B) of its dense residual blocks, or all of a chain."""

    name: str
    graph: Graph
    blocks: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    chain: tuple[np.ndarray, ...] = ()  # or those of a chain

    @property
    def order(self) -> float:
        """The order of LipSDP's matrix, inf where it is not solved."""
        if self.chain:
            return sum(W.shape[1] for W in self.chain)
        return len(self.blocks[0][0]) * (len(self.blocks) + 1) if self.blocks else np.inf


def dense(name: str, source: str, W: np.ndarray) -> Node:
    geometry = Geometry("Dense", "matrix (in, out)", lambda values: aslinearoperator(values.T))
    weight = Weight(f"{name}/kernel", W.T.shape, "float64", lambda: W.T, geometry)
    return Node(name, "Dense", (source,), {}, {"kernel": weight})


def conv(name: str, source: str, K: np.ndarray, size: tuple[int, int]) -> Node:
    weight = Weight(f"{name}/kernel", K.shape, "float64", lambda: K, Geometry("Conv2D", "convolution", Convolution))
    options = {"input_shapes": [(None, *size, K.shape[2])], "data_format": "channels_last", "strides": 1}
    return Node(name, "Conv2D", (source,), options, {"kernel": weight})


def relu(name: str, source: str) -> Node:
    return Node(name, "ReLU", (source,), {}, {})


def added(name: str, sources: tuple[str, str], shape: tuple[int, ...]) -> Node:
    return Node(name, "Add", sources, {"input_shapes": [(None, *shape)] * 2}, {})


def stack(kernels: list[np.ndarray]) -> Graph:
    nodes, source = [], "x"
    for i, K in enumerate(kernels):
        nodes += [conv(f"c{i}", source, K, SIZE), relu(f"r{i}", f"c{i}")]
        source = f"r{i}"
    return Graph(tuple(nodes[:-1]), ("x",), (nodes[-2].name,))


def he(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return rng.standard_normal((3, 3, inputs, outputs)) * np.sqrt(2 / (9 * inputs))


def random_stacks(deepest: int, widest: int) -> Iterator[Network]:
    for channels in (8, 16, 32):
        for depth in (2, 4, 8, 16):
            if channels <= widest and depth <= deepest:
                rng = np.random.default_rng(0)
                widths = [1] + [channels] * depth
                kernels = [he(rng, a, b) for a, b in pairwise(widths)]
                yield Network(f"conv 3x3, {channels} channels, depth {depth}, He", stack(kernels))


def small_convolutions(channels: tuple[int, ...], size: tuple[int, int]) -> Network:
    """Return convolutions 3x3 with ReLUs behind them, then ten outputs of a dense layer."""
    rng, nodes, chain, source = np.random.default_rng(0), [], [], "x"
    for i, (a, b) in enumerate(pairwise(channels)):
        K = he(rng, a, b)
        nodes += [conv(f"c{i}", source, K, size), relu(f"r{i}", f"c{i}")]
        chain.append(Convolution(K, size, padding="same") @ np.eye(a * size[0] * size[1]))
        source = f"r{i}"
    W = rng.standard_normal((10, len(chain[-1]))) / np.sqrt(len(chain[-1]))
    shapes = [(None, *size, channels[-1])]
    nodes += [Node("flat", "Flatten", (source,), {"input_shapes": shapes}, {}), dense("y", "flat", W)]
    name = f"conv 3x3, {'-'.join(map(str, channels))} channels, {size[0]}x{size[1]}, dense 10"
    return Network(name, Graph(tuple(nodes), ("x",), ("y",)), chain=(*chain, W))


def trained_stacks(channels: int, deepest: int) -> Iterator[Network]:
    torch, datasets = package("torch"), package("sklearn.datasets")
    for depth in (2, 4, 8, 16) if torch is not None and datasets is not None else ():
        if depth <= deepest:
            kernels, accuracy = train(torch, datasets, channels, depth)
            name = f"conv 3x3, {channels} channels, depth {depth}, digits ({accuracy:.0%})"
            yield Network(name, stack(kernels))


def train(torch: Any, datasets: Any, channels: int, depth: int, epochs: int = 4) -> tuple[list[np.ndarray], float]:
    """Return the kernels of a stack that was trained before a mean over the pixels and a dense layer; its accuracy."""
    torch.manual_seed(0)
    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.nn.functional.interpolate(torch.tensor(images / 16).float().reshape(-1, 1, 8, 8), SIZE, mode="bilinear")
    y, nn = torch.tensor(labels), torch.nn
    layers: list[Any] = []
    for i in range(depth):
        layers += [nn.Conv2d(channels if i else 1, channels, 3, padding=1), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
    model = nn.Sequential(*layers[:-1], nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16 * channels, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1500).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = float((model(x[1500:]).argmax(1) == y[1500:]).float().mean())
    kernels = [m.weight.detach().double().numpy().transpose(2, 3, 1, 0) for m in model if isinstance(m, nn.Conv2d)]
    return kernels, accuracy


def residual_dense(width: int, count: int) -> Network:
    rng = np.random.default_rng(0)
    nodes, source, blocks = [], "x", []
    for i in range(count):
        A, B = rng.standard_normal((2, width, width)) / np.sqrt(width)
        blocks.append((A, B))
        nodes += [dense(f"a{i}", source, A), relu(f"r{i}", f"a{i}"), dense(f"b{i}", f"r{i}", B)]
        nodes.append(added(f"s{i}", (source, f"b{i}"), (width,)))
        source = f"s{i}"
    graph = Graph(tuple(nodes), ("x",), (source,))
    return Network(f"residual dense, width {width}, {2 * count} layers", graph, tuple(blocks))


def residual_conv(channels: int, count: int, after: bool) -> Network:
    rng, size = np.random.default_rng(0), (16, 16)
    nodes, source = [], "x"
    for i in range(count):
        A, B = he(rng, channels, channels), he(rng, channels, channels)
        nodes += [conv(f"a{i}", source, A, size), relu(f"r{i}", f"a{i}"), conv(f"b{i}", f"r{i}", B, size)]
        nodes.append(added(f"s{i}", (source, f"b{i}"), (*size, channels)))
        source = f"s{i}"
        if after and i < count - 1:
            nodes.append(relu(f"t{i}", source))
            source = f"t{i}"
    text = ", ReLU after each sum" if after else ""
    graph = Graph(tuple(nodes), ("x",), (source,))
    return Network(f"residual conv, {channels} channels, 16x16, {2 * count} layers{text}", graph)


def lipsdp(network: Network, clarabel: Any) -> float | None:
    """Return the optimum of LipSDP for dense residual blocks by Clarabel, as `networks.lipsdp` does for chains."""
    width, count = len(network.blocks[0][0]), len(network.blocks)
    order = width * (count + 1)
    columns, rows = np.tril_indices(order)
    weights = np.where(rows == columns, 1.0, np.sqrt(2))
    X, unit = np.zeros((width, order)), np.zeros((order, order))
    X[:, :width], unit[:width, :width] = np.eye(width), np.eye(width)
    found = [unit[rows, columns] * weights]
    for i, (A, B) in enumerate(network.blocks):
        z = slice((i + 1) * width, (i + 2) * width)
        for r, h in enumerate(A @ X):
            e = np.zeros(order)
            e[z.start + r] = 1.0
            found.append(-(np.outer(e, h - e) + np.outer(h - e, e))[rows, columns] * weights)
        X[:, z] += B
    lost = np.concatenate([-(X.T @ X)[rows, columns] * weights, np.zeros(len(found) - 1)])
    A = sparse.vstack([-sparse.csc_matrix(np.array(found).T), -sparse.eye(len(found)).tocsr()[1:]]).tocsc()
    cones = [clarabel.PSDTriangleConeT(order), clarabel.NonnegativeConeT(len(found) - 1)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    quadratic = sparse.csc_matrix((len(found), len(found)))
    solution = clarabel.DefaultSolver(quadratic, np.eye(1, len(found))[0], A, lost, cones, settings).solve()
    return float(np.sqrt(solution.x[0])) if str(solution.status) in SOLVED else None


def optimum_of(network: Network, clarabel: Any) -> float | None:
    if network.chain:
        return chain_lipsdp(Chain(network.name, list(network.chain), (0.0, 1.0)), clarabel)
    return lipsdp(network, clarabel)


def row(network: Network, arguments: argparse.Namespace, clarabel: Any) -> list[str]:
    norms = [np.linalg.norm(W, 2) for W in network.chain]
    product = float(np.prod(norms)) if norms else network_bound(network.graph, deadline=Deadline(0.0)).upper or np.nan
    with patch("opnorm.networks.bound.find_runs", return_value=[]):
        chains = network_bound(network.graph, tightening=arguments.seconds).upper or np.nan
    begin = time.perf_counter()
    bound = network_bound(network.graph, tightening=arguments.seconds).upper or np.nan
    ours = time.perf_counter() - begin
    begin, optimum = time.perf_counter(), None
    if clarabel is not None and network.order <= arguments.order:
        optimum = optimum_of(network, clarabel)
    solver = time.perf_counter() - begin
    cells = [
        network.name,
        f"{product:.5g}",
        f"{chains:.5g}",
        "" if optimum is None else f"{optimum:.5g}",
        f"{bound:.5g}",
    ]
    cells += [f"{bound / product:.4g}", f"{bound / chains:.4g}", "" if optimum is None else f"{bound / optimum:.5f}"]
    cells += ["" if optimum is None else f"{solver:.2f} s", f"{ours:.2f} s"]
    print(*cells, sep=" | ", flush=True)
    return cells


def networks(arguments: argparse.Namespace) -> Iterator[Network]:
    for width, count in ((6, 2), (8, 4), (10, 6), (64, 9)):
        yield residual_dense(width, count)
    for channels, size in (((1, 4), (4, 4)), ((1, 2, 2), (4, 4)), ((1, 2, 2, 1), (4, 4)), ((1, 8), (8, 8))):
        yield small_convolutions(channels, size)
    for after in (False, True):
        yield residual_conv(8, 9, after)
    yield from random_stacks(arguments.depth, arguments.channels)
    for channels in arguments.trained:
        yield from trained_stacks(channels, arguments.depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=16, help="of the stacks, at most")
    parser.add_argument("--channels", type=int, default=32, help="of the stacks, at most")
    parser.add_argument("--trained", type=int, nargs="*", default=[8, 16, 32], help="channels of the trained stacks")
    parser.add_argument("--order", type=int, default=100, help="largest order of LipSDP's matrix that is solved")
    parser.add_argument("--seconds", type=float, default=10.0, help="for the multipliers of each run")
    arguments = parser.parse_args()
    clarabel = package("clarabel")
    write_table("joint_networks", HEADER, [row(network, arguments, clarabel) for network in networks(arguments)])


if __name__ == "__main__":
    main()
