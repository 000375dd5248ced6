"""Networks from ONNX files against ONNX's own reference implementation, by differences in float64."""

import graphs as n
import numpy as np
import pytest
from onnx_calls import call

from opnorm.networks.lipschitz import lipschitz_bound

onnx = pytest.importorskip("onnx")  # an extra of opnorm's
IMAGE = (2, 6, 6)
OPEN = (2, "height", "width")
DIFFERENCES = 1e-6  # of central differences with step 1e-6, numbers up to some hundred


def saved(path, nodes, constants, shape=IMAGE):
    """Write a network from `x` to `y`, every node named after its result."""
    make, double = onnx.helper, onnx.TensorProto.DOUBLE
    for node in nodes:
        node.name = node.output[0]
    ends = [make.make_tensor_value_info("x", double, ["N", *shape]), make.make_tensor_value_info("y", double, None)]
    initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = make.make_graph(nodes, "network", ends[:1], ends[1:], initial)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)])
    onnx.save(model, path)
    return path


def function(path):
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return lambda x, shape=IMAGE: session.run(None, {"x": x.reshape(1, *shape)})[0].ravel()


def check(path):
    bound = lipschitz_bound(path)
    assert bound.unknown == ()
    truth = n.largest_jacobian(function(path), int(np.prod(IMAGE)), points=2)
    assert truth <= bound.upper * (1 + DIFFERENCES)
    return bound, truth


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_residual_network_is_never_below_its_jacobians(tmp_path, rng):
    K, L, W = (rng.standard_normal(shape) for shape in ((4, 2, 3, 3), (4, 2, 3, 3), (3, 4)))
    scale, variance = rng.standard_normal(4), rng.uniform(0.2, 3, 4)
    constants = {"K": K, "L": L, "W": W, "scale": scale, "shift": np.ones(4), "variance": variance, "bias": np.ones(3)}
    nodes = [
        call("Conv", "x K", "conv", pads=[1, 1, 1, 1]),
        call("BatchNormalization", "conv scale shift shift variance", "normal"),
        call("Relu", "normal", "relu"),
        call("Conv", "relu L", "again", pads=[1, 1, 1, 1], group=2),
        call("Add", "relu again", "sum"),
        call("AveragePool", "sum", "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        call("GlobalAveragePool", "pool", "mean"),
        call("Flatten", "mean", "flat"),
        call("Gemm", "flat W bias", "y", transB=1, alpha=0.5),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, constants))
    assert bound.steps[0].name == "conv + normal"


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("Conv", {"strides": [2, 1], "pads": [0, 1, 2, 1]}),
        ("Conv", {"dilations": [2, 2]}),
        ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("ConvTranspose", {"strides": [1, 2]}),
    ],
)
def test_a_kernel_with_a_scale_after_it_is_never_below_and_close(tmp_path, rng, kind, attributes):
    kernel = rng.standard_normal((2, 4, 3, 3) if kind == "ConvTranspose" else (4, 2, 3, 3))
    constants = {"K": kernel, "s": rng.standard_normal(4), "z": np.zeros(4), "v": rng.uniform(0.2, 3, 4)}
    nodes = [call(kind, "x K", "conv", **attributes), call("BatchNormalization", "conv s z z v", "y")]
    bound, truth = check(saved(tmp_path / "model.onnx", nodes, constants))
    assert len(bound.steps) == 1
    assert bound.upper <= 1.5 * truth  # borders: the image is twice as long as the kernel


def test_one_kernel_used_in_two_ways_is_bounded_in_each(tmp_path, rng):
    kernel = np.abs(rng.standard_normal((2, 2, 3, 3)))
    nodes = [call("Conv", "x K", "a", strides=[3, 3], pads=[1, 1, 1, 1]), call("Conv", "a K", "y", pads=[1, 1, 1, 1])]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {"K": kernel}, OPEN))
    once = [call("Conv", "x K", "y", pads=[1, 1, 1, 1])]
    alone = lipschitz_bound(saved(tmp_path / "one.onnx", once, {"K": kernel}, OPEN))
    assert bound.steps[1].constant == pytest.approx(alone.upper, rel=1e-6)
    assert bound.steps[0].constant < 0.7 * alone.upper  # a stride of three reads each pixel once


def test_a_matrix_on_the_left_is_not_joined_with_one_on_the_right(tmp_path, rng):
    W = rng.standard_normal((6, 6))
    nodes = [call("MatMul", "x W", "right"), call("MatMul", "W right", "y")]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, {"W": W}))
    assert bound.upper == pytest.approx(np.linalg.norm(W, 2) ** 2, rel=1e-5)


def test_adding_a_constant_that_repeats_the_input_is_unknown(tmp_path):
    nodes = [call("Add", "x c", "y")]
    same = lipschitz_bound(saved(tmp_path / "a.onnx", nodes, {"c": np.ones((2, 1, 1))}))
    assert same.upper == pytest.approx(1, rel=1e-9)
    assert lipschitz_bound(saved(tmp_path / "b.onnx", nodes, {"c": np.ones((3, 2, 6, 6))})).upper is None


@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
def test_large_convolutions_of_a_file_are_bounded_on_a_torus(tmp_path, rng, monkeypatch, pool):
    monkeypatch.setattr("opnorm.networks.sizes._WRITTEN", 0)  # none is small
    shapes = {"K": (3, 2, 3, 3), "L": (4, 3, 3, 3), "V": (5, 8), "U": (2, 5)}
    constants = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    nodes = [
        call("Conv", "x K", "a", pads=[1, 1, 1, 1]),
        call("Relu", "a", "b"),
        call("Conv", "b L", "c", pads=[1, 0, 1, 2], strides=[1, 2]),
        call("Relu", "c", "d"),
        call(pool, "d", "e", kernel_shape=[3, 2], strides=[3, 2]),
        call("Flatten", "e", "f"),
        call("Gemm", "f V", "g", transB=1),
        call("Sigmoid", "g", "h"),
        call("Gemm", "h U", "y", transB=1),
    ]
    bound, _ = check(saved(tmp_path / "model.onnx", nodes, constants))
    assert bound.steps[-1].name == "a ... y"
    assert bound.steps[-1].constant == pytest.approx(bound.upper, rel=1e-9)


def test_a_choice_by_a_constant_keeps_entries(tmp_path):
    chosen = np.arange(72).reshape(IMAGE) % 3 > 0
    for nodes, constants in (
        ([call("Where", "mask x zero", "y")], {"mask": chosen, "zero": np.array(0.5)}),
        ([call("Where", "mask other x", "y")], {"mask": chosen, "other": np.ones(IMAGE)}),
    ):
        assert check(saved(tmp_path / "model.onnx", nodes, constants))[0].upper == pytest.approx(1)
    repeated = [call("ReduceSum", "x axes", "s"), call("Where", "mask s zero", "y")]
    constants = {"mask": chosen, "zero": np.array(0.5), "axes": np.array([1, 2, 3])}
    assert lipschitz_bound(saved(tmp_path / "model.onnx", repeated, constants)).upper is None
    both = [call("Neg", "x", "n"), call("Where", "mask x n", "y")]
    assert lipschitz_bound(saved(tmp_path / "model.onnx", both, {"mask": chosen})).upper is None
