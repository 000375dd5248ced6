"""What a bound takes: nothing is proved twice, and one time serves all parts of a network. Calls are counted."""

from functools import partial

import graphs as n
import numpy as np
import pytest
from explicit import explicit_matrix
from test_runs import add, bend, conv, plain, residual, worst_jacobian

import opnorm.networks.runs as runs
from opnorm.bounds.deadlines import Deadline
from opnorm.networks.balls.bound import ball_bound
from opnorm.networks.balls.walk import Network
from opnorm.networks.bound import network_bound
from opnorm.networks.linear_rules import bound_weight
from opnorm.networks.turns import in_turn
from opnorm.operators.convolution import Convolution


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def calls(monkeypatch):
    """Return the names of the bounds of runs that were asked for, and with how many seconds, in their order."""
    found = []

    def told(name, bound, *arguments):
        found.append((name, arguments[-1].left))
        return bound(*arguments)

    for name in ("quick_bound", "better_bound"):
        monkeypatch.setattr(runs, name, partial(told, name, getattr(runs, name)))
    return found


def two_runs(rng):
    """Return two residual runs with something between them that no run goes through."""
    W, V, A, B = rng.standard_normal((4, 6, 6))
    first = n.dense("a", "x", W), bend("b", "a"), n.dense("c", "b", V), add("d", "x", "c", shape=(6,))
    between = n.plain("s", "Softmax", "d")
    second = n.dense("e", "s", A), bend("f", "e"), n.dense("g", "f", B), add("h", "s", "g", shape=(6,))
    return n.chain(*first, between, *second)


def test_all_runs_have_a_quick_proof_before_the_multipliers_of_any_are_improved(rng, calls):
    network_bound(two_runs(rng))
    assert [name for name, _ in calls] == ["quick_bound"] * 2 + ["better_bound"] * 2


def test_all_runs_together_have_twice_the_time_of_one(rng, calls):
    network_bound(two_runs(rng), tightening=1.0)
    assert max(left for _, left in calls) <= 1.0
    shares = [left for name, left in calls if name == "better_bound"]
    assert shares[0] <= 1.0  # half of what is left of two seconds


def test_tasks_share_a_time_and_leave_to_others_what_they_do_not_take():
    deadline = Deadline.after(8.0)
    lefts = [soon.left for _, soon in in_turn("abcd", deadline)]
    assert lefts == pytest.approx([2.0, 8 / 3, 4.0, 8.0], abs=0.1)
    assert list(in_turn("abcd", Deadline.after(0.0))) == []
    assert all(soon == Deadline() for _, soon in in_turn("abcd", Deadline()))


def test_multipliers_that_were_not_improved_are_not_proved_again(rng, monkeypatch):
    proofs = []
    real = runs.quick_bound.__globals__["_proved"]
    monkeypatch.setattr("opnorm.networks.joint_bounds._proved", lambda *a: proofs.append(a) or real(*a))
    monkeypatch.setattr("opnorm.networks.joint_bounds._feasible", lambda *_: None)
    graph = residual(rng, 3, 5)
    bound = network_bound(graph)
    assert len(proofs) == 1
    assert worst_jacobian(graph) * (1 - 1e-12) <= bound.upper < plain(graph)


def test_a_kernel_that_is_bracketed_at_its_size_is_not_bounded_over_all_sizes_too(rng):
    node = conv("c", "x", rng.standard_normal((3, 3, 2, 3)), (5, 4))
    asked = []
    bound = network_bound(n.chain(node), lambda weight: asked.append(weight) or bound_weight(weight))
    assert len(asked) == 1
    matrix = explicit_matrix(node.weights["kernel"].read(), (5, 4), (1, 1), "same", (1, 1), 1)
    assert bound.upper == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-5)


def test_a_bracket_at_a_size_that_is_wide_leaves_the_bound_of_all_sizes(rng):
    node = conv("c", "x", rng.standard_normal((3, 3, 2, 3)), (5, 4))
    every = bound_weight(node.weights["kernel"]).upper

    def hurried(weight):  # at its size no better than ten times the bound
        bounds = bound_weight(weight)
        return bounds._replace(upper=10 * bounds.upper) if "at 5x4" in weight.geometry.text else bounds

    assert network_bound(n.chain(node), hurried).upper == pytest.approx(every, rel=1e-9)


def test_wide_kernels_on_few_pixels_are_bounded_at_their_size(rng):
    kernel = rng.standard_normal((3, 3, 256, 256)) / 48
    bound = network_bound(n.chain(conv("c", "x", kernel, (2, 4))))
    matrix = Convolution(kernel, (2, 4), padding="same").matmat(np.eye(2048))
    assert bound.upper == pytest.approx(np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1]), rel=1e-5)


def test_after_a_deadline_no_inner_ball_is_begun_and_the_bound_holds(rng, monkeypatch):
    A, B = rng.standard_normal((2, 6, 6))
    graph, point = n.chain(n.dense("a", "x", A), n.plain("r", "tanh", "a"), n.dense("b", "r", B)), np.ones((1, 6))
    radii = []
    real = Network.meet

    def meet(self, points, radius, before=None):
        radii.append(radius)
        return real(self, points, radius, before)

    monkeypatch.setattr(Network, "meet", meet)
    bound = ball_bound(graph, [point], 0.4)
    assert radii == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    radii.clear()
    late = ball_bound(graph, [point], 0.4, deadline=Deadline.after(0))
    assert radii == pytest.approx([0.0, 0.4])
    moves = rng.standard_normal((50, 6))
    moves *= 0.4 / np.linalg.norm(moves, axis=1, keepdims=True)
    slopes = 1 / np.cosh((point + moves) @ A) ** 2
    steepest = max(np.linalg.norm((A * slope) @ B, 2) for slope in slopes)
    assert steepest <= bound.upper <= late.upper * (1 + 1e-9)
