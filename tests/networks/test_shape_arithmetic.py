"""Networks as exporters write them: shapes computed on the way, open sizes, ends that are no function of the values."""

import numpy as np
import pytest
from test_network_onnx import OPEN, call, check, saved

from opnorm.networks.lipschitz import lipschitz_bound

onnx = pytest.importorskip("onnx")  # an extra of opnorm's

TARGET = {"zero": np.array(0), "one": np.array([0]), "rest": np.array([-1])}


def flattened(value, result):
    """Return `x.view(x.size(0), -1)` as `torch.onnx.export` writes it."""
    return [
        call("Shape", value, "shape"),
        call("Gather", "shape zero", "batch", axis=0),
        call("Unsqueeze", "batch one", "first"),
        call("Concat", "first rest", "target", axis=0),
        call("Reshape", f"{value} target", result),
    ]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_shape_that_is_computed_is_passed_by(tmp_path, rng):
    K, W = rng.standard_normal((4, 2, 3, 3)), rng.standard_normal((5, 4 * 36))
    nodes = [
        call("Conv", "x K", "conv", pads=[1, 1, 1, 1]),
        call("Relu", "conv", "relu"),
        *flattened("relu", "flat"),
        call("Gemm", "flat W", "y", transB=1),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {"K": K, "W": W, **TARGET}))
    assert [step.name for step in bound.steps if step.kind != "chain"] == ["conv", "relu", "flat", "y"]


def test_a_shape_that_is_computed_stops_no_joining(tmp_path, rng):
    K, s = rng.standard_normal((4, 2, 3, 3)), rng.uniform(0.2, 3, 4)
    nodes = [
        call("Conv", "x K", "conv"),
        call("BatchNormalization", "conv s s s s", "normal"),
        call("Shape", "conv", "shape"),
        call("Reshape", "normal shape", "y"),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {"K": K, "s": s}))
    assert [step.name for step in bound.steps] == ["conv + normal", "y"]


def test_what_is_made_of_shapes_alone_adds_nothing(tmp_path):
    nodes = [
        call("Shape", "x", "shape"),
        call("ConstantOfShape", "shape", "zeros"),
        call("Cast", "zeros", "doubles", to=11),
        call("Concat", "x doubles", "y", axis=1),
    ]
    bound, truth = check(saved(tmp_path / "model.onnx", nodes, {}))
    assert bound.upper == pytest.approx(truth, rel=1e-6)
    assert {step.name: step.constant for step in bound.steps} == {"doubles": 0.0, "y": 1.0}


def test_a_value_that_is_steered_by_values_is_unknown(tmp_path):
    nodes = [
        call("ReduceMax", "x", "largest", keepdims=0),
        call("Cast", "largest", "size", to=7),
        call("Unsqueeze", "size one", "sizes"),
        call("Concat", "sizes rest", "target", axis=0),
        call("Reshape", "x target", "y"),
    ]
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", nodes, TARGET))
    assert bound.upper is None
    assert "y" in [step.name for step in bound.unknown]


def test_a_product_with_the_number_of_pixels_is_unknown(tmp_path):
    nodes = [call("Size", "x", "count"), call("Cast", "count", "factor", to=11), call("Mul", "x factor", "y")]
    assert lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {})).upper is None


RESIDUAL = {"K": (4, 2, 3, 3), "L": (4, 4, 3, 3), "P": (4, 2, 1, 1)}


def residual(shortcut, **attributes):
    return [
        call("Conv", "x K", "a", pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
        call("Relu", "a", "relu"),
        call("Conv", "relu L", "b", pads=[1, 1, 1, 1]),
        call(shortcut, "x P" if shortcut == "Conv" else "x", "c", **attributes),
        call("Add", "b c", "y"),
    ]


def test_branches_of_one_open_size_are_added(tmp_path, rng):
    constants = {name: rng.standard_normal(shape) for name, shape in RESIDUAL.items()}
    bound = lipschitz_bound(saved(tmp_path / "a.onnx", residual("Conv", strides=[2, 2]), constants, OPEN))
    fixed, _ = check(saved(tmp_path / "b.onnx", residual("Conv", strides=[2, 2]), constants))
    assert bound.unknown == ()
    assert fixed.upper <= bound.upper


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2], "pads": [1, 0, 0, 0]},  # one more pixel on images of an even height
        {"strides": [1, 1]},
        {"strides": [3, 2]},
    ],
)
def test_branches_whose_open_sizes_may_differ_are_unknown(tmp_path, rng, attributes):
    constants = {name: rng.standard_normal(shape) for name, shape in RESIDUAL.items()}
    bound = lipschitz_bound(saved(tmp_path / "model.onnx", residual("Conv", **attributes), constants, OPEN))
    assert [step.name for step in bound.unknown] == ["y"]


def test_shapes_are_known_behind_many_slices(tmp_path):
    """GhostNet cuts channels off in each of its modules, and adds a shortcut behind them."""
    nodes, value = [], "x"
    for i in range(30):
        nodes += [call("Relu", value, f"r{i}"), call("Slice", f"r{i} zero two one", f"s{i}")]
        value = f"s{i}"
    nodes.append(call("Add", f"{value} x", "y"))
    constants = {"zero": np.array([0]), "two": np.array([2]), "one": np.array([1])}
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, constants))
    assert bound.upper == pytest.approx(2)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_zeros_are_added_as_many_as_a_computed_size_asks_for(tmp_path, mode):
    """TensorFlow's padding, as models that were ported from it compute it."""
    nodes = [
        call("Shape", "x", "shape"),
        call("Cast", "shape", "real", to=11),
        call("Mul", "real half", "halved"),
        call("Ceil", "halved", "up"),
        call("Sub", "up halved", "missing"),
        call("Clip", "missing zero", "clipped"),
        call("Cast", "clipped", "before", to=7),
        call("Concat", "before before", "pads", axis=0),
        call("Pad", "x pads", "y", mode=mode),
    ]
    path = saved(tmp_path / "model.onnx", nodes, {"half": np.array(0.5), "zero": np.array(0.0)})
    if mode == "constant":
        assert check(path)[0].upper == pytest.approx(1)
    else:
        assert lipschitz_bound(path).upper is None


def test_a_node_that_is_called_as_a_constant_is_no_constant(tmp_path):
    nodes = [call("Relu", "x", "relu"), call("Reshape", "relu target", "shaped"), call("Abs", "shaped", "y")]
    path = saved(tmp_path / "model.onnx", nodes, {"target": np.array([-1, 72])})
    model = onnx.load(path)
    model.graph.node[0].name = "target"
    onnx.save(model, path)
    assert check(path)[0].upper == pytest.approx(1)


def test_what_is_computed_from_shapes_and_constants_alone_adds_nothing(tmp_path):
    nodes = [
        call("Shape", "x", "shape"),
        call("Slice", "shape one two", "channels"),
        call("Tile", "values channels", "repeated"),
        call("Expand", "repeated shape", "spread"),
        call("Concat", "x spread", "y", axis=1),
    ]
    constants = {"one": np.array([3]), "two": np.array([4]), "values": np.array([1.0])}
    assert check(saved(tmp_path / "model.onnx", nodes, constants))[0].upper == pytest.approx(1)
