"""Kernels of ONNX Runtime's dynamic quantization, compared with what ONNX's own evaluator computes of their layers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from opnorm.auditing.audits import audit

RNG = np.random.default_rng(0)


def quantized(kernel, scale, zero, *, kind="MatMulInteger", changes=()):
    """Return a layer as `onnxruntime.quantization.quantize_dynamic` writes it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("Mul", ["xs", "w_scale"], ["scales"], name="scales"),
        helper.make_node(kind, ["xq", "w", "xz", "w_zero"], ["product"], name="product"),
        helper.make_node("Cast", ["product"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scales"], ["y"], name="last"),
        *changes,
    ]
    tensors = {"w": kernel, "w_scale": scale, "w_zero": zero}
    shape = ["n", kernel.shape[0]] if kind == "MatMulInteger" else [1, kernel.shape[1], 6, 6]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def rows_of(tmp_path, model):
    onnx.save(model, tmp_path / "a.onnx")
    return {row.name: row for row in audit(tmp_path / "a.onnx").rows}


CASES = {
    "one scale": ((), "int8"),
    "one scale with an axis": ((1,), "uint8"),
    "a scale for each column": ((5,), "int8"),
}


@pytest.mark.parametrize(("shape", "dtype"), CASES.values(), ids=CASES)
def test_a_matrix_is_bounded_with_the_scale_of_a_later_operator(tmp_path, shape, dtype):
    info = np.iinfo(dtype)
    kernel = RNG.integers(info.min, info.max, (7, 5)).astype(dtype)
    scale = RNG.uniform(0.01, 0.02, shape).astype("f4")
    zero = RNG.integers(0, 9, shape).astype(dtype)
    model = quantized(kernel, scale, zero)
    rows = rows_of(tmp_path, model)
    applied = (kernel.astype("f8") - zero) * scale
    truth = np.linalg.norm(applied, 2)
    assert rows["w"].lower <= truth * (1 + 1e-9) <= rows["w"].upper * (1 + 2e-9)
    assert (rows["w_scale"].status, rows["w_zero"].status) == ("skipped", "skipped")
    x = RNG.standard_normal((64, 7)).astype("f4")
    (found,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ applied, atol=0.02 * np.abs(x).max() * truth)


def test_a_convolution_is_bounded_with_the_scale_of_a_later_operator(tmp_path):
    kernel, scale = RNG.integers(-99, 99, (3, 2, 3, 3)).astype("i1"), np.float32(0.01)
    row = rows_of(tmp_path, quantized(kernel, np.array(scale), np.array(0, "i1"), kind="ConvInteger"))["w"]
    (plain,) = audit({"conv.weight": kernel.astype("f4") * scale}).rows
    assert (row.status, row.shape) == ("bounded", kernel.shape)
    assert row.lower == pytest.approx(plain.lower, rel=0.01)


READ_TOO = {  # operators that see the integers without the scale, or the scales without the integers
    "product": helper.make_node("Identity", ["product"], ["z"]),
    "floats": helper.make_node("Relu", ["floats"], ["z"]),
    "scales": helper.make_node("Neg", ["scales"], ["z"]),
}


@pytest.mark.parametrize("value", READ_TOO)
def test_a_product_that_something_else_reads_too_stays_unknown(tmp_path, value):
    model = quantized(np.ones((7, 5), "i1"), np.array(0.1, "f4"), np.array(0, "i1"), changes=[READ_TOO[value]])
    assert rows_of(tmp_path, model)["w"].status == "failed"


@pytest.mark.parametrize(("scale", "zero"), [((7,), (7,)), ((7, 1), ()), ((5,), ()), ((2,), (2,))])
def test_scales_that_do_not_fit_stay_unknown(tmp_path, scale, zero):
    model = quantized(np.ones((7, 5), "i1"), np.ones(scale, "f4"), np.zeros(zero, "i1"))
    assert rows_of(tmp_path, model)["w"].status == "failed"


def test_a_product_that_the_network_gives_stays_unknown(tmp_path):
    model = quantized(np.ones((7, 5), "i1"), np.array(0.1, "f4"), np.array(0, "i1"))
    model.graph.output.append(helper.make_tensor_value_info("product", TensorProto.INT32, None))
    assert rows_of(tmp_path, model)["w"].status == "failed"


def test_a_product_that_a_branch_gives_stays_unknown(tmp_path):
    model = quantized(np.ones((7, 5), "i1"), np.array(0.1, "f4"), np.array(0, "i1"))
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("product", TensorProto.INT32, None)])
    chosen = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(chosen)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT32, None))
    assert rows_of(tmp_path, model)["w"].status == "failed"
