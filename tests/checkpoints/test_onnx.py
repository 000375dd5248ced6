"""ONNX: values against onnx's own reading, maps against what onnx's reference evaluator computes."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from samples import onnx_model

from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.operators.convolution import Convolution
from opnorm.operators.sizes import Adjoint

RNG = np.random.default_rng(0)
SINGLE = 1e-5  # the evaluator computes in float32: some hundred products of numbers near 1


def normal(*shape):
    return RNG.standard_normal(shape).astype("float32")


def saved(tmp_path, model):
    onnx.save(model, tmp_path / "a.onnx")
    return open_checkpoint(tmp_path / "a.onnx")


def weight(found, name="w"):
    return next(one for one in found.weights if one.name == name)


def operator(one):
    return one.geometry.operator(one.read().astype(np.float64))


def explicit(model, shape):
    """Return the matrix of a model with one input and one output, column by column, without its constant part."""
    evaluator = ReferenceEvaluator(model)
    zero = evaluator.run(None, {"x": np.zeros(shape, "float32")})[0].ravel()
    images = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    return np.stack([evaluator.run(None, {"x": image})[0].ravel() - zero for image in images], axis=1)


def sized(found, sizes):
    """Return a convolution that stands for every size, at one size."""
    same = {key: getattr(found, key) for key in ("strides", "padding", "dilation_rate", "groups")}
    return Convolution(found.kernel, sizes, **same)


CONVOLUTIONS = [
    ((4, 2, 3, 3), (5, 6), {}),
    ((4, 2, 3, 3), (5, 6), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ((4, 2, 3, 2), (5, 6), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((4, 2, 2, 2), (5, 6), {"auto_pad": "VALID", "dilations": [2, 1]}),
    ((4, 1, 3, 3), (5, 6), {"group": 2}),
    ((4, 2, 3), (7,), {"pads": [1, 1]}),
    ((2, 2, 2, 2, 2), (3, 4, 3), {}),
]


@pytest.mark.parametrize(("shape", "sizes", "options"), CONVOLUTIONS)
def test_a_convolution_is_what_the_file_says(tmp_path, shape, sizes, options):
    model = onnx_model(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], **options)], {"w": normal(*shape), "b": normal(4)[: shape[0]]}
    )
    found = saved(tmp_path, model)
    channels = shape[1] * options.get("group", 1)
    first = explicit(model, (1, channels, *sizes))  # rows and columns: channels first
    matrix = sized(operator(weight(found)), sizes).matmat(np.eye(channels * int(np.prod(sizes))))
    rows, columns = (
        np.arange(n).reshape(c, -1).T.ravel() for n, c in zip(first.shape, (shape[0], channels), strict=True)
    )
    np.testing.assert_allclose(matrix, first[rows][:, columns], atol=SINGLE)
    assert not weight(found).geometry.assumed
    assert weight(found, "b").geometry.reason == "a bias is added, not multiplied"


@pytest.mark.parametrize("options", [{}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"group": 2, "strides": [3, 2]}])
def test_a_transposed_convolution_is_bounded_for_every_size(tmp_path, options):
    """Against PyTorch, since onnx's evaluator knows no groups here."""
    kernel, groups, strides = normal(4, 2, 3, 3), options.get("group", 1), options.get("strides", 1)
    model = onnx_model([helper.make_node("ConvTranspose", ["x", "w"], ["y"], **options)], {"w": kernel})
    one = weight(saved(tmp_path, model))
    assert isinstance(operator(one), Adjoint)
    images = torch.eye(4 * 64).reshape(-1, 4, 8, 8)
    padding = options.get("pads", [0])[0]
    images = torch.nn.functional.conv_transpose2d(images, torch.from_numpy(kernel), None, strides, padding, 0, groups)
    truth = np.linalg.svd(images.reshape(256, -1).double().numpy(), compute_uv=False)[0]
    upper = spectral_norm(operator(one)).upper
    assert 0.8 * upper <= truth <= upper * (1 + SINGLE)  # an image of 8x8 comes this near to all of the plane


PRODUCTS = [
    ("MatMul", ["x", "w"], (4, 3), (2, 4), {}),
    ("MatMul", ["w", "x"], (4, 3), (3, 2), {}),
    ("MatMul", ["x", "w"], (1, 4, 3), (2, 4), {}),
    ("Gemm", ["x", "w", "c"], (4, 3), (2, 4), {"alpha": 0.5}),
    ("Gemm", ["x", "w"], (3, 4), (2, 4), {"transB": 1}),
    ("Gemm", ["w", "x"], (4, 3), (4, 2), {"transA": 1}),
]


@pytest.mark.parametrize(("kind", "feeds", "shape", "given", "options"), PRODUCTS)
def test_a_product_is_what_the_file_says(tmp_path, kind, feeds, shape, given, options):
    """Two rows, or columns, go through the same matrix: the norm is that of one."""
    model = onnx_model([helper.make_node(kind, feeds, ["y"], **options)], {"w": normal(*shape), "c": normal(3)})
    truth = np.linalg.svd(explicit(model, given), compute_uv=False)[0]
    assert spectral_norm(operator(weight(saved(tmp_path, model)))).lower == pytest.approx(truth, rel=SINGLE)


def test_a_stack_of_matrices_is_no_map_that_the_file_tells(tmp_path):
    model = onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(2, 4, 3)})
    assert "share" in weight(saved(tmp_path, model)).geometry.reason


def test_a_batch_normalization_is_its_diagonal(tmp_path):
    tensors = {"w": normal(4), "b": normal(4), "m": normal(4), "v": normal(4) ** 2}
    model = onnx_model([helper.make_node("BatchNormalization", ["x", "w", "b", "m", "v"], ["y"], epsilon=0.1)], tensors)
    found = saved(tmp_path, model)
    np.testing.assert_allclose(operator(weight(found)).matmat(np.eye(4)), explicit(model, (1, 4)), atol=SINGLE)
    assert not any(weight(found, name).geometry.operator for name in "bmv")


@pytest.mark.parametrize("per_channel", [False, True])
def test_quantized_weights_are_their_integers_times_their_scale(tmp_path, per_channel):
    integers = RNG.integers(-128, 128, (4, 3)).astype("int8")
    count = 3 if per_channel else 1
    scale, zero = np.abs(normal(count)), RNG.integers(-9, 9, count).astype("int8")
    scale, zero = (scale, zero) if per_channel else (scale[0], zero[0])
    tensors = {"w": integers, "s": np.asarray(scale, "float32"), "z": np.asarray(zero, "int8")}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = onnx_model(nodes, tensors)
    found = saved(tmp_path, model)
    assert weight(found).dtype == "int8"
    np.testing.assert_allclose(operator(weight(found)).matmat(np.eye(4)), explicit(model, (1, 4)), rtol=SINGLE)
    assert "scale or zero point" in weight(found, "s").geometry.reason
    (node,) = found.graph.nodes
    assert (node.kind, node.weights["kernel"].name) == ("MatMul", "w")


def test_a_quantized_convolution_has_a_scale_for_each_output(tmp_path):
    integers = RNG.integers(-128, 128, (4, 2, 3, 3)).astype("int8")
    scale, zero = np.abs(normal(4)), np.zeros(4, "int8")
    tensors = {"one": np.float32(1), "none": np.uint8(0), "w": integers, "s": scale, "z": zero}
    node = helper.make_node("QLinearConv", ["x", "one", "none", "w", "s", "z", "one", "none"], ["y"])
    found = operator(weight(saved(tmp_path, onnx_model([node], tensors))))
    np.testing.assert_array_equal(
        found.kernel, (integers * scale[:, None, None, None].astype("f8")).transpose(2, 3, 1, 0)
    )


@pytest.mark.parametrize("kind", ["ConvInteger", "MatMulInteger"])
def test_integers_whose_scale_comes_later_are_no_map_yet(tmp_path, kind):
    shape = (4, 2, 3, 3) if kind == "ConvInteger" else (4, 3)
    model = onnx_model([helper.make_node(kind, ["x", "w"], ["y"])], {"w": np.ones(shape, "int8")})
    found = weight(saved(tmp_path, model)).geometry
    assert "scale" in found.reason
    assert found.unknown, "skipped it would pass a check"


@pytest.mark.parametrize("options", [{"pads": [-1, 0, 0, 0]}, {"pads": [1]}, {"group": 3}, {"strides": [0, 1]}])
def test_a_convolution_that_is_not_understood_passes_no_check(tmp_path, options):
    model = onnx_model([helper.make_node("Conv", ["x", "w"], ["y"], **options)], {"w": normal(4, 2, 3, 3)})
    assert weight(saved(tmp_path, model)).geometry.unknown


def test_recurrent_weights_are_a_matrix_for_each_direction(tmp_path):
    tensors = {"w": normal(2, 12, 5), "r": normal(2, 12, 3), "b": normal(2, 24)}
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y"], direction="bidirectional", hidden_size=3)
    found = saved(tmp_path, onnx_model([node], tensors))
    for name in "wr":
        truth = max(np.linalg.svd(one.astype("f8"), compute_uv=False)[0] for one in tensors[name])
        assert spectral_norm(operator(weight(found, name))).lower == pytest.approx(truth, rel=1e-9)
    assert list(found.graph.nodes[0].weights) == ["kernel", "recurrent_kernel", "bias"]


def test_a_table_that_is_gathered_from_is_an_embedding(tmp_path):
    model = onnx_model([helper.make_node("Gather", ["w", "x"], ["y"])], {"w": normal(6, 3)})
    assert weight(saved(tmp_path, model)).geometry.text == "matrix (tokens, features)"


def test_weights_inside_branches_and_constants_are_found(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "outer"], ["m"]), helper.make_node("MatMul", ["m", "inner"], ["r"])],
        "then",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(normal(3, 3), "inner")],
    )
    nodes = [
        helper.make_node("Constant", [], ["outer"], value=numpy_helper.from_array(normal(40, 3), "")),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=inner, else_branch=inner),
    ]
    found = saved(tmp_path, onnx_model(nodes, {"c": np.array(True)}))
    kinds = {one.name: one.geometry.kind for one in found.weights if one.geometry.operator}
    assert kinds == dict.fromkeys(["outer", "choice.then_branch.inner", "choice.else_branch.inner"], "MatMul")


DTYPES = [
    "FLOAT",
    "DOUBLE",
    "FLOAT16",
    "BFLOAT16",
    "FLOAT8E4M3FN",
    "FLOAT8E5M2",
    "INT8",
    "UINT8",
    "INT32",
    "INT64",
    "INT4",
]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [6, 3000])
def test_every_dtype_is_decoded_as_onnx_does(tmp_path, dtype, raw, count):
    kind = getattr(TensorProto, dtype)
    values = RNG.integers(-7, 8, count) if dtype != "UINT8" else RNG.integers(0, 8, count)
    tensor = helper.make_tensor("w", kind, [2, count // 2], values)
    if raw:
        array = numpy_helper.to_array(tensor)
        tensor = numpy_helper.from_array(array, "w")
    model = onnx_model([helper.make_node("Relu", ["x"], ["y"])], {})
    model.graph.initializer.append(tensor)
    one = weight(saved(tmp_path, model))
    truth = numpy_helper.to_array(tensor)
    assert one.dtype == truth.dtype.name
    np.testing.assert_array_equal(one.read().astype("f8"), truth.astype("f8"))


def test_external_data_is_read_at_its_place(tmp_path):
    tensors = {"w": normal(40, 30), "v": normal(30, 40)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("MatMul", ["m", "v"], ["y"])]
    onnx.save(
        onnx_model(nodes, tensors),
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="data.bin",
        size_threshold=0,
    )
    found = open_checkpoint(tmp_path / "a.onnx")
    for name, array in tensors.items():
        np.testing.assert_array_equal(weight(found, name).read(), array)
    (tmp_path / "data.bin").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"Cannot read '.*a\.onnx'"):
        weight(found).read()


def test_the_graph_names_who_feeds_whom(tmp_path):
    nodes = [
        helper.make_node("Relu", ["m"], ["r"], name="later"),
        helper.make_node("Gemm", ["x", "w", "b"], ["m"], name="first", transB=1),
        helper.make_node("Add", ["r", "x"], ["y"], name="sum"),
    ]
    graph = saved(tmp_path, onnx_model(nodes, {"w": normal(4, 4), "b": normal(4)})).graph
    assert [(node.name, node.kind, node.inputs) for node in graph.nodes] == [
        ("first", "Gemm", ("x",)),
        ("later", "Relu", ("first",)),
        ("sum", "Add", ("later", "x")),
    ]
    assert (graph.inputs, graph.outputs) == (("x",), ("sum",))
    assert list(graph.nodes[0].weights) == ["kernel", "bias"]
    assert graph.nodes[0].options["transB"] == 1


def test_shapes_are_inferred_through_slices(tmp_path):
    """Each of them is held back until its input's shape is known."""
    nodes = [
        helper.make_node("Slice", ["x", "one", "end", "axis"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Slice", ["b", "one", "end", "axis"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    tensors = {"one": np.array([1]), "end": np.array([100]), "axis": np.array([1])}
    model = onnx_model(nodes, tensors)
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 7]))
    graph = saved(tmp_path, model).graph
    assert [node.options["input_shapes"] for node in graph.nodes] == [(("n", size),) for size in (7, 6, 6, 5)]
