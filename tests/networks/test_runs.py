"""Residual blocks, branches and large convolutions bounded as a whole, against explicit matrices of the same."""

from itertools import pairwise

import graphs as n
import numpy as np
import pytest
from explicit import explicit_matrix
from scipy.optimize import minimize

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.records import Graph, Node
from opnorm.networks.bound import network_bound
from opnorm.networks.sector_bounds import bound_chain

ROUNDING = 1 + 1e-12


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def conv(name, source, kernel, size, padding="same", strides=1, groups=1):
    """Return a convolution of images (*size, channels), size and all settings known."""
    node = n.conv(name, source, kernel, groups)
    every = {"padding": padding, "strides": strides}
    options = {**node.options, **every, "input_shapes": [(None, *size, kernel.shape[2] * groups)]}
    geometry = node.weights["kernel"].geometry

    def operator(values):
        return type(geometry.operator(values))(values, groups=groups, **every)

    weight = node.weights["kernel"]._replace(geometry=geometry._replace(operator=operator))
    return node._replace(options=options, weights={"kernel": weight})


def add(name, *sources, shape):
    return n.plain(name, "Add", *sources, input_shapes=[(None, *shape)] * len(sources))


class Truth:
    """The Jacobians of a network, node by node, channels last."""

    def __init__(self, graph):
        self.graph = graph
        self.matrices = {node.name: _LINEAR[node.kind](node) for node in graph.nodes if node.kind in _LINEAR}

    def jacobian(self, slopes):
        """Return the Jacobian where functions have these slopes: `slopes(node, count)`."""
        found = {}
        for node in self.graph.nodes:
            inputs = [found.get(name) for name in node.inputs]
            if node.name in self.matrices:
                found[node.name] = _times(self.matrices[node.name], inputs[0])
            elif node.kind == "MaxPooling2D":
                found[node.name] = inputs[0][_chosen(node, slopes)]
            elif node.kind in _OTHERS:
                found[node.name] = _OTHERS[node.kind](node, inputs)
            else:
                J = np.eye(int(np.prod(node.options["size"]))) if inputs[0] is None else inputs[0]
                found[node.name] = slopes(node, len(J))[:, None] * J
        return found[self.graph.outputs[0]]


def _times(matrix, J):
    return matrix if J is None else matrix @ J


def _conv(node):
    sizes, kernel = node.options["input_shapes"][0][1:-1], node.weights["kernel"].read()
    strides = (node.options["strides"],) * 2
    return explicit_matrix(kernel, sizes, strides, node.options["padding"], (1, 1), node.options["groups"])


def _pool(node):
    sizes, channels, k = node.options["input_shapes"][0][1:-1], node.options["input_shapes"][0][-1], 2
    return explicit_matrix(np.full((k, k, 1, channels), 1 / k**2), sizes, (k, k), "valid", (1, 1), channels)


def _chosen(node, slopes):
    """Return for each window and channel which number is its maximum: any of them, some point makes it."""
    height, width, channels = node.options["input_shapes"][0][1:]
    size, stride = node.options["pool_size"], node.options.get("strides", node.options["pool_size"])
    rng = np.random.default_rng(int(slopes(None, 1000).sum()))
    rows, columns = ((n - size) // stride + 1 for n in (height, width))
    y, x, c = np.indices((rows, columns, channels))
    y, x = (stride * places + rng.integers(0, size, places.shape) for places in (y, x))
    return ((y * width + x) * channels + c).ravel()


def _mean(node):
    *sizes, channels = node.options["input_shapes"][0][1:]
    pixels = int(np.prod(sizes))
    return np.tile(np.eye(channels), pixels) / pixels


def _sum(node, inputs):
    some = next(J for J in inputs if J is not None)
    return sum(np.eye(*some.shape) if J is None else J for J in inputs)


def _beside(node, inputs):
    some = next(J for J in inputs if J is not None)
    given = [np.eye(some.shape[1]) if J is None else J for J in inputs]
    channels = [shape[-1] for shape in node.options["input_shapes"]]
    split = [J.reshape(-1, c, J.shape[1]) for J, c in zip(given, channels, strict=True)]
    return np.concatenate(split, axis=1).reshape(-1, some.shape[1])


def _factors(node):
    gamma, variance = (node.weights[role].read() for role in ("gamma", "moving_variance"))
    return np.diag(np.tile(gamma / np.sqrt(variance + node.options["epsilon"]), 36))


_LINEAR = {
    "BatchNormalization": _factors,
    "Dense": lambda node: node.weights["kernel"].read().T,
    "Conv2D": _conv,
    "AveragePooling2D": _pool,
    "GlobalAveragePooling2D": _mean,
}
_OTHERS = {"Add": _sum, "Concatenate": _beside, "Flatten": lambda node, inputs: inputs[0]}
ENDS = {
    "ReLU": (0.0, 1.0),
    "relu": (0.0, 1.0),
    "LeakyReLU": (0.2, 1.0),
    "gelu": (-0.128994, 1.128994),
    "Abs": (-1.0, 1.0),
}


def worst_jacobian(graph, draws=60):
    """Return the largest norm over random slopes at the ends of their intervals, at first all at the upper one."""
    rng = np.random.default_rng(1)

    def slopes(share):
        return lambda node, count: np.where(rng.random(count) < share, *ENDS[node.kind if node else "ReLU"][::-1])

    truth = Truth(graph)
    shares = [1.0, *rng.random(draws) ** 0.3]
    return max(np.linalg.norm(truth.jacobian(slopes(share)), 2) for share in shares)


def plain(graph):
    """Return the bound of the nodes' own constants."""
    return network_bound(graph, deadline=Deadline(0.0)).upper


def bend(name, source, kind="ReLU"):
    return n.plain(name, kind, source, **({"negative_slope": 0.2} if kind == "LeakyReLU" else {}))


def residual(rng, blocks, width, kind="ReLU"):
    nodes, source = [], "x"
    for i in range(blocks):
        W, V = rng.standard_normal((2, width, width)) / np.sqrt(width)
        nodes += [n.dense(f"a{i}", source, W), bend(f"b{i}", f"a{i}", kind), n.dense(f"c{i}", f"b{i}", V)]
        nodes.append(add(f"d{i}", source, f"c{i}", shape=(width,)))
        source = f"d{i}"
    return n.chain(*nodes)


@pytest.mark.parametrize("kind", ["ReLU", "LeakyReLU", "gelu"])
def test_residual_blocks_are_bounded_across_their_sums(rng, kind):
    graph = residual(rng, 4, 6, kind)
    bound = network_bound(graph)
    assert worst_jacobian(graph) <= bound.upper * ROUNDING
    assert bound.upper < 0.6 * plain(graph)
    assert bound.steps[-1].kind == "chain"
    assert bound.steps[-1].name == "a0 ... d3"


def lipsdp_residual(W, V, points=6):
    """Return the optimum for `x + V relu(W x)`, one multiplier a neuron, by a search without derivatives."""
    N, width = len(W), W.shape[1]

    def square(log_t):
        T = np.diag(np.exp(log_t))
        P = np.block([[np.eye(width), V], [V.T, V.T @ V]])  # |x + V z|^2
        P += np.block([[np.zeros((width, width)), W.T @ T], [T @ W, -2 * T]])
        inner = -P[width:, width:]
        if np.linalg.eigvalsh(inner)[0] <= 0:
            return 1e6
        return np.linalg.eigvalsh(P[:width, :width] + P[:width, width:] @ np.linalg.solve(inner, P[width:, :width]))[-1]

    start = np.log(np.full(N, 2 * np.linalg.norm(V, 2) ** 2))
    return np.sqrt(minimize(square, start, method="Powell", options={"maxiter": 400, "ftol": 1e-10}).fun)


def test_a_residual_block_has_the_best_multipliers(rng):
    W, V = rng.standard_normal((2, 4, 4))
    nodes = n.dense("a", "x", W.T), bend("b", "a"), n.dense("c", "b", V.T), add("d", "x", "c", shape=(4,))
    bound = network_bound(n.chain(*nodes)).upper
    assert bound <= lipsdp_residual(W, V) * (1 + 1e-3)
    assert bound < 0.97 * plain(n.chain(*nodes))


def test_branches_side_by_side_share_their_input(rng):
    W = [rng.standard_normal(shape) / 2 for shape in ((6, 5), (6, 4), (15, 3))]
    shapes = [(None, 5), (None, 4), (None, 6)]
    beside = n.plain("c", "Concatenate", "r", "s", "x", input_shapes=shapes, axis=-1)
    nodes = n.dense("a", "x", W[0]), bend("r", "a"), n.dense("b", "x", W[1]), bend("s", "b", "gelu"), beside
    graph = n.chain(*nodes, n.dense("y", "c", W[2]))
    bound = network_bound(graph)
    assert worst_jacobian(graph) <= bound.upper * ROUNDING
    assert bound.upper < 0.8 * plain(graph)


def images(rng, *channels, size, kind="ReLU"):
    """Return convolutions 3x3 with functions between them."""
    nodes, source = [], "x"
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        K = rng.standard_normal((3, 3, inputs, outputs)) * np.sqrt(2 / (9 * inputs))
        nodes += [conv(f"c{i}", source, K, size), bend(f"r{i}", f"c{i}", kind)]
        source = f"r{i}"
    return nodes[:-1]


@pytest.fixture
def large(monkeypatch):
    """Let no convolution be small, so that all of them go to the torus."""
    monkeypatch.setattr("opnorm.networks.sizes._WRITTEN", 0)


@pytest.mark.parametrize("kind", ["ReLU", "LeakyReLU", "gelu"])
def test_convolutions_are_bounded_on_a_torus(rng, large, kind):
    graph = n.chain(*images(rng, 2, 3, 4, 3, size=(5, 6), kind=kind))
    bound = network_bound(graph)
    matrices = [_conv(node) for node in graph.nodes if node.kind == "Conv2D"]
    exact = bound_chain(matrices, [ENDS[kind]] * 2)  # one multiplier a neuron, on the image itself
    assert worst_jacobian(graph) <= bound.upper * ROUNDING
    assert bound.upper >= exact * (1 - 3e-3)  # both stop near their optimum
    assert bound.upper < 0.9 * plain(graph)


def blocks(K, L):
    """Return small networks of images 6x6x3 by name, and the size of what comes out."""
    size, shape = (6, 6), [(None, 6, 6, 3)]
    a, b = conv("a", "x", K, size), bend("b", "a")
    c, d = conv("c", "b", L, size), add("d", "x", "c", shape=(6, 6, 3))
    first = n.plain("b", "ReLU", "x", size=(6, 6, 3)), conv("e", "b", K, size), bend("g", "e"), conv("c", "g", L, size)
    half = conv("c", "b", L, (3, 3)), conv("s", "x", L[:1, :1], size, "valid", strides=2)
    wide = conv("a", "x", K[:1, :1], size, ((2, 1), (0, 3))), conv("g", "a", L, (9, 9)), bend("b", "g")
    means = n.plain("p", "AveragePooling2D", "b", pool_size=2, input_shapes=shape)
    maxima = n.plain("p", "MaxPooling2D", "b", pool_size=2, input_shapes=shape)
    shared = n.plain("p", "MaxPooling2D", "a", pool_size=3, strides=2, input_shapes=shape)
    beside = n.plain("p", "Concatenate", "x", "b", axis=3, input_shapes=2 * shape)
    added = add("d", "s", "c", shape=(3, 3, 3))
    return {
        "after": ([a, b, c, d, bend("e", "d"), conv("f", "e", K, size)], size),
        "before": ([*first, d, conv("f", "d", K, size)], size),
        "strided": (
            [conv("a", "x", K, size, strides=2), b, *half, added, bend("e", "d"), conv("f", "e", K, (3, 3))],
            (3, 3),
        ),
        "valid": ([conv("a", "x", K, size, "valid"), b, conv("c", "b", L, (4, 4), "valid", strides=2)], (1, 1)),
        "full": ([*wide, conv("c", "b", L, (9, 9), ((3, 3), (2, 0)), strides=2)], (7, 5)),
        "pooled": ([a, b, means, conv("c", "p", L, (3, 3))], (3, 3)),
        "maxima": ([a, b, maxima, conv("c", "p", L, (3, 3)), bend("q", "c", "Abs"), conv("e", "q", K, (3, 3))], (3, 3)),
        "scaled": (
            [
                a,
                b,
                c,
                d,
                n.batch_normalization("n", "d", K[0, 0, 0], np.ones(3), axis=3),
                bend("e", "n"),
                conv("f", "e", K, size),
                add("g", "d", "f", shape=(6, 6, 3)),
            ],
            size,
        ),
        "windows": ([a, shared, conv("c", "p", L, (2, 2))], (2, 2)),
        "beside": ([a, b, beside, conv("c", "p", np.concatenate([K, L], axis=2), size)], size),
    }


@pytest.mark.parametrize("block", blocks(np.zeros((3, 3, 3, 3)), np.zeros((3, 3, 3, 3))))
@pytest.mark.parametrize("end", ["image", "dense", "mean"])
def test_blocks_of_convolutions_are_never_below_their_jacobians(rng, large, block, end):
    K, L = rng.standard_normal((2, 3, 3, 3, 3)) / 3
    nodes, shape = blocks(K, L)[block]
    if end == "dense":
        W, V = rng.standard_normal((3 * shape[0] * shape[1], 5)), rng.standard_normal((5, 2))
        nodes += [bend("g0", nodes[-1].name), n.plain("flat", "Flatten", "g0"), n.dense("w", "flat", W), bend("h", "w")]
        nodes.append(n.dense("v", "h", V))
    if end == "mean":
        mean = n.plain("m", "GlobalAveragePooling2D", nodes[-1].name, input_shapes=[(None, *shape, 3)])
        nodes += [mean, n.dense("w", "m", rng.standard_normal((3, 4)))]
    graph = n.chain(*nodes)
    bound = network_bound(graph, tightening=0.5)
    assert bound.upper >= worst_jacobian(graph) * (1 - 1e-12)
    assert bound.upper <= plain(graph)
    if block not in ("maxima", "windows"):  # on so small an image a torus may cost what few functions give
        assert bound.steps[-1].name.endswith(f"... {nodes[-1].name}")


def test_in_channels_first_a_dense_layer_reads_the_pixels_in_their_order(rng, large):
    K, W = rng.standard_normal((3, 3, 2, 3)), rng.standard_normal((3 * 20, 4))
    a, r, f = conv("a", "x", K, (4, 5)), bend("r", "a"), n.plain("f", "Flatten", "r")
    order = np.arange(60).reshape(3, 4, 5).transpose(1, 2, 0).ravel()  # where a list of channels has each number
    first = Node("a", "Conv", ("x",), {"input_shapes": [(None, 2, 4, 5)]}, a.weights)
    last = n.chain(a, r, f, n.dense("w", "f", W))
    same = network_bound(n.chain(first, r, f, n.dense("w", "f", W[np.argsort(order)])))
    assert same.upper == pytest.approx(network_bound(last).upper, rel=1e-6)
    assert same.upper < 0.9 * plain(last)


def test_two_inputs_have_runs_behind_their_meeting(rng):
    W, V = rng.standard_normal((2, 6, 6))
    nodes = [n.plain("c", "Concatenate", "x", "z"), n.dense("a", "c", W), bend("b", "a"), n.dense("e", "b", V)]
    graph = n.chain(*nodes, add("y", "c", "e", shape=(6,)), inputs=("x", "z"))
    bound = network_bound(graph)
    assert bound.upper < plain(graph)
    assert bound.upper >= worst_jacobian(Graph(graph.nodes[1:], ("c",), graph.outputs)) * (1 - 1e-12)


def test_what_is_read_beside_a_run_ends_it(rng):
    graph = residual(rng, 2, 5)
    both = Graph(graph.nodes, graph.inputs, ("b0", *graph.outputs))
    assert all(step.kind != "chain" or "a0" not in step.name for step in network_bound(both).steps)


def test_a_sequence_of_positions_is_bounded_as_one_position(rng):
    W, V = rng.standard_normal((2, 5, 5))
    nodes = n.dense("a", "x", W), bend("b", "a"), n.dense("c", "b", V), add("d", "x", "c", shape=(7, 5))
    vectors = n.dense("a", "x", W), bend("b", "a"), n.dense("c", "b", V), add("d", "x", "c", shape=(5,))
    assert network_bound(n.chain(*nodes)).upper == network_bound(n.chain(*vectors)).upper


def test_after_a_deadline_a_run_is_the_product_of_its_nodes(rng):
    graph = residual(rng, 3, 5)
    assert network_bound(graph, deadline=Deadline.after(0)).upper == pytest.approx(plain(graph), rel=1e-9)
    assert network_bound(graph, tightening=0.0).upper >= network_bound(graph).upper


@pytest.mark.parametrize("exponent", [-400, -140, 30, 400])
def test_the_scale_of_kernels_changes_nothing_or_there_is_no_run(rng, exponent):
    W, V = rng.standard_normal((2, 5, 5))
    first, second = np.ldexp(W, exponent), np.ldexp(V, -exponent)  # their product is of one size with what goes around
    nodes = n.dense("a", "x", W), bend("b", "a"), n.dense("c", "b", V), add("d", "x", "c", shape=(5,))
    scaled = n.dense("a", "x", first), bend("b", "a"), n.dense("c", "b", second), add("d", "x", "c", shape=(5,))
    bound = network_bound(n.chain(*scaled)).upper
    exact = network_bound(n.chain(*nodes)).upper
    assert exact * (1 - 1e-4) <= bound <= (exact if abs(exponent) < 300 else plain(n.chain(*nodes))) * (1 + 1e-4)


def test_numbers_below_the_smallest_normal_one_are_not_lost(rng):
    W, V = rng.standard_normal((2, 5, 5))
    nodes = n.dense("a", "x", W * 1e-110), bend("b", "a"), n.dense("e", "b", V * 1e-110), bend("f", "e")
    beside = n.plain("m", "Concatenate", "b", "f", axis=-1, input_shapes=[(None, 5)] * 2)
    graph = n.chain(*nodes, beside, n.dense("y", "m", np.eye(10)[:, 5:]))
    truth = np.linalg.norm(W * 1e-110, 2)
    assert network_bound(graph).upper * 1e110 >= 1e-110 * np.linalg.norm(W @ V, 2)
    assert network_bound(n.chain(*nodes, beside)).upper >= truth * (1 - 1e-12)


def test_a_part_without_a_program_is_passed_over_and_runs_end_there(rng, large):
    K, L = rng.standard_normal((2, 3, 3, 3, 3)) / 3
    maxima = n.plain("p", "MaxPooling2D", "s", pool_size=2, input_shapes=[(None, 12, 12, 3)])
    between = [maxima, conv("q", "s", K, (12, 12), strides=2), add("t", "p", "q", shape=(6, 6, 3))]  # two ways to half
    first = [conv("a", "x", K, (12, 12)), bend("b", "a"), conv("c", "b", L, (12, 12)), bend("s", "c")]
    last = [conv("d", "t", K, (6, 6)), bend("e", "d"), conv("f", "e", L, (6, 6))]
    bound = network_bound(n.chain(*first, *between, *last), tightening=0.5)
    assert [step.name for step in bound.steps if step.kind == "chain"] == ["a ... c", "d ... f"]
