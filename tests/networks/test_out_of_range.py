"""Attributes outside the range for which a rule holds: the node's constant is unknown, or right all the same."""

import graphs as n
import numpy as np
import pytest
from test_network_onnx import call, function, saved

from opnorm.checkpoints.records import Node
from opnorm.networks.activations import activation
from opnorm.networks.bound import network_bound
from opnorm.networks.effects import Unbounded
from opnorm.networks.lipschitz import lipschitz_bound


def bound_of(kind, weights=(), **options):
    held = {role: n.weight(role, np.asarray(value)) for role, value in dict(weights).items()}
    return network_bound(n.chain(Node("node", kind, ("x",), options, held)))


UNKNOWN = [
    ("Celu", {"alpha": -1.0}),
    ("Celu", {"alpha": 0.0}),
    ("keras.ops.Celu", {"alpha": -1.0}),
    ("keras.ops.SoftShrink", {"threshold": -1.0}),
    ("keras.ops.Squareplus", {"b": -3.0}),
    ("keras.ops.Relu", {"arguments": {"args": [3.0]}}),
    ("LeakyRelu", {"alpha": float("nan")}),
    ("LeakyRelu", {"alpha": float("inf")}),
    ("Elu", {"alpha": float("inf")}),
    ("HardSigmoid", {"alpha": float("nan")}),
    ("Selu", {"gamma": float("inf")}),
    ("Dropout", {"is_test": 0}),
    ("RepeatVector", {"n": -4}),
    ("RepeatVector", {"n": 0}),
    ("UpSampling2D", {"size": [-2, -2]}),
    ("UpSampling2D", {"size": [-2, -2], "interpolation": "bilinear"}),
    ("UpSampling2D", {"size": [2, 2, 2]}),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [-1, -1]}),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [0, 1]}),
    ("MaxPool", {"kernel_shape": [0, 2]}),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [-1, -1]}),
    ("MaxPool", {"kernel_shape": [2, 2], "pads": [-1, -1, -1, -1]}),
    ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "SAME_MIDDLE"}),
    ("MaxPool", {"kernel_shape": [2.5, 2.5]}),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 1]}),
    ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "VALID", "pads": [1, 1, 1, 1]}),
    ("MaxPooling2D", {"pool_size": [2, 2], "padding": "causal"}),
    ("AveragePooling2D", {"pool_size": [2, 2], "strides": [-2, -2]}),
    ("Rescaling", {"scale": float("nan"), "offset": 0.0}),
    ("Resize", {"mode": "cubic"}),
]


@pytest.mark.parametrize(("kind", "options"), UNKNOWN)
def test_settings_outside_a_rules_range_are_unknown(kind, options):
    bound = bound_of(kind, **options)
    assert bound.upper is None
    assert [step.name for step in bound.unknown] == ["node"]


@pytest.mark.parametrize(
    ("kind", "weights", "options"),
    [
        ("Dropout", {"1": 0.9, "2": True}, {}),
        ("BatchNormalization", {"gamma": np.ones(3), "moving_variance": np.ones(3)}, {"training_mode": 1}),
        ("BatchNormalization", {"gamma": np.ones(3), "moving_variance": np.ones(3)}, {"is_test": 0}),
        ("BatchNormalization", {"gamma": np.ones(3), "moving_variance": -np.ones(3)}, {}),
        ("BatchNormalization", {"0": np.ones(3), "moving_variance": np.ones(3)}, {}),  # gamma is what is computed
        ("PRelu", {"0": np.ones(3)}, {}),  # its slopes are
        ("Clip", {"0": np.ones(3)}, {}),
        ("Div", {"0": np.ones(1)}, {}),
        ("Div", {"1": np.zeros(1)}, {}),
        ("Resize", {"2": np.array([1, 1, 0.5, 0.5])}, {}),
        ("Resize", {"2": np.array([1, 1, -2.0, -2.0])}, {}),
        ("Upsample", {"1": np.array([1, 1, 2, 2])}, {"mode": "linear"}),
        ("Pad", {"1": np.array([1, 1])}, {"mode": "symmetric"}),
    ],
)
def test_weights_that_take_a_rule_out_of_its_range_are_unknown(kind, weights, options):
    assert bound_of(kind, weights, **options).upper is None


@pytest.mark.parametrize("mode", [None, False, True])
def test_a_dropout_counts_as_it_runs(mode):
    weights = {"1": 0.9} | ({} if mode is None else {"2": mode})
    upper = bound_of("Dropout", weights).upper
    assert upper == (None if mode else pytest.approx(1, rel=1e-9))


SAFE = {  # by kind: what it computes with one parameter, over values of it that are right
    "Elu": (lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), "alpha", [-2.0, 0.0, 0.5, 3.0]),
    "Celu": (lambda x, a: np.maximum(x, 0) + a * np.expm1(np.minimum(x, 0) / a), "alpha", [0.1, 1.0, 9.0]),
    "LeakyRelu": (lambda x, a: np.where(x > 0, x, a * x), "alpha", [-3.0, 0.0, 0.5, 4.0]),
    "HardSigmoid": (lambda x, a: np.clip(a * x + 0.5, 0, 1), "alpha", [-3.0, 0.0, 0.2, 4.0]),
    "Selu": (lambda x, a: 1.0507 * np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), "alpha", [-3.0, 0.0, 1.6]),
    "Swish": (lambda x, a: x / (1 + np.exp(-np.clip(a * x, -700, 700))), "alpha", [-2.0, 0.0, 0.5, 5.0]),
    "SoftShrink": (lambda x, t: np.sign(x) * np.maximum(abs(x) - t, 0), "threshold", [0.0, 0.5, 2.0]),
    "Squareplus": (lambda x, b: (x + np.sqrt(x**2 + b)) / 2, "b", [0.0, 1.0, 4.0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAFE)
def test_parameters_in_range_keep_every_difference_quotient_inside(kind):
    function, name, values = SAFE[kind]
    x = np.arange(-30, 30, 1e-3)
    for value in values:
        low, high = activation(kind, {name: value, **({"gamma": 1.0507} if kind == "Selu" else {})}).slopes
        quotients = np.diff(function(x, value)) / 1e-3
        assert low - 1e-9 <= quotients.min()
        assert quotients.max() <= high + 1e-9


def test_a_celu_that_is_steep_has_no_slope_whatever_calls_it():
    with pytest.raises(Unbounded, match="alpha"):
        activation("Celu", {"alpha": -1.0})


def test_dropout_and_celu_in_a_file(tmp_path):
    """The issue's two cases: the evaluator's kept entries are multiplied by 10, and the exponential grows to 255."""
    on = {"ratio": np.array(0.9), "training": np.array(True)}
    dropout = saved(tmp_path / "a.onnx", [call("Dropout", "x ratio training", "y", seed=1)], on)
    x = np.ones(72)
    assert max(abs(function(dropout)(2 * x) - function(dropout)(x))) > 9
    assert lipschitz_bound(dropout).upper is None
    celu = saved(tmp_path / "b.onnx", [call("Celu", "x", "y", alpha=-1.0)], {})
    assert lipschitz_bound(celu).upper is None


def test_a_second_result_is_not_taken_for_the_first(tmp_path):
    """The places of maxima jump, whatever the maxima do."""
    nodes = [call("MaxPool", "x", "m", kernel_shape=[2, 2], strides=[2, 2]), call("Cast", "i", "y", to=11)]
    nodes[0].output.append("i")
    bound = lipschitz_bound(saved(tmp_path / "a.onnx", nodes, {}))
    assert bound.upper is None
    assert [step.kind for step in bound.unknown] == ["result 2 of MaxPool"]
    plain = lipschitz_bound(saved(tmp_path / "b.onnx", nodes[:1], {}).rename(tmp_path / "c.onnx"))
    assert plain.unknown == ()


def test_a_constant_that_the_input_picks_is_none_to_the_network(tmp_path):
    """A table of kernels of which the input takes one, put beside the input: its change is no change of one."""
    nodes = [call("Cast", "x", "i", to=7), call("Gather", "t i", "g"), call("Concat", "g g", "y", axis=0)]
    bound = lipschitz_bound(saved(tmp_path / "a.onnx", nodes, {"t": np.ones((2, 2, 2))}))
    assert bound.upper is None


def test_shapes_that_the_file_claims_of_its_inner_values_do_not_count(tmp_path):
    import onnx

    nodes = [call("Relu", "x", "r"), call("GlobalAveragePool", "r", "y")]
    path = saved(tmp_path / "a.onnx", nodes, {}, shape=(2, "h", "w"))
    model = onnx.load(path)
    claim = onnx.helper.make_tensor_value_info("r", onnx.TensorProto.DOUBLE, [1, 2, 100, 100])
    model.graph.value_info.append(claim)
    onnx.save(model, path)
    assert lipschitz_bound(path).upper == pytest.approx(1, rel=1e-9)
