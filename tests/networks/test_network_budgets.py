"""What a rule may cost: settings of any size end within seconds, with a bound that is true, or as unknown."""

import tracemalloc
from itertools import product
from time import perf_counter

import graphs as n
import numpy as np
import pytest
from test_pooling import average_matrix

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.records import Graph, Node
from opnorm.networks.bound import network_bound
from opnorm.networks.effects import Unbounded
from opnorm.networks.linear_rules import row_distance
from opnorm.networks.pooling import Window, average_pooling

SECONDS = 10  # a ceiling for what took minutes, or gigabytes
CLOSE = 1e-9


def quick(graph, **settings):
    begin = perf_counter()
    tracemalloc.start()
    bound = network_bound(graph, **settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert perf_counter() - begin < SECONDS
    assert peak < 300 * 2**20
    return bound


HUGE = [3000, 20_000, 2**31, 2**40, 2**62]


@pytest.mark.parametrize(("size", "stride"), [*product(HUGE, (1, 2, 3000)), *product((1, 2, 3), HUGE)])
@pytest.mark.parametrize("options", [{}, {"pads": [1, 1]}, {"auto_pad": "SAME_UPPER"}, {"ceil_mode": 1}])
def test_pooling_of_any_size_is_bounded_or_unknown_at_once(size, stride, options):
    for kind, included in product(("AveragePool", "MaxPool"), (0, 1)):
        settings = {"kernel_shape": [size], "strides": [stride], "count_include_pad": included, **options}
        bound = quick(n.chain(n.plain("p", kind, "x", **settings)))
        assert bound.upper is not None or bound.unknown
        if kind == "MaxPool":
            assert bound.upper == pytest.approx(max(1, np.ceil(size / stride) ** 0.5), rel=1e-9)


@pytest.mark.parametrize("kind", ["AveragePooling1D", "MaxPooling1D"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pooling_of_keras_is_too(kind, padding):
    for size, stride in [(3000, 1), (2**40, 1), (2, 2**40)]:
        bound = quick(n.chain(n.plain("p", kind, "x", pool_size=[size], strides=[stride], padding=padding)))
        assert bound.upper is not None or "too wide" in bound.unknown[0].rule


@pytest.mark.parametrize("stride", [1, 7, 90, 100, 130])
@pytest.mark.parametrize(("counts", "pads"), [("window", (0, 0)), ("window", (60, 30)), ("window", "same"),
                                              ("pixels", (0, 0)), ("replicate", (0, 0))])  # fmt: skip
def test_the_bound_of_a_wide_window_is_never_below_its_matrix(counts, pads, stride, monkeypatch):
    monkeypatch.setattr("opnorm.networks.pooling._ROWS", 0)  # every window is too wide
    window = Window(100, stride, 1, pads)
    bound = average_pooling([window], counts=counts)
    for size in (100, 137, 390, 401):
        truth = np.linalg.norm(average_matrix(window, size, counts), 2)
        assert truth <= bound * (1 + CLOSE)
    assert stride >= 100 or bound <= 1.5 * truth


def test_what_counts_pixels_at_borders_is_unknown_where_it_is_too_wide():
    with pytest.raises(Unbounded, match="too wide"):
        average_pooling([Window(3000, 1, 1, "same")], counts="pixels")


@pytest.mark.parametrize("size", [5000, 2**31, 2**60])
@pytest.mark.parametrize("how", ["nearest", "bilinear"])
def test_upsampling_of_any_size_ends_at_once(size, how):
    bound = quick(n.chain(n.plain("u", "UpSampling2D", "x", size=[size, size], interpolation=how)))
    assert bound.upper == (None if how == "bilinear" else pytest.approx(size, rel=1e-9))


def test_the_distance_of_many_long_rows_is_bounded_by_the_radius():
    rows = np.random.default_rng(0).standard_normal((800, 1000))
    begin = perf_counter()
    bound = row_distance(rows)
    assert perf_counter() - begin < SECONDS
    assert np.linalg.norm(rows[:, None] - rows[None, :5], axis=2).max() <= bound


def test_many_inputs_are_too_many_or_take_little_memory():
    names = [f"x{i}" for i in range(3000)]
    nodes = [n.plain(f"n{i}", "ReLU", name) for i, name in enumerate(names)]
    bound = quick(Graph(tuple(nodes), tuple(names), tuple(node.name for node in nodes)))
    assert bound.upper is None
    assert "inputs" in bound.notes[0]


def test_a_long_run_of_activations_takes_time_in_proportion():
    nodes = [n.dense("d", "x", np.eye(3))]
    for i in range(30_000):
        nodes.append(n.plain(f"r{i}", "tanh", nodes[-1].name))
    nodes.append(n.dense("last", nodes[-1].name, np.eye(3)))
    begin = perf_counter()
    assert network_bound(n.chain(*nodes)).upper == pytest.approx(1, rel=1e-5)
    assert perf_counter() - begin < 2 * SECONDS


def test_many_tables_that_read_tokens_take_time_in_proportion():
    table = {"embeddings": n.weight("t", np.eye(2))}
    nodes = [Node(f"e{i}", "Embedding", ("x",), {}, table) for i in range(5000)]
    begin = perf_counter()
    assert network_bound(Graph(tuple(nodes), ("x",), (nodes[0].name,))).upper == pytest.approx(2**0.5, rel=1e-9)
    assert perf_counter() - begin < SECONDS


def test_after_the_deadline_nothing_is_joined_and_the_bound_is_as_true():
    rng = np.random.default_rng(0)
    W = [rng.standard_normal((40, 40)) for _ in range(3)]
    graph = n.chain(n.dense("a", "x", W[0]), n.dense("b", "a", W[1], activation="relu"), n.dense("c", "b", W[2]))
    late, exact = network_bound(graph, deadline=Deadline(0.0)), network_bound(graph)
    assert [step.name for step in late.steps] == ["a", "b", "b/relu", "c"]
    assert exact.upper < late.upper == pytest.approx(np.prod([np.linalg.norm(w, 2) for w in W]), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("SeparableConv2D", {}, "depthwise_kernel"),
        ("TimeDistributed", {"layer": {"config": {}}}, "class_name"),
        ("Dense", {"activation": {"class_name": "ReLU", "config": {"negative_slope": "much"}}}, "much"),
    ],
)
def test_a_layer_whose_settings_cannot_be_read_is_unknown_and_not_half_a_layer(kind, options, word):
    node = n.dense("a", "x", np.eye(3))._replace(kind=kind, options=options)
    bound = network_bound(n.chain(node))
    assert bound.upper is None
    assert word in bound.unknown[-1].rule


def failing(error):
    def read():
        raise error

    return read


@pytest.mark.parametrize("error", [ValueError("cut off"), MemoryError(), RuntimeError("strange"), IndexError("none")])
def test_a_node_that_fails_is_the_only_one_that_is_unknown(error):
    node = n.dense("b", "a", np.eye(3))
    broken = {role: weight._replace(read=failing(error)) for role, weight in node.weights.items()}
    graph = n.chain(n.dense("a", "x", np.eye(3)), node._replace(weights=broken))
    bound = network_bound(graph)
    assert [step.constant is None for step in bound.steps] == [False, True]


@pytest.mark.parametrize(("size", "channels"), [(224, 32), (32, 64), (1000, 3)])
def test_convolutions_of_large_images_are_bounded_in_little_time_and_memory(size, channels):
    rng = np.random.default_rng(0)
    nodes, source = [], "x"
    for i in range(6):
        kernel = rng.standard_normal((3, 3, channels, channels)) / channels
        shapes = [(None, size, size, channels)]
        node = n.conv(f"c{i}", source, kernel)
        nodes.append(node._replace(options={**node.options, "input_shapes": shapes}))
        nodes.append(n.plain(f"r{i}", "ReLU", f"c{i}"))
        source = nodes[-1].name
    assert quick(n.chain(*nodes), tightening=0.5).upper > 0
