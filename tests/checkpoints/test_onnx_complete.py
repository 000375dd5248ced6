"""ONNX: no tensor is missing, counted by onnx's own messages, walked through graphs, functions and attributes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import onnx_model

from opnorm.auditing.audits import audit
from opnorm.checkpoints.opening import open_checkpoint

RNG = np.random.default_rng(0)
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]


def tensor(*shape, name=""):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype("float32"), name)


def norm(proto):
    return np.linalg.svd(numpy_helper.to_array(proto).astype("f8"), compute_uv=False)[0]


def sparse(name, shape=(4, 4)):
    values = helper.make_tensor(name, TensorProto.FLOAT, [3], [3.0, -4.0, 5.0])
    indices = helper.make_tensor("", TensorProto.INT64, [3], [1, 6, 15])
    return helper.make_sparse_tensor(values, indices, shape)


def sparse_truth():
    dense = np.zeros(16)
    dense[[1, 6, 15]] = 3, -4, 5
    return dense.reshape(4, 4)


def call(kind, inputs, outputs, **options):
    return helper.make_node(kind, inputs.split(), outputs.split(), **options)


def function(name, nodes, inputs="x", outputs="y", attributes=(), **settings):
    return helper.make_function("own", name, inputs.split(), outputs.split(), nodes, OPSETS, attributes, **settings)


def model(nodes, tensors=(), functions=(), sparse_tensors=(), inputs=("x",), outputs=("y",)):
    made = onnx_model(nodes, {}, inputs, outputs, functions=list(functions))
    made.graph.initializer.extend(tensors)
    made.graph.sparse_initializer.extend(sparse_tensors)
    del made.opset_import[:]
    made.opset_import.extend(OPSETS)
    return made


def graph(nodes, outputs, tensors=()):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    return helper.make_graph(nodes, "inner", [], ends, tensors)


def messages(message):
    """Yield the values of every tensor in a message, dense, sparse and listed, wherever it stands."""
    for field, value in message.ListFields():
        inner = value if field.is_repeated else [value]
        if field.type != field.TYPE_MESSAGE:
            if field.name in ("f", "i", "floats", "ints") and message.name.startswith("value_"):
                yield np.asarray(value)
            continue
        for one in inner:
            if isinstance(one, onnx.SparseTensorProto):
                dense = np.zeros(int(np.prod(one.dims)), "float32")
                dense[numpy_helper.to_array(one.indices)] = numpy_helper.to_array(one.values)
                yield dense.reshape(one.dims)
            elif isinstance(one, TensorProto):
                yield numpy_helper.to_array(one)
            else:
                yield from messages(one)


def linear(kernel):
    return [call("Constant", "", "k", value=kernel), call("MatMul", "x k", "y")]


BODY = tensor(4, 4)
GATE = tensor(4, 4)
FILES = {
    "a function's constant": model([call("F", "x", "y", domain="own")], functions=[function("F", linear(BODY))]),
    "a function in a function": model(
        [call("G", "x", "y", domain="own")],
        functions=[
            function("G", [call("F", "x", "h", domain="own"), call("Relu", "h", "y")]),
            function("F", linear(BODY)),
        ],
    ),
    "a kernel given to a function": model(
        [call("F", "x w", "y", domain="own")], [tensor(4, 4, name="w")],
        [function("F", [call("Transpose", "w", "t"), call("MatMul", "x t", "y")], "x w")],
    ),
    "a kernel in a call's attribute": model(
        [call("F", "x", "y", domain="own", kernel=BODY)],
        functions=[function("F", [call("Constant", "", "k"), call("MatMul", "x k", "y")], attributes=["kernel"])],
    ),
    "a sparse initializer": model([call("MatMul", "x w", "y")], sparse_tensors=[sparse("w")]),
    "a sparse constant": model([call("Constant", "", "w", sparse_value=sparse("")), call("MatMul", "x w", "y")]),
    "a list of numbers": model(
        [call("Constant", "", "v", value_floats=[5.0, 1.0]), call("Constant", "", "s", value_ints=[2, 1]),
         call("Reshape", "v s", "w"), call("MatMul", "x w", "y")],
    ),
    "one number": model([call("Constant", "", "v", value_float=7.0), call("Mul", "x v", "y")]),
    "both branches": model(
        [call("If", "c", "y", then_branch=graph(linear(BODY), "y"),
              else_branch=graph([call("MatMul", "x w", "y")], "y", [tensor(4, 4, name="w")]))],
        inputs=("x", "c"),
    ),
    "a branch inside a function": model(
        [call("F", "x c", "y", domain="own")],
        functions=[function("F", [call("If", "c", "y", then_branch=graph(linear(BODY), "y"),
                                       else_branch=graph(linear(GATE), "y"))], "x c")],
        inputs=("x", "c"),
    ),
    "a kernel handed out by a branch": model(
        [call("If", "c", "w", then_branch=graph([call("Constant", "", "k", value=BODY)], "k"),
              else_branch=graph([call("Constant", "", "k", value=GATE)], "k")), call("MatMul", "x w", "y")],
        inputs=("x", "c"),
    ),
    "an attribute of an unknown operator": model([call("Mystery", "x", "y", domain="made.up", coefficients=BODY)]),
    "a function that nothing calls": model([call("Relu", "x", "y")], functions=[function("F", linear(BODY))]),
}  # fmt: skip
FILES["a function's default"] = model(
    [call("F", "x", "y", domain="own")],
    functions=[function("F", [call("Constant", "", "k"), call("MatMul", "x k", "y")],
                        attribute_protos=[helper.make_attribute("kernel", BODY)])],
)  # fmt: skip
for name in ("a kernel in a call's attribute", "a function's default"):
    FILES[name].functions[0].node[0].attribute.add(name="value", ref_attr_name="kernel", type=4)
FILES["a training graph"] = model([call("Relu", "x", "y")])
FILES["a training graph"].training_info.add().initialization.CopyFrom(graph(linear(BODY), "y"))


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_the_file_has_a_row_with_its_values(tmp_path, name):
    onnx.save(FILES[name], tmp_path / "a.onnx")
    found = [one for one in open_checkpoint(tmp_path / "a.onnx").weights if " (in " not in one.name]
    truth = sorted((array.shape, array.astype("f8").tobytes()) for array in messages(FILES[name]))
    assert truth
    assert sorted((one.shape, one.read().astype("f8").tobytes()) for one in found) == truth


SPARSE = np.linalg.svd(sparse_truth(), compute_uv=False)[0]
KNOWN = {
    "a function's constant": {"F.k": norm(BODY)},
    "a function in a function": {"F.k": norm(BODY)},
    "a kernel given to a function": {"w": norm(FILES["a kernel given to a function"].graph.initializer[0])},
    "a kernel in a call's attribute": {"y.kernel": norm(BODY)},
    "a sparse initializer": {"w": SPARSE},
    "a sparse constant": {"w": SPARSE},
    "a list of numbers": {"v": 26**0.5},
    "one number": {"v": 7.0},
    "both branches": {
        "y.then_branch.k": norm(BODY),
        "y.else_branch.w": norm(FILES["both branches"].graph.node[0].attribute[0].g.initializer[0]),
    },
    "a branch inside a function": {"F.y.then_branch.k": norm(BODY), "F.y.else_branch.k": norm(GATE)},
    "a kernel handed out by a branch": {"w.then_branch.k": None, "w.else_branch.k": None},
    "an attribute of an unknown operator": {"y.coefficients": None},
    "a function that nothing calls": {},
    "a function's default": {"F.kernel": norm(BODY)},
    "a training graph": {},
}


@pytest.mark.parametrize("name", FILES)
def test_a_tensor_that_multiplies_is_bounded_or_fails_wherever_it_stands(tmp_path, name):
    onnx.save(FILES[name], tmp_path / "a.onnx")
    rows = {row.name: row for row in audit(tmp_path / "a.onnx").rows if row.status != "skipped"}
    assert set(rows) == set(KNOWN[name])
    for key, truth in KNOWN[name].items():
        assert rows[key].upper == (None if truth is None else pytest.approx(truth, rel=2e-6))


def test_functions_are_part_of_the_network(tmp_path):
    onnx.save(FILES["a function in a function"], tmp_path / "a.onnx")
    report = audit(tmp_path / "a.onnx")
    assert report.network["upper"] == pytest.approx(norm(BODY), rel=2e-6)
    assert [step["kind"] for step in report.network["steps"]] == ["MatMul", "Relu"]


def test_a_large_tensor_of_a_function_stays_in_the_file(tmp_path):
    large = tensor(200, 4)
    nodes = [call("F", "x", "y", domain="own")]
    onnx.save(model(nodes, functions=[function("F", linear(large))]), tmp_path / "a.onnx")
    (one,) = open_checkpoint(tmp_path / "a.onnx").weights
    np.testing.assert_array_equal(one.read(), numpy_helper.to_array(large))


def test_a_call_may_leave_the_numbers_of_a_constant_open(tmp_path):
    inner = [call("Constant", "", "k"), call("Mul", "x k", "y")]
    inner[0].attribute.add(name="value_float", ref_attr_name="factor", type=1)
    nodes = [call("F", "x", "h", domain="own", factor=3.0), call("F", "h", "y", domain="own", factor=-5.0)]
    onnx.save(model(nodes, functions=[function("F", inner, attributes=["factor"])]), tmp_path / "a.onnx")
    report = audit(tmp_path / "a.onnx")
    assert sorted(row.upper for row in report.rows) == [3, 5]
    assert report.network["upper"] == pytest.approx(15, rel=1e-9)


@pytest.mark.parametrize(
    ("indices", "shape"), [([-1, 1, 2], (4, 4)), ([1, 2, 16], (4, 4)), ([1, 2], (4, 4)), ([0, 1, 2], (2**20, 2**20))]
)
def test_a_sparse_tensor_that_does_not_add_up_fails_alone(tmp_path, indices, shape):
    wrong = sparse("w", shape)
    wrong.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [len(indices)], indices))
    nodes = [call("MatMul", "x w", "h"), call("MatMul", "h v", "y")]
    onnx.save(model(nodes, [tensor(4, 4, name="v")], sparse_tensors=[wrong]), tmp_path / "a.onnx")
    rows = {row.name: row.status for row in audit(tmp_path / "a.onnx").rows}
    assert rows == {"w": "failed", "v": "bounded"}
