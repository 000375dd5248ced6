"""ONNX operators on balls, against differences of ONNX's reference implementation in float64."""

import numpy as np
import pytest
from onnx_calls import call
from test_network_onnx import function, saved

from opnorm.checkpoints.onnx_file import read_onnx
from opnorm.networks.balls.walk import Network
from opnorm.networks.folding import split
from opnorm.networks.linear_rules import bound_weight
from opnorm.networks.lipschitz import lipschitz_bound

onnx = pytest.importorskip("onnx")  # an extra of opnorm's

RNG = np.random.default_rng(3)
IMAGE = (4, 3, 4)
AFTER = [call("Tanh", "h", "y")]  # whose slopes tell where the numbers are


def pad(mode, amounts, value=None, **stored):
    constants = {"pads": np.array(amounts), **({} if value is None else {"value": np.array(value)}), **stored}
    return [call("Pad", "x pads" + (" value" if value is not None else ""), "h", mode=mode)], constants


def reduced(kind, **attributes):
    return [call(kind, "x", "h", **attributes)], {}


CASES = {
    "pad": pad("constant", [0, 1, 0, 2, 0, 0, 1, 0]),
    "pad with a number": pad("constant", [0, 0, 1, 0, 0, 0, 2, 1], 1.5),
    "pad by reflection": pad("reflect", [0, 0, 1, 2, 0, 0, 2, 1]),
    "pad by the edge": pad("edge", [0, 0, 3, 0, 0, 0, 0, 2]),
    "tile": ([call("Tile", "x times", "h")], {"times": np.array([1, 2, 1, 3])}),
    "expand": ([call("GlobalAveragePool", "x", "m"), call("Expand", "m shape", "h")], {"shape": np.array([4, 2, 3])}),
    "resize": (
        [call("Resize", "x roi scales", "h", nearest_mode="floor", coordinate_transformation_mode="asymmetric")],
        {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 3], np.float32)},
    ),
    "depth to space": ([call("DepthToSpace", "x", "h", blocksize=2)], {}),
    "depth to space by columns": ([call("DepthToSpace", "x", "h", blocksize=2, mode="CRD")], {}),
    "space to depth": (
        [call("Pad", "x pads", "p"), call("SpaceToDepth", "p", "h", blocksize=2)],
        {"pads": np.array([0, 0, 1, 0, 0, 0, 0, 0])},
    ),
    "sum": ([call("ReduceSum", "x axes", "h", keepdims=0)], {"axes": np.array([-1, 1])}),
    "magnitudes": reduced("ReduceL1", axes=[2]),
    "lengths": reduced("ReduceL2", axes=[1, 3], keepdims=0),
    "mean": reduced("ReduceMean", axes=[2], keepdims=0),
    "largest": reduced("ReduceMax", axes=[1]),
    "smallest": reduced("ReduceMin", axes=[1, 2], keepdims=0),
    "largest pixel": reduced("GlobalMaxPool"),
    "mean pixel": reduced("GlobalAveragePool"),
    "a mean that is repeated": ([call("GlobalAveragePool", "x", "m"), call("Sub", "x m", "h")], {}),
    "a vector behind which an axis is gone": (
        [call("MatMul", "x v", "m"), call("Softmax", "m", "s", axis=-1), call("Mul", "s ten", "h")],
        {"v": RNG.standard_normal(4), "ten": np.array(10.0)},
    ),
    "several images of one example": (
        [call("Reshape", "x images", "i"), call("Conv", "i K", "c", pads=[1, 0, 1, 0]), call("Reshape", "c one", "h")],
        {"images": np.array([2, 2, 3, 4]), "one": np.array([1, -1]), "K": RNG.standard_normal((3, 2, 3, 3))},
    ),
    "a bias that is computed": (
        [call("Reshape", "x flat", "f"), call("Neg", "b", "minus"), call("Gemm", "f W minus", "h")],
        {"flat": np.array([1, 48]), "b": 2 * RNG.standard_normal(3), "W": RNG.standard_normal((48, 3)) / 7},
    ),
    "a mean with a number": (
        [call("Relu", "x", "r"), call("Mean", "x r c", "h")],
        {"c": np.full((1, 4, 3, 4), 5.0)},
    ),
    "no zero in a shape": ([call("Reshape", "x flat", "h", allowzero=1)], {"flat": np.array([-1, 48])}),
    "slopes of channels": ([call("PRelu", "x slopes", "h")], {"slopes": RNG.standard_normal((4, 1, 1))}),
    "instances": (
        [call("InstanceNormalization", "x scale shift", "h", epsilon=0.1)],
        {"scale": RNG.standard_normal(4), "shift": RNG.standard_normal(4)},
    ),
    "instances of several frames": (
        [call("Reshape", "x two", "f"), call("InstanceNormalization", "f scale shift", "h", epsilon=0.1)],
        {"two": np.array([2, 2, 3, 4]), "scale": RNG.standard_normal(2), "shift": RNG.standard_normal(2)},
    ),
    "a negative number of shapes": (
        [
            call("Shape", "x", "s"),
            call("Gather", "s last", "n"),
            call("Sub", "one n", "d"),
            call("Div", "d two", "q"),
            call("Cast", "q", "f", to=11),
            call("Mul", "x f", "h"),
        ],
        {"last": np.array(3), "one": np.array(1), "two": np.array(2)},
    ),
    "unit vectors": (
        [
            call("ReduceL2", "x", "n", axes=[1]),
            call("Clip", "n least", "c"),
            call("Expand", "c shape", "e"),
            call("Div", "x e", "h"),
        ],
        {"least": np.array(1e-12), "shape": np.array([1, 4, 3, 4])},
    ),
    **{
        kind: reduced(kind, **attributes)
        for kind, attributes in {
            "HardSwish": {}, "HardSigmoid": {"alpha": 0.4, "beta": 0.3}, "Softsign": {},
            "Selu": {"alpha": 1.5, "gamma": 0.7}, "Elu": {"alpha": 0.6},
        }.items()
    },
    "a clip to one side": ([call("Clip", "x low high", "h")], {"low": np.array(0.25), "high": np.array(1.25)}),
}  # fmt: skip


ROUNDED = {"HardSwish": 1e-7}  # its sixth, which ONNX's reference implementation has in float32


def jacobian(f, x, step=1e-6):
    moves = step * np.eye(x.size)
    return np.array([(f(x + move, IMAGE) - f(x - move, IMAGE)) / (2 * step) for move in moves]).T


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tangents", [0, 48])
def test_an_operator_is_evaluated_to_its_rounding(tmp_path, case, tangents):
    """With the tangents of an example, or without."""
    nodes, stored = CASES[case]
    path, x = saved(tmp_path / "model.onnx", [*nodes, *AFTER], stored, IMAGE), RNG.standard_normal(48)
    network = Network(split(read_onnx(path).graph, gates=False), bound_weight, tangents, 0)
    met = network.meet([x.reshape(1, *IMAGE)], 0.0)
    assert network.ended(met) == ""
    value, truth = met.values[network.graph.outputs[0]], function(path)(x, IMAGE)
    assert np.all(np.abs(value.centre.ravel() - truth) <= value.error.ravel() + 1e-15 + ROUNDED.get(case, 0.0))
    assert value.error.max() < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_followed_on_a_ball(tmp_path, case):
    """At the centre both ends are the Jacobian's norm; on balls large and small no Jacobian is above the upper end."""
    nodes, stored = CASES[case]
    path = saved(tmp_path / "model.onnx", [*nodes, *AFTER], stored, IMAGE)
    f, x = function(path), RNG.standard_normal(48)
    exact = np.linalg.norm(jacobian(f, x), 2)
    at = lipschitz_bound(path, around=x.reshape(IMAGE), radius=0.0)
    assert at.lower <= exact * (1 + 1e-7)
    assert exact <= at.upper * (1 + 1e-7)
    assert at.upper <= at.lower * (1 + 1e-6)
    for radius in (0.1, 2.0):
        bound = lipschitz_bound(path, around=x.reshape(IMAGE), radius=radius)
        moves = RNG.standard_normal((12, 48))
        points = x + radius * moves / np.linalg.norm(moves, axis=1, keepdims=True)
        steepest = max(np.linalg.norm(jacobian(f, point), 2) for point in points)
        assert bound.upper is None or steepest <= bound.upper * (1 + 1e-7)
        assert bound.upper is not None or radius > 1


def test_a_pad_below_zero_crops_on_a_ball(tmp_path):
    nodes, stored = pad(
        "constant", [0, -1, 1, 0, 0, 0, -1, -2], 0.5
    )  # ONNX's reference implementation has no such pads
    path, x = saved(tmp_path / "model.onnx", [*nodes, *AFTER], stored, IMAGE), RNG.standard_normal(IMAGE)
    bound = lipschitz_bound(path, around=x, radius=0.0)
    kept = x[1:, :2, :2]
    exact = np.max(1 / np.cosh(kept) ** 2)
    assert bound.lower == pytest.approx(exact, rel=1e-9)
    assert bound.upper == pytest.approx(exact, rel=1e-9)


def test_images_beyond_the_tangents_limit_have_bounds_on_balls(tmp_path):
    """Of more than 4,096 numbers: what is left are constants of each node, on the ball where it tells more."""
    K, W = RNG.standard_normal((2, 3, 3, 3)), RNG.standard_normal((2, 3))
    nodes = [
        call("Conv", "x K", "c", pads=[1, 1, 1, 1]),
        call("GlobalAveragePool", "c", "m"),
        call("Sigmoid", "m", "gate"),
        call("Mul", "c gate", "gated"),
        call("GlobalAveragePool", "gated", "g"),
        call("Flatten", "g", "flat"),
        call("MatMul", "flat W", "y"),
    ]
    shape = (3, 40, 40)
    path = saved(tmp_path / "model.onnx", nodes, {"K": K, "W": W}, shape)
    x = RNG.standard_normal(shape)
    assert lipschitz_bound(path).upper is None
    bound, f = lipschitz_bound(path, around=x, radius=0.1), function(path)
    moves = RNG.standard_normal((30, x.size))
    moves *= 0.1 / np.linalg.norm(moves, axis=1, keepdims=True)
    quotients = [np.linalg.norm(f(x.ravel() + move, shape) - f(x.ravel(), shape)) / 0.1 for move in moves]
    assert max(quotients) <= bound.upper < np.inf


def test_an_axis_that_is_named_twice_counts_once(tmp_path):
    nodes = [call("ReduceMean", "x", "y", axes=[1, -1])]
    assert lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, (9,))).upper >= 1 / 3


def test_what_computes_with_integers_has_no_constant(tmp_path):
    """A mean of whole numbers is rounded: from 15 to 16 it may move by one, whatever their count."""
    make, whole = onnx.helper, onnx.TensorProto.INT32
    for node in (call("ReduceMean", "x", "y", axes=[1]), call("Sub", "x x", "y")):
        ends = [make.make_tensor_value_info("x", whole, [1, 16])], [make.make_tensor_value_info("y", whole, None)]
        model = make.make_model(make.make_graph([node], "g", *ends), opset_imports=[make.make_opsetid("", 17)])
        onnx.save(model, tmp_path / "model.onnx")
        bound = lipschitz_bound(tmp_path / "model.onnx")
        assert bound.upper is None
        assert "integers" in bound.unknown[0].rule


@pytest.mark.parametrize("size", ["axis 0 of y", "ceil(n/2)", "n + 1"])
def test_a_size_that_is_called_like_one_of_ours_is_another(tmp_path, size):
    """`y`, of any length, may repeat what is added to it."""
    make, double = onnx.helper, onnx.TensorProto.DOUBLE
    given = [call("AveragePool", "x", "p", kernel_shape=[1], strides=[2]), call("Add", "p z", "s")]
    shapes = {"x": [1, 1, "n"], "z": [1, 1, size]}
    ends = [make.make_tensor_value_info(name, double, shape) for name, shape in shapes.items()]
    graph = make.make_graph(given, "g", ends, [make.make_tensor_value_info("s", double, None)])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)]), tmp_path / "model.onnx")
    assert lipschitz_bound(tmp_path / "model.onnx").upper is None


def test_a_window_longer_than_the_image_has_no_constant(tmp_path):
    """Some runtimes take the mean of the pixels that are there, of norm 1 / sqrt(2) for two."""
    nodes = [call("AveragePool", "x", "y", kernel_shape=[5], strides=[5])]
    assert lipschitz_bound(saved(tmp_path / "model.onnx", nodes, {}, (1, 2))).upper is None


def test_an_input_that_only_its_shape_is_read_of_may_have_its_batch_axis(tmp_path):
    nodes = [
        call("Shape", "x", "s"),
        call("Gather", "s one", "n"),
        call("Cast", "n", "f", to=onnx.TensorProto.DOUBLE),
        call("Sub", "f z", "d"),
        call("Relu", "d", "y"),
    ]
    make, double = onnx.helper, onnx.TensorProto.DOUBLE
    ends = [make.make_tensor_value_info("x", double, [1, 3, 3]), make.make_tensor_value_info("z", double, [1, 4])]
    constant = [onnx.numpy_helper.from_array(np.array(1), "one")]
    graph = make.make_graph(nodes, "g", ends, [make.make_tensor_value_info("y", double, None)], constant)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)]), tmp_path / "model.onnx")
    for centre in ([np.zeros((3, 3)), np.full(4, 2.0)], [np.zeros((1, 3, 3)), np.full((1, 4), 2.0)]):
        assert lipschitz_bound(tmp_path / "model.onnx", around=centre, radius=0.1).lower == pytest.approx(1)


def test_the_node_at_which_a_ball_ends_is_named(tmp_path):
    nodes = [call("CumSum", "x axis", "c"), call("Relu", "c", "r"), call("Mul", "r r", "y")]
    bound = lipschitz_bound(
        saved(tmp_path / "model.onnx", nodes, {"axis": np.array(1)}, (6,)), around=np.ones(6), radius=0.1
    )
    assert bound.upper is None
    assert any(note.startswith("not followed on the ball: c (CumSum): ") for note in bound.notes)


def test_windows_with_gaps_that_share_pixels_have_their_norm(tmp_path):
    """Stride two, and a gap of one between two pixels: each pixel is read twice."""
    nodes = [call("AveragePool", "x", "y", kernel_shape=[2], dilations=[2], strides=[2])]
    model = onnx.load(saved(tmp_path / "model.onnx", nodes, {}, (1, 5000)))
    model.opset_import[0].version = 19
    onnx.save(model, tmp_path / "model.onnx")
    bound = lipschitz_bound(tmp_path / "model.onnx", around=np.zeros((1, 5000)), radius=0.1)
    moved = np.ones(2500)  # every other pixel
    means = (moved[:-1] + moved[1:]) / 2
    assert np.linalg.norm(means) / np.linalg.norm(moved) <= bound.upper
