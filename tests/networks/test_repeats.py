"""Values that are repeated to fit others, against the norms of the explicit matrices of linear networks."""

import numpy as np
import pytest
from onnx_calls import call
from test_network_onnx import function, saved

from opnorm.networks.lipschitz import lipschitz_bound

pytest.importorskip("onnx")  # an extra of opnorm's

LINEAR = {  # nodes from `a`, six entries, and `b`, one entry; what their sum over paths is at most
    "a sum": ([call("Add", "a b", "y")], 1 + np.sqrt(6)),
    "a difference": ([call("Sub", "b a", "y")], 1 + np.sqrt(6)),
    "a sum of three": ([call("Sum", "b a b", "y")], 1 + 2 * np.sqrt(6)),
    "a mean": ([call("Mean", "a b", "y")], (1 + np.sqrt(6)) / 2),
    "a constant": ([call("Add", "b six", "y")], np.sqrt(6)),
    "a factor": ([call("Mul", "b six", "y")], np.sqrt(6) * 6),
    "a divisor": ([call("Div", "b six", "y")], np.sqrt(6)),
}
STORED = {"six": np.arange(1.0, 7), "V": np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0][:, :7]}
BEFORE = [call("MatMul", "x V", "v"), call("Split", "v sizes", "a b", axis=1)]


def matrix_of(path, size):
    """Return the matrix of a linear network, by its values at unit vectors."""
    f = function(path)
    zero = f(np.zeros(size), (size,))
    return np.array([f(row, (size,)) - zero for row in np.eye(size)]).T


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("radius", [None, 0.5])
def test_what_is_repeated_moves_by_the_root_of_how_often(tmp_path, name, radius):
    nodes, most = LINEAR[name]
    path = saved(tmp_path / "model.onnx", [*BEFORE, *nodes], {**STORED, "sizes": np.array([6, 1])}, (8,))
    ball = {} if radius is None else {"around": np.ones(8), "radius": radius}
    bound = lipschitz_bound(path, **ball)
    exact = np.linalg.norm(matrix_of(path, 8), 2)
    assert exact <= bound.upper * (1 + 1e-9)
    assert bound.upper <= (most if radius is None else exact) * (1 + 1e-6)


def test_pixels_are_repeated_along_every_axis_of_one_entry(tmp_path):
    nodes = [call("GlobalAveragePool", "x", "m"), call("Add", "m x", "y")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}))
    assert bound.upper == pytest.approx(2, rel=1e-9)  # a mean, repeated: its norm is 1
    nodes = [call("ReduceSum", "x axes", "m"), call("Add", "m x", "y")]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {"axes": np.array([1, 3])}))
    assert bound.upper == pytest.approx(1 + 12, rel=1e-9)


@pytest.mark.parametrize("sizes", [("N", 1), (1, "N")])
def test_of_an_unknown_number_of_times_there_is_no_bound(tmp_path, sizes):
    nodes = [call("MatMul", "x one", "a"), call("MatMul", "a two", "b"), call("Add", "a b", "y")]
    stored = {"one": np.ones((1, 1)), "two": np.ones((1, 3))}
    assert lipschitz_bound(saved(tmp_path / "model.onnx", nodes, stored, (sizes[0], 1))).upper is not None
    nodes = [call("ReduceMean", "x", "a", axes=[1]), call("Add", "a x", "y")]
    assert lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, ("open",))).upper is None


def test_maxima_of_a_repeated_value_are_never_below_their_quotients(tmp_path):
    nodes = [*BEFORE, call("Max", "a b", "y")]
    path = saved(tmp_path / "model.onnx", nodes, {**STORED, "sizes": np.array([6, 1])}, (8,))
    bound, f, rng = lipschitz_bound(path), function(path), np.random.default_rng(0)
    along = np.linalg.pinv(STORED["V"].T)[:, 6]  # moves b alone
    low = -100 * np.linalg.pinv(STORED["V"].T)[:, :6].sum(axis=1)
    quotients = [
        np.linalg.norm(f(low + along + step, (8,)) - f(low, (8,))) / np.linalg.norm(along + step)
        for step in 0.01 * rng.standard_normal((20, 8))
    ]
    assert 0.95 * np.sqrt(6) <= max(quotients) <= bound.upper


def test_a_value_less_its_mean_is_a_projection_of_images_of_any_size(tmp_path):
    nodes = [call("ReduceMean", "x", "m", axes=[2, -1]), call("Sub", "x m", "y")]
    for shape in ((2, 6, 6), (2, "height", "width")):
        bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, shape))
        assert bound.upper == pytest.approx(1, rel=1e-9)


def test_the_mean_of_another_value_is_no_projection(tmp_path):
    nodes = [call("Neg", "x", "n"), call("ReduceMean", "n", "m", axes=[1]), call("Sub", "x m", "y")]
    path = saved(tmp_path / "model.onnx", nodes, {}, (6,))
    exact = np.linalg.norm(matrix_of(path, 6), 2)
    assert exact == pytest.approx(2)
    assert lipschitz_bound(path).upper >= exact * (1 - 1e-12)


MIXED = {
    "a mean": [call("ReduceMean", "x", "m", axes=[0]), call("Sub", "x m", "y")],
    "the first": [call("Slice", "x zero one zero", "m"), call("Sub", "x m", "y")],
    "a part": [call("Split", "x", "m n", axis=0), call("Sub", "x m", "y")],
    "one by its place": [call("Gather", "x zero", "m", axis=0), call("Sub", "x m", "y")],
}


@pytest.mark.parametrize("name", MIXED)
def test_examples_that_are_mixed_are_not_followed_on_a_ball(tmp_path, name):
    """Of a batch of one such a network is another function: less the mean of its examples, one example is zero."""
    path = saved(tmp_path / "model.onnx", MIXED[name], {"zero": np.array([0]), "one": np.array([1])}, (6,))
    bound = lipschitz_bound(path, around=np.ones(6), radius=1.0)
    assert bound.lower is None
    assert bound.upper is None or bound.upper >= 1


def test_the_mean_of_all_examples_is_taken_off_by_a_projection(tmp_path):
    assert lipschitz_bound(saved(tmp_path / "model.onnx", MIXED["a mean"], {}, (6,))).upper == pytest.approx(
        1, rel=1e-9
    )
