"""ONNX: every use of a constant is bounded, through what computes constants; the truth is onnx's own evaluator."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import onnx_model
from test_onnx import explicit, normal, operator, saved, weight

from opnorm.auditing.audits import audit
from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.opening import open_checkpoint

SINGLE = 2e-5  # the evaluator computes in float32


def norm(matrix):
    return np.linalg.svd(np.asarray(matrix, "f8"), compute_uv=False)[0]


def rows(tmp_path, model):
    onnx.save(model, tmp_path / "a.onnx")
    return {row.name: row for row in audit(tmp_path / "a.onnx", network=False).rows}


def call(kind, inputs, outputs, name="", **options):
    return helper.make_node(kind, inputs.split(), outputs.split(), name=name, **options)


def test_a_kernel_that_two_convolutions_read_has_a_row_for_each(tmp_path):
    K = np.full((1, 1, 1, 8), 1 / 8, "float32")
    nodes = [call("Conv", "x K", "a", "first", strides=[1, 8]), call("Conv", "x K", "b", "second", strides=[1, 1])]
    found = rows(tmp_path, onnx_model(nodes, {"K": K}, outputs=("a", "b")))
    assert list(found) == ["K", "K (in second)"]
    assert found["K"].lower <= 8**-0.5 <= found["K"].upper * (1 + 1e-12)
    band = np.array([[1 / 8 if 0 <= j - i < 8 else 0 for j in range(64)] for i in range(57)])
    assert norm(band) <= found["K (in second)"].upper <= 1.01
    assert found["K (in second)"].upper > 0.5


def test_one_matrix_in_two_products_counts_with_both_factors(tmp_path):
    W = normal(4, 4)
    nodes = [call("Gemm", "x W", "a", "one", alpha=1.0), call("Gemm", "a W", "y", "ten", alpha=10.0)]
    found = rows(tmp_path, onnx_model(nodes, {"W": W}))
    assert [found[name].lower / norm(W) for name in ("W", "W (in ten)")] == pytest.approx([1, 10], rel=1e-5)


def test_the_same_use_of_a_kernel_by_many_is_one_row(tmp_path):
    nodes = [call("MatMul", "x W", "a"), call("MatMul", "a W", "b"), call("Transpose", "W", "t")]
    nodes += [call("MatMul", "b t", "c"), call("Transpose", "W", "u"), call("MatMul", "c u", "y")]
    assert len(rows(tmp_path, onnx_model(nodes, {"W": normal(4, 4)}))) == 2


FOLDED = {  # operators on w, (4, 6), and constants beside it; then a product
    "transposed": ([call("Transpose", "w", "k", perm=[1, 0])], {}),
    "reshaped": ([call("Reshape", "w s", "k")], {"s": np.array([3, -1])}),
    "reshaped with zero": ([call("Reshape", "w s", "k")], {"s": np.array([0, 6])}),
    "unsqueezed and squeezed": ([call("Unsqueeze", "w a", "u"), call("Squeeze", "u a", "k")], {"a": np.array([0])}),
    "flattened": ([call("Unsqueeze", "w a", "u"), call("Flatten", "u", "k", axis=2)], {"a": np.array([0])}),
    "scaled": ([call("Mul", "w s", "k")], {"s": normal(6)}),
    "divided": ([call("Div", "w s", "k")], {"s": np.float32(-0.3)}),
    "added": ([call("Add", "w s", "k")], {"s": normal(4, 6)}),
    "subtracted": ([call("Sub", "s w", "k")], {"s": normal(4, 1)}),
    "negated": ([call("Neg", "w", "k")], {}),
    "cast": ([call("Cast", "w", "h", to=TensorProto.FLOAT16), call("Cast", "h", "k", to=TensorProto.FLOAT)], {}),
    "cut to integers": ([call("Cast", "w", "h", to=TensorProto.INT32), call("Cast", "h", "k", to=1)], {}),
    "side by side": ([call("Concat", "w s", "k", axis=0)], {"s": normal(2, 6)}),
    "sliced": (
        [call("Slice", "w b e a t", "k")],
        {"b": np.array([5, 0]), "e": np.array([-(2**63), 3]), "a": np.array([1, 0]), "t": np.array([-2, 1])},
    ),
    "split": ([call("Split", "w s", "other k", axis=1)], {"s": np.array([2, 4])}),
    "split, and a part left out": ([helper.make_node("Split", ["w"], ["", "k"], axis=1, num_outputs=2)], {}),
    "split in equal parts": ([call("Split", "w", "other k", axis=1, num_outputs=2)], {}),
    "repeated": ([call("Expand", "s e", "k")], {"s": normal(4, 1), "e": np.array([4, 6])}),
    "filled": (
        [call("ConstantOfShape", "e", "k", value=numpy_helper.from_array(np.array([0.5], "float32")))],
        {"e": np.array([4, 6])},
    ),
    "listed": (
        [call("Constant", "", "v", value_floats=[1.0, 2.0, 3.0, 4.0]), call("Reshape", "v e", "k")],
        {"e": np.array([4, 1])},
    ),
    "two ways": ([call("Transpose", "w", "t"), call("Transpose", "t", "u"), call("Mul", "w u", "k")], {}),
}


@pytest.mark.parametrize("way", FOLDED)
def test_a_computed_weight_is_what_the_evaluator_makes_of_it(tmp_path, way):
    nodes, constants = FOLDED[way]
    model = onnx_model([*nodes, call("MatMul", "x k", "y")], {"w": normal(4, 6), **constants})
    probe = onnx_model(nodes, {"w": numpy_helper.to_array(model.graph.initializer[0]), **constants}, outputs=("k",))
    kernel = onnx.reference.ReferenceEvaluator(probe).run(["k"], {"x": np.zeros(1, "float32")})[0]
    found = saved(tmp_path, model)
    (one,) = [one for one in found.weights if one.geometry.operator]
    np.testing.assert_allclose(operator(one).matmat(np.eye(len(kernel))), kernel.T, rtol=SINGLE)
    assert {one.name for one in found.weights} >= {tensor.name for tensor in model.graph.initializer}
    (node,) = found.graph.nodes
    assert [node.kind, node.weights["kernel"].name] == ["MatMul", one.name]


def test_a_convolution_of_a_reshaped_kernel_is_bounded_as_it_is_used(tmp_path):
    kernel = normal(4, 2, 3, 3)
    model = onnx_model(
        [call("Reshape", "w s", "k"), call("Conv", "x k", "y", strides=[2, 2])],
        {"w": kernel.reshape(8, 9), "s": np.array([4, 2, 3, 3])},
    )
    found = operator(weight(saved(tmp_path, model)))
    np.testing.assert_array_equal(found.kernel, kernel.transpose(2, 3, 1, 0))
    assert found.strides == (2, 2)


def test_what_a_network_reads_of_a_computed_constant_is_its_values(tmp_path):
    """A stretch by -6, in halves of an integer: neither the stored 12 nor its transpose."""
    constants = {"c": np.full((1, 3), 12, "int8"), "s": np.float32(-0.5)}
    nodes = [call("DequantizeLinear", "c s", "d"), call("Mul", "x d", "y")]
    model = onnx_model(nodes, constants)
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 3]))
    onnx.save(model, tmp_path / "a.onnx")
    report = audit(tmp_path / "a.onnx")
    assert report.network["upper"] == pytest.approx(6, rel=1e-9)
    assert report.rows[0].upper == pytest.approx(6, rel=1e-9)


HIDDEN = {  # kernels whose norm is there and not known: a check must not pass
    "computed by an operator that is not worked out": [call("Softmax", "w", "k"), call("MatMul", "x k", "y")],
    "shaped by the input": [call("Shape", "x", "s"), call("Reshape", "w s", "k"), call("MatMul", "x k", "y")],
    "too large to expand": [call("Expand", "w e", "k"), call("MatMul", "x k", "y")],
    "an unknown operator": [helper.make_node("Mystery", ["x", "w"], ["y"], domain="made.up")],
    "an operator without a map": [call("GridSample", "x w", "y")],
    "a stack of kernels looked up": [
        call("Unsqueeze", "w o", "u"), call("Gather", "u i", "k"), call("MatMul", "i k", "y"),
    ],
    "chosen by a mask": [call("Where", "mask w w2", "k"), call("MatMul", "x k", "y")],
    "a table of what is not worked out": [
        call("Unsqueeze", "w o", "u"), call("ReduceSum", "u o", "k", keepdims=0), call("Gather", "k x", "y"),
    ],
    "an integer product from the left": [call("Cast", "w", "k", to=3), call("MatMulInteger", "k x", "y")],
    "a kernel with seven axes": [call("Unsqueeze", "w many", "k"), call("Conv", "x k", "y")],
    "groups that do not divide": [call("Unsqueeze", "w o", "u"), call("Conv", "x u", "y", group=3)],
    "an integer product": [call("Cast", "w", "k", to=3), call("MatMulInteger", "x k", "y")],
}  # fmt: skip


@pytest.mark.parametrize("way", HIDDEN)
def test_a_kernel_whose_norm_is_not_known_says_so_and_never_passes(tmp_path, way):
    constants = {"w": normal(4, 5), "e": np.array([2**20, 2**20, 4, 5]), "o": np.array([0])}
    constants |= {"many": np.arange(5), "i": np.array([0])} if "looked" not in way else {}
    constants |= {"mask": np.ones((4, 5), bool), "w2": normal(4, 5)} if "mask" in way else {}
    model = onnx_model(HIDDEN[way], constants, inputs=("x", "i") if "looked" in way else ("x",))
    found = rows(tmp_path, model)["w"]
    assert (found.status, found.upper) == ("failed", None)
    assert found.reason


@pytest.mark.parametrize(
    ("constant", "way"),
    [(np.eye(3) > 0, call("Not", "w", "n")), (np.array(["1 2", "3 4"], object), call("StringSplit", "w", "n m"))],
)
def test_numbers_that_are_made_of_texts_or_bits_are_no_texts_or_bits(tmp_path, constant, way):
    nodes = [way, call("Cast", "n", "k", to=1), call("MatMul", "x k", "y")]
    found = rows(tmp_path, onnx_model(nodes, {"w": constant}))["w"]
    assert (found.status, found.upper) == ("failed", None)


def test_what_has_no_norm_of_its_own_is_no_failure(tmp_path):
    nodes = [call("Add", "x b", "a"), call("Clip", "a low", "c"), call("LayerNormalization", "c g", "l")]
    nodes += [call("Expand", "t s", "e"), call("Concat", "l e", "y", axis=0), call("Where", "m y b", "z")]
    constants = {"b": normal(4), "low": np.float32(0), "g": normal(4), "t": normal(1, 4), "m": np.ones(4, bool)}
    found = rows(tmp_path, onnx_model(nodes, constants, inputs=("x", "s"), outputs=("z",)))
    assert {row.status for row in found.values()} == {"skipped"}


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_a_factor_is_a_diagonal_where_it_meets_each_entry_once(tmp_path, kind):
    factors = np.array([[0.5, -4, 2]], "float32")
    model = onnx_model([call(kind, "x f", "y")], {"f": factors})
    assert rows(tmp_path, model)["f"].status == "failed"  # of an input of shape (1,) one entry would meet all three
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3]))
    truth = 4 if kind == "Mul" else 2
    assert (rows(tmp_path, model)["f"].lower, rows(tmp_path, model)["f"].upper) == pytest.approx((truth, truth))


@pytest.mark.parametrize("equation", ["bi,io->bo", "b h i,h i o->b h o"])
def test_an_einsum_equation_tells_its_matrix(tmp_path, equation):
    kernel = normal(4, 3) if "h" not in equation else normal(2, 4, 3)
    found = rows(tmp_path, onnx_model([call("Einsum", "x w", "y", equation=equation)], {"w": kernel}))["w"]
    truth = max(map(norm, kernel)) if kernel.ndim == 3 else norm(kernel)
    assert found.lower <= truth * (1 + 1e-12)
    assert found.upper == pytest.approx(truth, rel=1e-5)


DTYPES = ["INT4", "UINT4", "INT2", "UINT2", "INT8", "UINT8", "INT32", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2",
          "FLOAT8E5M2FNUZ", "FLOAT4E2M1"]  # fmt: skip


def integers(dtype, shape=(4, 6)):
    values = np.arange(np.prod(shape)) % (2 if "2" in dtype and "INT" in dtype else 6)
    return helper.make_tensor("w", getattr(TensorProto, dtype), shape, values.astype("f4"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_numbers_are_dequantized_exactly(tmp_path, dtype):
    tensor, scale = integers(dtype), np.abs(normal(6))
    model = onnx_model([call("DequantizeLinear", "w s", "d", axis=1), call("MatMul", "x d", "y")], {"s": scale})
    model.graph.initializer.append(tensor)
    truth = numpy_helper.to_array(tensor).astype("f4") * scale
    found = saved(tmp_path, model)
    one = weight(found)
    np.testing.assert_array_equal(operator(one).matmat(np.eye(4)), truth.T)
    report = audit(tmp_path / "a.onnx")
    assert report.network["upper"] == pytest.approx(norm(truth), rel=1e-5)


@pytest.mark.parametrize("dtype", [*DTYPES, "FLOAT8E8M0", "COMPLEX64", "STRING", "BOOL"])
def test_no_type_of_a_kernel_ends_the_audit(tmp_path, dtype):
    if dtype == "STRING":
        tensor = helper.make_tensor("w", TensorProto.STRING, (2, 2), [b"a"] * 4)
    elif dtype == "FLOAT8E8M0":
        tensor = TensorProto(name="w", data_type=24, dims=(4, 6), raw_data=np.full(24, 127, "u1").tobytes())
    else:
        tensor = integers(dtype)
    model = onnx_model([call("MatMul", "x w", "y"), call("MatMul", "y v", "z")], {"v": normal(6, 3)}, outputs=("z",))
    model.graph.initializer.append(tensor)
    found = rows(tmp_path, model)
    assert found["w"].reason or found["w"].upper is not None
    assert found["w"].status != "skipped" or dtype in ("STRING", "BOOL")
    assert found["v"].status == "bounded"
    audit(tmp_path / "a.onnx")


def test_a_type_that_nobody_knows_is_a_row_with_the_reason(tmp_path):
    model = onnx_model([call("MatMul", "x w", "y"), call("MatMul", "y v", "z")], {"v": normal(6, 3)}, outputs=("z",))
    model.graph.initializer.append(TensorProto(name="w", data_type=99, dims=(4, 6), raw_data=bytes(24)))
    found = rows(tmp_path, model)
    assert (found["w"].status, found["v"].status) == ("failed", "bounded")
    assert "data type 99" in found["w"].reason


@pytest.mark.parametrize(("axis", "shape"), [(0, (2, 6)), (1, (4, 3))])
def test_a_scale_for_each_block_is_spread_over_it(tmp_path, axis, shape):
    values, scale = np.arange(24, dtype="int8").reshape(4, 6), np.abs(normal(*shape))
    nodes = [call("DequantizeLinear", "w s z", "d", axis=axis, block_size=2), call("MatMul", "x d", "y")]
    model = onnx_model(nodes, {"w": values, "s": scale, "z": np.ones(shape, "int8")})
    truth = (values - 1.0) * np.repeat(scale, 2, axis=axis)
    np.testing.assert_allclose(operator(weight(saved(tmp_path, model))).matmat(np.eye(4)), truth.T, rtol=1e-6)


def test_a_quantized_matrix_on_the_left_has_a_scale_for_each_row(tmp_path):
    values, scale = np.arange(-8, 8, dtype="int8").reshape(4, 4), np.abs(normal(4))
    one, none = np.float32(1), np.int8(0)
    node = call("QLinearMatMul", "w s z x one none one none", "y")
    constants = {"w": values, "s": scale, "z": np.zeros(4, "int8"), "one": one, "none": none}
    found = operator(weight(saved(tmp_path, onnx_model([node], constants))))
    np.testing.assert_array_equal(found.matmat(np.eye(4)), values * scale[:, None].astype("f8"))


def test_a_scale_that_the_network_computes_leaves_the_norm_unknown(tmp_path):
    nodes = [call("DequantizeLinear", "w s", "d"), call("MatMul", "x d", "y")]
    found = rows(tmp_path, onnx_model(nodes, {"w": np.ones((4, 6), "int8")}, inputs=("x", "s")))
    assert found["w"].status == "failed"


def test_halves_are_rounded_where_the_file_says_so(tmp_path):
    W, s = normal(4, 6).astype("float16"), np.float16(0.37)
    found = saved(tmp_path, onnx_model([call("Mul", "w s", "k"), call("MatMul", "x k", "y")], {"w": W, "s": s}))
    np.testing.assert_array_equal(operator(weight(found)).matmat(np.eye(4)), (W * s).astype("f8").T)


def test_external_data_taken_into_the_file_is_read(tmp_path):
    """onnx loads external data as raw bytes, and writes out that they are no longer external."""
    W = normal(24, 24)
    model = onnx_model([call("MatMul", "x W", "y")], {"W": W})
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.bin", size_threshold=0)
    loaded = onnx.load(tmp_path / "b.onnx")
    assert loaded.graph.initializer[0].HasField("data_location")
    np.testing.assert_array_equal(weight(saved(tmp_path, loaded), "W").read(), W)
    found = open_checkpoint(tmp_path / "a.onnx")
    assert spectral_norm(operator(weight(found, "W"))).lower == pytest.approx(norm(W), rel=1e-6)


def test_a_batch_normalization_of_computed_parts_is_its_diagonal(tmp_path):
    parts = {name: np.abs(normal(4)) for name in "wbmv"} | {"two": np.float32(2)}
    nodes = [call("Mul", "w two", "g"), call("Mul", "v two", "u"), call("BatchNormalization", "x g b m u", "y")]
    model = onnx_model(nodes, parts)
    found = saved(tmp_path, model)
    np.testing.assert_allclose(operator(weight(found)).matmat(np.eye(4)), explicit(model, (1, 4)), atol=SINGLE)
    report = audit(tmp_path / "a.onnx")
    truth = np.max(2 * parts["w"] / np.sqrt(2 * parts["v"] + 1e-5))
    assert report.network["upper"] == pytest.approx(truth, rel=1e-6)
