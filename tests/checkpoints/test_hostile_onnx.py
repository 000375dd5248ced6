"""ONNX files that mean harm: they end within seconds and little memory, in one line or with the tensor's own reason."""

import tracemalloc
from itertools import pairwise
from time import perf_counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from readers import refused
from samples import MATRIX, onnx_model

from opnorm.auditing.audits import audit
from opnorm.checkpoints import onnx_wire
from opnorm.checkpoints.opening import open_checkpoint

SECONDS = 20  # a ceiling for files that took minutes or for ever; they take one or two
SQUARE = np.eye(4, dtype="float32")
KINDS = [
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "BatchNormalization", "Gather", "Mul", "Einsum", "QLinearConv",
    "DequantizeLinear", "Reshape", "Slice", "Split", "Concat",
]  # fmt: skip


def call(kind, inputs, outputs, **options):
    return helper.make_node(kind, inputs.split(), outputs.split(), **options)


def functions(count, calls):
    """Return functions of which each calls the next several times."""
    made = []
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    for i in range(count):
        names = ["x", *(f"v{j}" for j in range(calls - 1)), "y"]
        nodes = [helper.make_node(f"F{i + 1}", [a], [b], domain="own") for a, b in pairwise(names)]
        made.append(helper.make_function("own", f"F{i}", ["x"], ["y"], nodes, opsets))
    made.append(helper.make_function("own", f"F{count}", ["x"], ["y"], [call("Relu", "x", "y")], opsets))
    return made


def with_functions(made):
    model = onnx_model([call("F0", "x", "h", domain="own"), call("MatMul", "h w", "y")], {"w": MATRIX}, functions=made)
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def timed(path):
    begin = perf_counter()
    report = audit(path, time_limit=1)
    assert perf_counter() - begin < SECONDS
    return report


@pytest.mark.parametrize(
    "nodes",
    [
        [call("Identity", "w", "w"), call("MatMul", "x w", "y")],
        [call("Identity", "v", "v"), call("MatMul", "x v", "y")],
        [call("Identity", "b", "a"), call("Identity", "a", "b"), call("MatMul", "x a", "y")],
        [call("Transpose", "t", "w"), call("Transpose", "w", "t"), call("MatMul", "x w", "y")],
        [call("Relu", "x", "y"), call("Abs", "x", "y")],
        [call("Constant", "", "w", value_float=1.0), call("MatMul", "x w", "y")],
    ],
)
def test_values_that_make_themselves_or_are_made_twice_are_refused(tmp_path, nodes):
    onnx.save(onnx_model(nodes, {"w": SQUARE}), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "circle|two .* the name|one name")


def test_functions_that_unfold_without_end_are_refused_at_once(tmp_path):
    begin = perf_counter()
    onnx.save(with_functions(functions(40, 2)), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "more than 100000 operators")
    assert perf_counter() - begin < SECONDS


def test_functions_that_call_each_other_are_refused(tmp_path):
    made = functions(1, 1)
    made[1].node[0].CopyFrom(helper.make_node("F0", ["x"], ["y"], domain="own"))
    onnx.save(with_functions(made), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "nested too deeply")


def test_functions_in_a_row_are_unfolded(tmp_path):
    onnx.save(with_functions(functions(12, 2)), tmp_path / "a.onnx")
    assert timed(tmp_path / "a.onnx").network["upper"] == pytest.approx(np.linalg.norm(MATRIX, 2), rel=2e-6)


def test_functions_that_nothing_calls_are_not_followed(tmp_path):
    made = functions(40, 2)
    model = with_functions(made)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Relu", ""
    onnx.save(model, tmp_path / "a.onnx")
    assert timed(tmp_path / "a.onnx").rows[0].status == "bounded"


def doubled(count, kind):
    return [call(kind, f"v{i} v{i}", f"v{i + 1}") for i in range(count)]


SLOW = {
    "a sum of a sum of a sum": [call("Identity", "w", "v0"), *doubled(60, "Add"), call("MatMul", "x v60", "y")],
    "side by side and again": [
        call("Identity", "w", "v0"),
        *[call("Concat", f"v{i} v{i}", f"v{i + 1}", axis=0) for i in range(40)],
        call("MatMul", "x v40", "y"),
    ],
    "a long way": [
        call("Identity", "w", "v0"),
        *[call("Transpose", f"v{i}", f"v{i + 1}") for i in range(3000)],
        call("MatMul", "x v3000", "y"),
    ],
    "a long way round": [
        call("Identity", "w", "v0"),
        *[call("Add", f"w v{i}", f"v{i + 1}") for i in range(3000)],
        call("MatMul", "x v3000", "y"),
    ],
    "a size without end": [call("Expand", "w e", "k"), call("MatMul", "x k", "y")],
    "a shape without end": [call("ConstantOfShape", "e", "k"), call("MatMul", "x k", "y")],
    "one kernel used in many ways": [
        call("Gemm", "x w", "y", alpha=2.0),
        *[call("Gemm", "x w", f"z{i}", alpha=float(i)) for i in range(300)],
    ],
}


@pytest.mark.parametrize("name", SLOW)
def test_work_and_memory_for_computed_constants_are_bounded(tmp_path, name):
    model = onnx_model(SLOW[name], {"w": SQUARE, "e": np.array([2**40, 2**20, 4, 4])})
    onnx.save(model, tmp_path / "a.onnx")
    tracemalloc.start()
    rows = timed(tmp_path / "a.onnx").rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
    found = {row.name: row for row in rows}
    assert found["w" if "shape without" not in name else "e"].status in ("failed", "bounded")


IMAGE = np.ones((1, 1, 2, 6), "float32")
NEGATIVE = {  # what onnx infers a negative size for
    "Expand": ([call("Expand", "d n", "w")], {"d": IMAGE[0, 0, :1], "n": np.array([-5, 6])}),
    "Pad": ([call("Pad", "d n", "w")], {"d": IMAGE[0, 0], "n": np.array([-9, 0, 0, 0])}),
    "Conv": ([call("Conv", "d k", "w")], {"d": IMAGE, "k": np.ones((1, 1, 5, 1), "float32")}),
    "MaxPool": ([call("MaxPool", "d", "w", kernel_shape=[5, 1])], {"d": IMAGE}),
    "Split": ([call("Split", "d n", "w q", axis=0)], {"d": IMAGE[0, 0], "n": np.array([-2, 4])}),
    "TopK": ([call("TopK", "d n", "w q", axis=0)], {"d": IMAGE[0, 0], "n": np.array([-2])}),
}


@pytest.mark.parametrize("kind", NEGATIVE)
def test_a_negative_size_that_is_inferred_does_not_end_the_process(tmp_path, kind):
    nodes, tensors = NEGATIVE[kind]
    tensors = {
        **tensors,
        "s": np.array([0]),
        "e": np.array([1]),
        "a": np.array([2 if kind in ("Conv", "MaxPool") else 0]),
    }
    cut = [call("Slice", "w s e a", "c"), call("Slice", "c s e a", "y"), call("MatMul", "x v", "z")]
    onnx.save(onnx_model([*nodes, *cut], {**tensors, "v": SQUARE}, outputs=("y", "z")), tmp_path / "a.onnx")
    assert {row.name: row.status for row in timed(tmp_path / "a.onnx").rows}["v"] == "bounded"


LATE = {  # a size is negative once that of their input is known
    "Pad": call("Pad", "d p", "w"),
    "Conv": call("Conv", "d k", "w"),
}


@pytest.mark.parametrize("kind", LATE)
@pytest.mark.parametrize("size", [2, "open"])
def test_a_negative_size_that_is_inferred_late_does_not_end_the_process(tmp_path, kind, size):
    reshaped = [
        call("Shape", "x", "sizes"),
        call("Gather", "sizes s", "first", axis=0),
        call("Concat", "s1 s1 first last", "target", axis=0),
        call("Reshape", "x target", "d"),
    ]
    tensors = {
        "s": np.array([0]), "s1": np.array([1]), "e": np.array([1]), "a": np.array([2]), "last": np.array([4]),
        "p": np.array([0, 0, -9, 0, 0, 0, 0, 0]), "k": np.ones((1, 1, 5, 1), "float32"), "v": SQUARE,
    }  # fmt: skip
    model = onnx_model([*reshaped, LATE[kind], call("Slice", "w s e a", "y"), call("MatMul", "x v", "z")], tensors)
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [size, 4]))
    onnx.save(model, tmp_path / "a.onnx")
    assert {row.name: row.status for row in timed(tmp_path / "a.onnx").rows}["v"] == "bounded"


@pytest.mark.parametrize("where", ["initializer", "constant", "sparse", "input", "branch", "default"])
def test_a_negative_size_does_not_end_the_process(tmp_path, where):
    """onnx's shape inference aborts where it meets one: this test would end pytest."""
    bad = numpy_helper.from_array(np.ones((4, 6), "float32"), "w")
    bad.dims[0] = -5
    cut = [call("Slice", "w s e", "k"), call("MatMul", "x k", "y")]
    steering = {"s": np.array([0]), "e": np.array([2]), "v": SQUARE}
    if where == "input":
        model = onnx_model([*cut, call("MatMul", "y v", "z")], steering, inputs=("x", "w"))
        model.graph.input[1].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [-5, 6]))
    elif where == "branch":
        end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        claim = helper.make_tensor_value_info("w", TensorProto.FLOAT, [-5, 6])
        inner = helper.make_graph(cut, "g", [], [end], value_info=[claim])
        inner.input.append(claim)
        nodes = [call("If", "c", "h", then_branch=inner, else_branch=inner), call("MatMul", "h v", "z")]
        model = onnx_model(nodes, steering, inputs=("x", "c"))
    elif where == "default":
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
        body = [call("Constant", "", "w"), *cut]
        body[0].attribute.add(name="value", ref_attr_name="kernel", type=4)
        protos = [helper.make_attribute("kernel", bad)]
        f = helper.make_function("own", "F", ["x", "s", "e"], ["y"], body, opsets, attribute_protos=protos)
        nodes = [call("F", "x s e", "y", domain="own"), call("MatMul", "y v", "z")]
        model = onnx_model(nodes, steering, functions=[f])
        model.opset_import.append(opsets[1])
    else:
        first = [call("Constant", "", "w", value=bad)] if where == "constant" else []
        if where == "sparse":
            at = helper.make_tensor("", TensorProto.INT64, [1], [0])
            values = helper.make_tensor("", TensorProto.FLOAT, [1], [1.0])
            first = [call("Constant", "", "w", sparse_value=helper.make_sparse_tensor(values, at, [-5, 6]))]
        model = onnx_model([*first, *cut, call("MatMul", "y v", "z")], steering)
        model.graph.initializer.extend([bad] if where == "initializer" else [])
    onnx.save(model, tmp_path / "a.onnx")
    rows = {row.name: row.status for row in timed(tmp_path / "a.onnx").rows}
    assert rows["v"] == "bounded"
    assert "bounded" not in [status for name, status in rows.items() if name != "v"]


def test_one_name_for_all_operators_takes_no_longer(tmp_path):
    nodes = [helper.make_node("Relu", [f"r{i}" if i else "x"], [f"r{i + 1}"], name="same") for i in range(20_000)]
    onnx.save(onnx_model([*nodes, call("MatMul", "r20000 w", "y")], {"w": SQUARE}), tmp_path / "a.onnx")
    assert timed(tmp_path / "a.onnx").network["upper"] == pytest.approx(1, rel=1e-6)


def test_a_deep_way_with_a_long_name_stays_small(tmp_path):
    """Names made of names: a megabyte each on a hundred storeys would be gigabytes."""
    inner = [call("MatMul", "x w", "y")]
    for _ in range(20):
        graph = helper.make_graph(inner, "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        graph.initializer.extend(numpy_helper.from_array(SQUARE, f"k{i}") for i in range(50))
        inner = [helper.make_node("If", ["c"], ["y"], name="n" * 100_000, then_branch=graph)]
    onnx.save(onnx_model(inner, {"w": SQUARE}, inputs=("x", "c")), tmp_path / "a.onnx")
    tracemalloc.start()
    found = open_checkpoint(tmp_path / "a.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.weights) == 1001
    assert peak < 100 * 2**20


def test_a_file_that_becomes_shorter_while_it_is_scanned_is_an_error_and_no_signal(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    onnx.save(onnx_model([call("MatMul", "x w", "y")], {f"w{i}": SQUARE for i in range(3000)}), path)
    read = onnx_wire.Window.read

    def shrinking(self, start, end):
        if path.stat().st_size > 2**16:
            path.write_bytes(path.read_bytes()[: 2**16])
        return read(self, start, end)

    monkeypatch.setattr(onnx_wire.Window, "read", shrinking)
    refused(path, "became shorter")


def test_numbers_beside_external_data_do_not_count(tmp_path):
    W = np.arange(1200, dtype="float32").reshape(40, 30)
    model = onnx_model([call("MatMul", "x w", "y")], {"w": W})
    tensor = model.graph.initializer[0]
    tensor.data_location = 1
    for key, value in (("location", "data"), ("offset", "0"), ("length", "4800")):
        tensor.external_data.add(key=key, value=value)
    onnx.save_model(model, tmp_path / "b.onnx")
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "data").write_bytes((-W).tobytes())
    (one,) = open_checkpoint(tmp_path / "a.onnx").weights
    np.testing.assert_array_equal(one.read(), -W)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 1, 1, 1, 1, 1, 1), (0, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_constants_of_any_shape_in_any_place_end_as_rows(tmp_path, kind, shape):
    names = [f"w{i}" for i in range(6)]
    tensors = {name: np.ones(shape, "float32") for name in names}
    for i in range(6):
        inputs = [name if j != i else "x" for j, name in enumerate(names)]
        onnx.save(onnx_model([helper.make_node(kind, inputs, ["y", "z"])], tensors), tmp_path / "a.onnx")
        report = timed(tmp_path / "a.onnx")
        assert {row.name.split(" (in")[0] for row in report.rows} == set(names)


EQUATIONS = [
    "......,ij->j",
    "...i...,ij->j",
    "....,ij->j",
    "ij,ij->......",
    "ij,jk,kl->il",
    "ij,jk->iz",
    "ij,j.k->i",
    "",
]


@pytest.mark.parametrize(
    ("place", "equation"),
    [("the graph", equation) for equation in EQUATIONS]
    + [(place, EQUATIONS[0]) for place in ("a branch", "a function", "a call")],
)
def test_an_equation_that_is_none_does_not_hold_the_reader_up(tmp_path, equation, place):
    node, functions = call("Einsum", "x w", "y", equation=equation), []
    if place == "a branch":
        graph = helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")])
        node = call("If", "x", "z", then_branch=graph, else_branch=graph)
    elif "function" in place or "call" in place:
        options = {"attributes": ["equation"]} if place == "a call" else {}
        if place == "a call":
            del node.attribute[:]
            node.attribute.add(name="equation", ref_attr_name="equation", type=onnx.AttributeProto.STRING)
        opsets = [helper.make_opsetid("", 21)]
        functions = [helper.make_function("own", "F", ["x", "w"], ["y"], [node], opsets, **options)]
        node = call("F", "x w", "z", domain="own", **({"equation": equation} if place == "a call" else {}))
    model = onnx_model([node], {"w": SQUARE}, functions=functions, outputs=(node.output[0],))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [4, 4]))
    onnx.save(model, tmp_path / "a.onnx")
    (row,) = audit(tmp_path / "a.onnx", time_limit=0, sandbox=True).rows  # which gives up after 10 seconds
    assert row.status == "failed"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Split", {"num_outputs": 2**31 - 1}), ("Scan", {"num_scan_inputs": 2**40}), ("Scan", {"num_scan_inputs": -1})],
)
def test_a_count_that_the_operator_does_not_have_does_not_hold_the_reader_up(tmp_path, kind, options):
    if kind == "Scan":
        options = options | {"body": helper.make_graph([], "g", [], [])}
    model = onnx_model([call(kind, "x", "h", **options), call("MatMul", "h w", "y")], {"w": SQUARE})
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [4, 4]))
    onnx.save(model, tmp_path / "a.onnx")
    (row,) = audit(tmp_path / "a.onnx", time_limit=0, sandbox=True).rows
    assert row.name == "w"
