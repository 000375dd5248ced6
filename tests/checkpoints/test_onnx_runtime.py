"""Constants of an ONNX file that go into weights which the network computes while it runs: no check may pass them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from opnorm.auditing.audits import audit
from tests.samples import onnx_model


def call(kind, inputs, outputs, **options):
    return helper.make_node(kind, inputs.split(" "), outputs.split(" "), name=outputs.split(" ")[0], **options)


def rows(tmp_path, nodes, constants, inputs="x m", outputs="y"):
    model = onnx_model(nodes, constants, inputs=inputs.split(), outputs=outputs.split())
    for value in model.graph.input:
        value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [10, 10]))
    onnx.save(model, tmp_path / "a.onnx")
    return {row.name: row for row in audit(tmp_path / "a.onnx").rows}


W = np.full((10, 10), 0.5, "float32")  # of norm 5: a check of 1 that passes it is wrong
PRODUCT = call("MatMul", "x k", "y")


def body(*nodes, inputs=(), outputs=()):
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names] for names in (inputs, outputs)]
    return helper.make_graph(list(nodes), "body", *values)


IF = {
    "then_branch": body(call("Sub", "w m", "a"), outputs=["a"]),
    "else_branch": body(call("Identity", "m", "b"), outputs=["b"]),
}
LOOP = body(
    helper.make_node("Identity", ["c"], ["d"]), call("MatMul", "x s", "t"), call("Identity", "s", "u"),
    inputs=["i", "c", "s"], outputs=["d", "u", "t"],
)  # fmt: skip
COMPUTED = {
    **{kind: [call(kind, "w m", "k"), PRODUCT] for kind in ("Mul", "Add", "Sub", "Div", "Max", "Min", "Sum", "Mean")},
    "Pow": [call("Pow", "m w", "k"), PRODUCT],
    "Where": [call("Cast", "m", "c", to=TensorProto.BOOL), call("Where", "c w m", "k"), PRODUCT],
    "Concat": [call("Concat", "w m", "j", axis=0), call("Slice", "j b e", "k"), PRODUCT],
    "a factor": [call("Mul", "m f", "k"), PRODUCT],
    "a limit": [call("Clip", "m f", "k"), PRODUCT],
    "Gemm": [call("Sub", "m w", "k"), call("Gemm", "x k", "y")],
    "Einsum": [call("Sub", "m w", "k"), call("Einsum", "x k", "y", equation="bi,ij->bj")],
    "on the left": [call("Mul", "w m", "k"), call("MatMul", "k x", "y")],
    "a convolution": [call("Add", "w m", "j"), call("Reshape", "j s", "k"), call("Conv", "x k", "y")],
    "a layer computes a kernel": [call("MatMul", "m w", "j"), call("Reshape", "j s", "k"), call("Conv", "x k", "y")],
    "a recurrence": [call("Add", "w m", "j"), call("Unsqueeze", "j o", "k"), call("RNN", "x k k", "y", hidden_size=10)],
    "a chain": [call("Add", "w m", "i"), call("Tanh", "i", "j"), call("Transpose", "j", "k"), PRODUCT],
    "a matrix beside a layer's result": [call("MatMul", "m v", "n"), call("Mul", "w n", "k"), PRODUCT],
    "a matrix before a layer": [call("Mul", "w m", "n"), call("MatMul", "n v", "k"), PRODUCT],
    "shaped by the run": [
        call("Shape", "m", "n"), call("Reshape", "w n", "j"), call("Add", "j m", "k"), PRODUCT,
    ],
    "an unknown operator": [call("Add", "w m", "k"), helper.make_node("FusedMatMul", ["x", "k"], ["y"], domain="a")],
    "a branch": [call("Cast", "m", "c", to=TensorProto.BOOL), call("If", "c", "k", **IF), PRODUCT],
    "a loop": [call("Add", "w m", "k"), helper.make_node("Loop", ["", "", "k"], ["last", "y"], body=LOOP)],
    "a factor of each entry": [call("Add", "w m", "k"), call("Mul", "x k", "y")],
    "a normalization": [call("BatchNormalization", "x m f f f", "y")],
}  # fmt: skip


@pytest.mark.parametrize("way", COMPUTED)
def test_a_constant_in_a_weight_of_the_run_fails(tmp_path, way):
    text = str(COMPUTED[way])
    constants = {"w": W} if '"w"' in text else {}
    constants |= {"f": np.full((1,), 9, "f4")} if '"f"' in text else {}
    constants |= {"v": np.eye(10, dtype="f4") / 2} if '"v"' in text else {}
    constants |= {"b": np.array([0, 0]), "e": np.array([10, 10])} if way == "Concat" else {}
    constants |= {"s": np.array([10, 10, 1, 1])} if "convolution" in way or "kernel" in way else {}
    constants |= {"o": np.array([0])} if way == "a recurrence" else {}
    found = rows(tmp_path, COMPUTED[way], constants)
    one = found["w" if "w" in constants else "f"]
    assert (one.status, one.upper) == ("failed", None)
    assert one.reason


def test_biases_and_masks_of_attention_and_gates_are_no_weights(tmp_path):
    nodes = [call("Add", "x p", "h"), call("LayerNormalization", "h g b", "n")]
    for part in "qrv":
        nodes += [call("MatMul", f"n w{part}", f"{part}0"), call("Add", f"{part}0 b", part)]
    nodes += [call("Transpose", "r", "t"), call("Mul", "t half", "u"), call("MatMul", "q u", "s0"),
              call("Add", "s0 mask", "s"), call("Softmax", "s", "a"), call("MatMul", "a v", "c"),
              call("Add", "c h", "y")]  # fmt: skip
    kernels = {f"w{part}": np.eye(10, dtype="f4") / 2 for part in "qrv"}
    constants = {"p": W[0], "g": W[0], "b": W[0], "mask": W, "half": np.float32(0.5), **kernels}
    found = rows(tmp_path, nodes, constants, inputs="x")
    assert {name for name, row in found.items() if row.status == "failed"} <= set()
    assert found["wq"].upper == found["wv"].upper == pytest.approx(0.5)


HEADS = [call("Reshape", "h s", "n"), call("Transpose", "n", "t", perm=[0, 2, 1, 3])]
SCORES = [call("Transpose", "t", "u", perm=[0, 1, 3, 2]), call("MatMul", "t u", "y")]
LAYER = [call("MatMul", "x v", "g"), call("Add", "g b", "h")]
SQUARE = [call("Reshape", "h s", "k"), call("MatMul", "k z", "y")]


@pytest.mark.parametrize("first", [2, "batch"])
@pytest.mark.parametrize(
    ("nodes", "sizes", "status"),
    [
        ([*LAYER, *SQUARE], (-1, 4, 4), "failed"),  # a matrix for each example, W0 + V x: its bias is W0
        ([*LAYER, call("Tanh", "h", "i"), call("Reshape", "i s", "k"), *SQUARE[1:]], (-1, 4, 4), "failed"),
        ([call("Gemm", "x v b", "h"), *SQUARE], (-1, 4, 4), "failed"),
        ([*LAYER, *SQUARE], (-1, 16, 1), "skipped"),  # a column
        ([*LAYER, *HEADS, *SCORES], (-1, 1, 2, 8), "skipped"),  # queries and keys of two heads
        ([*LAYER, *HEADS, *SCORES], (-1, 2, 2, 4), "failed"),  # of two places, of which each has numbers of its own
    ],
)
def test_a_bias_that_is_spread_over_both_sides_of_a_product_is_a_weight_of_the_run(
    tmp_path, nodes, sizes, status, first
):
    constants = {"v": np.eye(4, 16, dtype="f4") / 2, "b": np.full(16, 5, "f4"), "s": np.array(sizes)}
    model = onnx_model(nodes, constants, inputs=["x", *(["z"] if nodes[-1].input[1] == "z" else [])])
    for value in model.graph.input:
        shape = [first, 4] if value.name == "x" else [first, sizes[2], 3]
        value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    onnx.save(model, tmp_path / "a.onnx")
    found = {row.name: row for row in audit(tmp_path / "a.onnx").rows}
    assert (found["v"].status, found["b"].status) == ("bounded", status)


def test_both_numbers_of_a_one_hot_weight_are_numbers_of_the_run(tmp_path):
    nodes = [call("MatMul", "x v", "n"), call("ArgMax", "n", "i", axis=1), call("OneHot", "i d o", "j"),
             call("Squeeze", "j", "k"), PRODUCT]  # fmt: skip
    constants = {"v": np.eye(10, dtype="f4") / 2, "d": np.array([10]), "o": np.array([0, 9], "f4")}
    assert rows(tmp_path, nodes, constants, inputs="x")["o"].status == "failed"
