"""Attributes and versions of ONNX's operators that change a function: they count, or there is no bound."""

import numpy as np
import pytest

from opnorm.networks.lipschitz import lipschitz_bound

onnx = pytest.importorskip("onnx")  # an extra of opnorm's


def call(kind, inputs, outputs="y", **attributes):
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


@pytest.fixture
def saved(tmp_path):
    """Return a function that writes a network from `x` to `y`."""

    def save(nodes, shape, version, **constants):
        make, double = onnx.helper, onnx.TensorProto.DOUBLE
        ends = [make.make_tensor_value_info("x", double, ["N", *shape]), make.make_tensor_value_info("y", double, None)]
        initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        graph = make.make_graph(nodes, "network", ends[:1], ends[1:], initial)
        path = tmp_path / "model.onnx"
        onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", version)]), path)
        return path

    return save


def upper(path, around=None):
    return lipschitz_bound(path, **({} if around is None else {"around": around, "radius": 1e-3})).upper


def test_softmax_before_version_13_runs_over_all_axes_as_one(saved):
    scores = np.zeros((1, 3, 4))
    scores[..., 0] = 20.0  # along the last axis decided, of all together three are alike: slope 1 / 3
    assert upper(saved([call("LogSoftmax", "x")], (3, 4), 11)) is None  # of twelve classes, not four
    assert upper(saved([call("LogSoftmax", "x")], (4,), 11)) == pytest.approx(2)
    assert upper(saved([call("LogSoftmax", "x")], (3, 4), 13)) == pytest.approx(2)
    assert upper(saved([call("Softmax", "x")], (3, 4), 11), scores) > 0.33
    assert upper(saved([call("Softmax", "x")], (3, 4), 13), scores) < 1e-3
    assert upper(saved([call("Softmax", "x", axis=2)], (3, 4), 11), scores) < 1e-3


def test_flatten_counts_its_axis_from_the_back(saved):
    network = saved([call("Flatten", "x", "flat", axis=-1), call("Softmax", "flat", axis=-1)], (3, 4), 17)
    assert upper(network, np.zeros((1, 3, 4))) > 0.2499  # of four alike, not of one


@pytest.mark.parametrize("version", [7, 9])
def test_batch_normalization_with_further_results_is_in_training_mode(saved, version):
    values = {"one": np.ones(3), "zero": np.zeros(3), "variance": np.full(3, 100.0)}
    given = "x one zero zero variance"
    training = saved([call("BatchNormalization", given, "y a b c d")], (3, 4, 4), version, **values)
    assert upper(training) is upper(training, np.ones((1, 3, 4, 4))) is None
    assert upper(saved([call("BatchNormalization", given)], (3, 4, 4), version, **values)) < 0.11


@pytest.mark.parametrize("kind", ["BatchNormalization", "Dropout"])
def test_before_version_7_training_is_the_default(saved, kind):
    values = {"one": np.ones(3), "zero": np.zeros(3)}
    given = "x one zero zero one" if kind == "BatchNormalization" else "x"
    assert upper(saved([call(kind, given)], (3, 4, 4), 6, **values)) is None
    assert upper(saved([call(kind, given, is_test=1)], (3, 4, 4), 6, **values)) == pytest.approx(1, rel=1e-4)


def test_statistics_of_each_entry_are_not_spread_on_a_ball(saved):
    values = {"one": np.ones((1, 4, 4)), "zero": np.zeros((1, 4, 4))}
    nodes = [call("BatchNormalization", "x one zero zero one", "normal", spatial=0), call("Flatten", "normal", "flat")]
    scores = np.full((1, 1, 4, 4), -20.0)
    scores[..., :2, 0] = 0.0
    bound = upper(saved([*nodes, call("Softmax", "flat", axis=1)], (1, 4, 4), 7, **values), scores)
    assert bound > 0.49  # two are alike; 16 copies of each would move less


def test_slopes_that_repeat_their_input_have_no_bound(saved):
    assert (
        upper(saved([call("PRelu", "x slopes")], (1,), 16, slopes=np.full(5, 2.0))) is None
    )  # it would be sqrt(5) * 2
    assert upper(saved([call("PRelu", "x slopes")], (5,), 16, slopes=np.full((1, 1, 1), 2.0))) is None  # adds an axis
    assert upper(saved([call("PRelu", "x slopes")], (5,), 16, slopes=np.full(5, 2.0))) == pytest.approx(2)
    assert upper(saved([call("PRelu", "x slopes")], (5, 3, 3), 6, slopes=np.full(5, 2.0))) == pytest.approx(2)


def test_factors_at_an_axis_before_version_7_are_no_factors_of_the_last_axis(saved):
    factors = np.array([0.01, 0.01, 5.0])
    nodes = [call("Mul", "x factors", "scaled", axis=1, broadcast=1), call("MatMul", "scaled picks")]
    picks = np.array([[1.0], [0.0], [0.0]])  # of each row the first, whose factor is the row's
    assert upper(saved(nodes, (3, 3), 6, factors=factors, picks=picks), np.ones((1, 3, 3))) is None


def test_an_exponent_with_more_axes_adds_them(saved):
    nodes = [call("Pow", "x two", "squared"), call("ReduceMean", "squared", axes=[1])]
    bound = upper(saved(nodes, (3,), 13, two=np.full((1, 1, 1), 2.0)), np.ones((1, 3)))
    assert bound is None  # the mean of one entry, slope 2, not of three


def test_no_axes_are_all_of_them(saved):
    mean = call("ReduceMean", "x", "mean")
    mean.attribute.append(onnx.helper.make_attribute("axes", [], attr_type=onnx.AttributeProto.INTS))
    assert upper(saved([mean, call("Sub", "x mean")], (4,), 11), np.ones((1, 4))) is None  # and not x - x


def test_integers_over_integers_are_rounded(tmp_path):
    make, integers = onnx.helper, onnx.TensorProto.INT64
    ends = [make.make_tensor_value_info(name, integers, ["N", 2]) for name in ("x", "y")]
    two = onnx.numpy_helper.from_array(np.array([2]), "two")
    graph = make.make_graph([call("Div", "x two")], "network", ends[:1], ends[1:], [two])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)]), tmp_path / "model.onnx")
    assert upper(tmp_path / "model.onnx") is None  # from 1 to 2 it moves by 1


def test_a_function_has_a_version_of_its_own(tmp_path):
    make, double = onnx.helper, onnx.TensorProto.DOUBLE
    ends = [make.make_tensor_value_info("x", double, ["N", 3, 4]), make.make_tensor_value_info("y", double, None)]
    imports = [make.make_opsetid("", 13), make.make_opsetid("own", 1)]
    found = []
    for version in (11, 13):
        body = [make.make_node("LogSoftmax", ["a"], ["b"])]
        function = make.make_function("own", "Scores", ["a"], ["b"], body, [make.make_opsetid("", version)])
        graph = make.make_graph([make.make_node("Scores", ["x"], ["y"], domain="own")], "network", ends[:1], ends[1:])
        onnx.save(make.make_model(graph, opset_imports=imports, functions=[function]), tmp_path / "model.onnx")
        found.append(upper(tmp_path / "model.onnx"))
    assert found == [None, pytest.approx(2)]
