"""Which neighbours in a network do not stretch the same directions, against norms of explicit matrices."""

import graphs as n
import numpy as np
import pytest

from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.networks.bound import network_bound
from opnorm.networks.neighbours import neighbours
from opnorm.operators.convolution import Convolution

RNG = np.random.default_rng(0)
CLOSE = 0.05  # of twelve power iterations


def found(*nodes):
    return neighbours(n.chain(*nodes), NEVER)


def test_matrices_that_stretch_different_directions_cost_what_that_is():
    first, second = np.diag([10.0, 1.0, 1.0]), np.diag([1.0, 4.0, 1.0])
    (pair,) = found(n.dense("a", "x", first), n.plain("r", "ReLU", "a"), n.dense("b", "r", second))
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.loss == pytest.approx(10 * 4 / 10, rel=CLOSE)


def test_matrices_that_stretch_the_same_direction_cost_nothing():
    W = np.outer([1.0, 2.0], [3.0, 1.0])
    (pair,) = found(n.dense("a", "x", W), n.dense("b", "a", W.T))
    assert pair.loss == pytest.approx(1.0, rel=1e-9)


def test_convolutions_are_compared_on_images_of_one_size():
    K, L = RNG.standard_normal((3, 3, 2, 3)), RNG.standard_normal((3, 3, 3, 2))
    nodes = n.conv("a", "x", K), n.plain("r", "ReLU", "a"), n.conv("b", "r", L)
    (pair,) = found(nodes[0]._replace(options={**nodes[0].options, "input_shapes": ((None, 6, 6, 2),)}), *nodes[1:])
    A, B = (Convolution(kernel, (6, 6)) @ np.eye(36 * kernel.shape[2]) for kernel in (K, L))
    truth = np.linalg.norm(A, 2) * np.linalg.norm(B, 2) / np.linalg.norm(B @ A, 2)
    assert pair.loss == pytest.approx(truth, rel=CLOSE)


def test_a_convolution_and_a_dense_layer_meet_where_the_size_is_known():
    K, W = RNG.standard_normal((3, 3, 2, 3)), RNG.standard_normal((75, 4))
    first = n.conv("a", "x", K)
    first = first._replace(options={**first.options, "input_shapes": ((None, 5, 5, 2),)})
    rest = n.plain("f", "Flatten", "a"), n.dense("b", "f", W)
    (pair,) = found(first, *rest)
    A = Convolution(K, (5, 5)) @ np.eye(50)
    truth = np.linalg.norm(A, 2) * np.linalg.norm(W, 2) / np.linalg.norm(W.T @ A, 2)
    assert pair.loss == pytest.approx(truth, rel=CLOSE)
    assert found(n.conv("a", "x", K), *rest) == ()  # of an open size


def test_what_lies_between_neighbours_is_a_function_of_each_entry():
    W = np.eye(3)
    assert found(n.dense("a", "x", W), n.plain("s", "Softplus", "a"), n.dense("b", "s", W))
    assert not found(n.dense("a", "x", W), n.plain("s", "LayerNormalization", "a"), n.dense("b", "s", W))
    assert not found(n.dense("a", "x", W), n.plain("s", "Add", "a", "x"), n.dense("b", "s", W))
    assert not found(n.dense("a", "x", W), n.dense("b", "a", np.zeros((3, 3))))  # of nothing there is no share


def test_the_costliest_pair_comes_first_and_is_shown():
    kernels = [np.diag([3.0, 1.0]), np.diag([1.0, 2.0]), np.diag([1.0, 9.0])]
    nodes, source = [], "x"
    for i, kernel in enumerate(kernels):
        nodes += [n.dense(f"d{i}", source, kernel), n.plain(f"r{i}", "ReLU", f"d{i}")]
        source = f"r{i}"
    bound = network_bound(n.chain(*nodes))
    assert [(pair.first, pair.second) for pair in bound.pairs] == [("d0", "d1"), ("d1", "d2")]
    line = "costliest neighbours: d0, then d1: their norms multiply to 2 times the norm of both together"
    assert line in bound.to_text()
    assert line in bound._repr_html_()


def test_without_time_no_pair_is_looked_at():
    graph = n.chain(n.dense("a", "x", np.eye(2)), n.dense("b", "a", np.eye(2)))
    assert neighbours(graph, Deadline.after(-1)) == ()


def test_large_kernels_and_very_many_pairs_are_passed_over(monkeypatch):
    nodes = n.dense("a", "x", np.eye(2)), n.dense("b", "a", np.eye(2)), n.dense("c", "b", np.eye(2))
    assert len(found(*nodes)) == 2
    monkeypatch.setattr("opnorm.networks.neighbours._ALL", 3e8)  # of which a pair takes 2e8
    assert [pair.second for pair in found(*nodes)] == ["b"]
    monkeypatch.setattr("opnorm.networks.neighbours._ENTRIES", 3)
    assert found(*nodes) == ()
