"""ONNX operators that pick, repeat, sort or weigh entries, against ONNX's own reference implementation."""

import graphs as n
import numpy as np
import pytest

from opnorm.networks.lipschitz import lipschitz_bound

onnx = pytest.importorskip("onnx")  # an extra of opnorm's
SHAPE = (4, 2, 3)


def saved(path, kind, constants, options, outputs=("y",)):
    make, double = onnx.helper, onnx.TensorProto.DOUBLE
    ends = [make.make_tensor_value_info("x", double, ["N", *SHAPE]), make.make_tensor_value_info("y", double, None)]
    initial = [onnx.numpy_helper.from_array(np.asarray(value), f"c{i}") for i, value in enumerate(constants)]
    inputs = ["x", *[f"c{i}" for i in range(len(constants))]]
    node = make.make_node(kind, inputs, list(outputs), name="y", **options)
    graph = make.make_graph([node], "network", ends[:1], ends[1:], initial)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)]), path)
    return path


def function(path):
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return lambda x: session.run(None, {"x": x.reshape(1, *SHAPE)})[0].ravel()


CASES = {
    "gather": ("Gather", [np.array([2, 0])], {"axis": 1}, 1.0),
    "gather one": ("Gather", [np.array(1)], {"axis": 2}, 1.0),
    "gather often": ("Gather", [np.array([0, 3, 0, 0])], {"axis": 1}, np.sqrt(3)),
    "gather from the end": ("Gather", [np.array([3, -1])], {"axis": 1}, np.sqrt(2)),
    "sorted": ("TopK", [np.array([2])], {"axis": 1}, 1.0),
    "length": ("ReduceL2", [np.array([1])], {}, 1.0),
    "magnitudes": ("ReduceL1", [np.array([1, 3])], {}, np.sqrt(12)),
    "smallest": ("ReduceMin", [np.array([2])], {}, 1.0),
    "smooth maximum": ("ReduceLogSumExp", [np.array([1])], {}, 1.0),
    "log-softmax": ("LogSoftmax", [], {}, np.sqrt(3)),
    "triangle": ("Trilu", [], {"upper": 1}, 1.0),
    "expand": ("Expand", [np.array([1, 4, 2, 3])], {}, 1.0),
    "local responses": ("LRN", [], {"alpha": 2.0, "beta": 0.75, "bias": 0.5, "size": 3}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_never_below_its_jacobians(tmp_path, case):
    kind, constants, options, wanted = CASES[case]
    outputs = ("y", "places") if kind == "TopK" else ("y",)
    path = saved(tmp_path / "network.onnx", kind, constants, options, outputs)
    bound = lipschitz_bound(path)
    assert bound.unknown == ()
    spreads = (0.5, 2.0, 6.0)
    truth = max(n.largest_jacobian(function(path), int(np.prod(SHAPE)), 20, spread=spread) for spread in spreads)
    assert truth <= bound.upper * (1 + 1e-6)  # of central differences
    assert wanted is None or bound.upper == pytest.approx(wanted)
    assert wanted is not None or bound.upper < 3 * truth


@pytest.mark.parametrize(
    ("kind", "constants", "options", "reason"),
    [
        ("TopK", [np.array([2])], {"axis": 1, "sorted": 0}, "order"),
        ("LRN", [], {"alpha": -1.0, "beta": 0.75, "bias": 1.0, "size": 3}, "alpha -1"),
        ("LogSoftmax", [], {"axis": 0}, "how many classes"),
    ],
)
def test_settings_without_a_bound_are_told(tmp_path, kind, constants, options, reason):
    outputs = ("y", "places") if kind == "TopK" else ("y",)
    bound = lipschitz_bound(saved(tmp_path / "network.onnx", kind, constants, options, outputs))
    assert bound.upper is None
    assert reason in bound.unknown[0].rule
