"""Two files whose layers use the same stored numbers in different ways: each side, and the change, against NumPy."""

import keras
import numpy as np
import onnx
import pytest
import torch
from network_files import norm, write
from onnx import TensorProto, helper, numpy_helper

from opnorm.auditing.diff_rows import compared
from opnorm.auditing.differences import diff
from opnorm.auditing.settings import Options
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.kernels import guess_kernel
from opnorm.checkpoints.records import Weight


def assert_bracket(bracket, truth, width=2e-6):
    lower, upper = bracket
    assert lower * (1 - 1e-12) <= truth <= upper * (1 + 1e-12)  # NumPy's own rounding
    assert upper <= lower * (1 + width) + 1e-12


def onnx_file(path, nodes, tensors, inputs=(None, None)):
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [given], [result], stored)), path)
    return path


def gemm(path, alpha=1.0, transB=0, W=None):
    W = np.eye(3, dtype=np.float32) if W is None else W
    return onnx_file(path, [helper.make_node("Gemm", ["x", "W"], ["y"], alpha=alpha, transB=transB)], {"W": W})


def dequantized(path, scale):
    nodes = [helper.make_node("DequantizeLinear", ["W", "s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    return onnx_file(path, nodes, {"W": np.eye(3, dtype=np.int8), "s": np.float32(scale)})


def normalized(path, variance):
    names = ("W", "b", "m", "v")
    numbers = {"W": np.ones(4), "b": np.zeros(4), "m": np.zeros(4), "v": np.full(4, variance)}
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=0.0)
    return onnx_file(path, [node], {k: v.astype(np.float32) for k, v in numbers.items()}, (1, 4, 8, 8))


def convolved(path, strides, taps=1.0):
    node = helper.make_node("Conv", ["x", "W"], ["y"], strides=[strides] * 2)
    return onnx_file(path, [node], {"W": np.full((1, 1, 3, 3), taps, np.float32)}, (1, 1, 30, 30))


def row_of(base, tuned, name="W"):
    return next(row for row in diff(base, tuned).rows if row.name.startswith(name))


@pytest.mark.parametrize(
    ("make", "first", "second", "base", "tuned", "change"),
    [(gemm, 1.0, 50.0, 1, 50, 49), (dequantized, 1, 50, 1, 50, 49), (normalized, 1.0, 0.01, 1, 10, 9)],
)
def test_the_same_numbers_with_another_factor_are_another_layer(tmp_path, make, first, second, base, tuned, change):
    row = row_of(make(tmp_path / "a.onnx", first), make(tmp_path / "b.onnx", second))
    assert row.status == "compared"
    for bracket, truth in ((row.base, base), (row.tuned, tuned), (row.difference, change)):
        assert bracket == pytest.approx((truth, truth), rel=1e-5)  # float32 has no 0.01


def test_the_change_of_a_matrix_that_is_turned_is_that_of_what_is_applied(tmp_path):
    W = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    row = row_of(gemm(tmp_path / "a.onnx", W=W), gemm(tmp_path / "b.onnx", W=W, transB=1))
    assert_bracket(row.difference, norm(W.astype(np.float64) - W.T))


def test_two_ways_to_slide_have_no_difference_but_each_its_norm(tmp_path):
    row = row_of(convolved(tmp_path / "a.onnx", 1), convolved(tmp_path / "b.onnx", 3))
    assert (row.status, row.difference) == ("failed", None)
    assert "different ways" in row.reason
    assert_bracket(row.base, 9, 1e-2)
    assert_bracket(row.tuned, 3, 1e-2)
    assert "strides 3" in row.geometry


def test_two_convolutions_that_slide_alike_have_a_difference(tmp_path):
    row = row_of(convolved(tmp_path / "a.onnx", 3), convolved(tmp_path / "b.onnx", 3, taps=3.0))
    assert_bracket(row.difference, 6, 1e-2)


def test_pytorchs_batch_normalization_has_its_own_variance_on_each_side(tmp_path):
    files = []
    for name, variance in (("a.pt", 1.0), ("b.pt", 1e-2)):
        values = {"weight": torch.ones(4), "bias": torch.zeros(4), "running_mean": torch.zeros(4)}
        values["running_var"] = torch.full((4,), variance)
        torch.save({f"bn.{key}": value for key, value in values.items()}, tmp_path / name)
        files.append(tmp_path / name)
    row = row_of(*files, name="bn.weight")
    base, tuned = (1 / np.sqrt(float(np.float32(v)) + 1e-5) for v in (1.0, 1e-2))
    assert_bracket(row.base, base)
    assert_bracket(row.tuned, tuned)
    assert_bracket(row.difference, tuned - base)


def test_a_guess_gives_way_to_what_the_other_file_knows(tmp_path):
    W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    files = write(tmp_path / "a.safetensors", {"W": W}), gemm(tmp_path / "b.onnx", W=W)
    assert [row_of(*both).difference for both in (files, files[::-1])] == [(0, 0)] * 2


def keras_file(path, layer, shape, weights=None, quantize=False):
    model = keras.Sequential([keras.Input(shape), layer])
    if weights is not None:
        layer.set_weights(weights)
    if quantize:
        layer.quantize("int8")
    model.save(path)
    return path


def test_keras_batch_normalization_has_its_own_variance(tmp_path):
    files = [
        keras_file(
            tmp_path / f"{i}.keras",
            keras.layers.BatchNormalization(name="l", epsilon=1e-3),
            (4,),
            [np.ones(4), np.zeros(4), np.zeros(4), np.full(4, variance)],
        )
        for i, variance in enumerate((1.0, 0.01))
    ]
    row = next(row for row in diff(*files).rows if row.name.endswith("gamma"))
    base, tuned = (1 / np.sqrt(float(np.float32(v)) + 1e-3) for v in (1.0, 0.01))
    for bracket, truth in ((row.base, base), (row.tuned, tuned), (row.difference, tuned - base)):
        assert_bracket(bracket, truth)


def test_keras_int8_kernels_have_their_own_scale(tmp_path):
    files = [
        keras_file(
            tmp_path / f"{i}.keras", keras.layers.Dense(4, name="l", use_bias=False), (4,), [f * np.eye(4)], True
        )
        for i, f in enumerate((1.0, 50.0))
    ]
    row = next(row for row in diff(*files).rows if row.name.endswith("kernel"))
    for bracket, truth in ((row.base, 1), (row.tuned, 50), (row.difference, 49)):
        assert abs(bracket[0] - truth) < 0.02 * truth  # Keras keeps the scale in few bits
        assert abs(bracket[1] - truth) < 0.02 * truth


def test_keras_strides_are_those_of_each_file(tmp_path):
    files = [
        keras_file(
            tmp_path / f"{i}.keras",
            keras.layers.Conv2D(1, 3, strides, "same", name="l", use_bias=False),
            (30, 30, 1),
            [np.ones((3, 3, 1, 1))],
        )
        for i, strides in enumerate((3, 1))
    ]
    row = next(row for row in diff(*files).rows if row.name.endswith("kernel"))
    assert_bracket(row.base, 3, 1e-2)
    assert_bracket(row.tuned, 9, 1e-2)
    assert (row.status, row.difference) == ("failed", None)


@pytest.mark.parametrize("make", [gemm, dequantized, normalized, convolved])
def test_a_layer_of_any_kind_differs_from_itself_by_zero(tmp_path, make):
    path = make(tmp_path / "a.onnx", 3)
    assert row_of(path, path).difference == (0, 0)


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_guesses_the_one_that_knows_the_strides_counts(turned):
    """A SavedModel's graph tells them, and not the groups; the checkpoint of its variables tells neither."""
    kernel = np.random.default_rng(0).random((3, 3, 2, 4))
    known = g.convolution("Conv", kernel.shape, g.Sliding((2, 2), "same"), assumed=True)
    guessed = guess_kernel("conv/kernel", kernel.shape, keras=True)
    pair = [Weight("conv/kernel", kernel.shape, "float64", lambda: kernel, one) for one in (known, guessed)]
    row = compared(*reversed(pair) if turned else pair, Options().checked())
    assert "strides 2" in row.geometry
    assert (row.base, row.difference) == (row.tuned, (0, 0))
