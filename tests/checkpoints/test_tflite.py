"""TFLite: every operator's kernel as its layer applies it, quantized or not, and whatever else stands in the file."""

import warnings

import numpy as np
import pytest
from bracketed import brackets, status, weights
from explicit import explicit_matrix, norm
from readers import refused
from tflite_files import Operator, Tensor, one_layer, tflite_model

from opnorm.checkpoints.opening import open_checkpoint

RNG = np.random.default_rng(0)
STRIDES = {"StrideH": 2, "StrideW": 1, "Padding": 1}
DILATED = {**STRIDES, "DilationHFactor": 1, "DilationWFactor": 2}


def row(folder, data, name="w"):
    (folder / "a.tflite").write_bytes(data)
    return weights(folder / "a.tflite")[name]


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def holds(weight, matrix):
    """Check that the bracket has the norm of a matrix."""
    bounds, truth = brackets(weight)[0], norm(matrix.astype(float))
    assert bounds.lower <= truth * (1 + 1e-12)
    assert truth <= bounds.upper * (1 + 1e-12)


def holds_for_images(weight, truth):
    """Check that the bracket, of every image's norm, lies above that of one image, and not far."""
    upper = brackets(weight)[0].upper
    assert 0.7 * upper < truth <= upper * (1 + 1e-12)


def image(kernel, groups=1, strides=(2, 1), dilation=(1, 2)):
    """Return the norm on an image of a kernel (height, width, in / groups, out)."""
    return norm(explicit_matrix(kernel.astype(float), (8, 8), strides, "valid", dilation, groups))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_has_its_outputs_first(tmp_path, groups):
    kernel = normal(4, 3, 2, 3)
    weight = row(tmp_path, one_layer("CONV_2D", kernel, (1, 9, 9, 3 * groups), ("Conv2DOptions", DILATED)))
    holds_for_images(weight, image(kernel.transpose(1, 2, 3, 0), groups))


@pytest.mark.parametrize("multiplier", [0, 2])
def test_a_depthwise_convolution_has_its_channels_last(tmp_path, multiplier):
    kernel = normal(1, 3, 2, 6)
    options = ("DepthwiseConv2DOptions", {**DILATED, "DepthMultiplier": multiplier})
    weight = row(tmp_path, one_layer("DEPTHWISE_CONV_2D", kernel, (1, 9, 9, 3), options))
    blocks = [image(kernel[0, :, :, None, 2 * c : 2 * c + 2]) for c in range(3)]
    holds_for_images(weight, max(blocks))


def test_a_transposed_convolution_has_its_outputs_first(tmp_path):
    kernel = normal(4, 3, 2, 3)
    data = one_layer("TRANSPOSE_CONV", kernel, (1, 9, 9, 3), ("TransposeConvOptions", STRIDES))
    holds_for_images(row(tmp_path, data), image(kernel.transpose(1, 2, 0, 3), dilation=(1, 1)))


@pytest.mark.parametrize(("kind", "inputs"), [("CONV_3D", 3), ("CONV_3D_TRANSPOSE", 4)])
def test_convolutions_in_three_dimensions_have_their_channels_last(tmp_path, kind, inputs):
    kernel = normal(2, 2, 2, 3, 4)
    options = ("Conv3DOptions", {"Padding": 0, "StrideD": 1, "StrideH": 1, "StrideW": 1})
    weight = row(tmp_path, one_layer(kind, kernel, (1, 5, 5, 5, inputs), options))
    matrix = explicit_matrix(kernel.astype(float), (4, 4, 4), (1, 1, 1), "same", (1, 1, 1), 1)
    holds_for_images(weight, norm(matrix))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("position", [0, 1])
def test_products_are_bounded(tmp_path, position, turned):
    kernel = normal(1, 4, 6)
    options = ("BatchMatMulOptions", {("AdjY" if position else "AdjX"): turned})
    weight = row(tmp_path, one_layer("BATCH_MATMUL", kernel, (1, 6, 6), options, position))
    holds(weight, kernel[0])
    operator = weight.geometry.operator(weight.read().astype(float))
    assert operator.shape == ((4, 6) if turned == bool(position) else (6, 4))


LAYERS = [
    ("FULLY_CONNECTED", 1, ("FullyConnectedOptions", {})),
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", 1, ()),
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", 8, ()),
    ("UNIDIRECTIONAL_SEQUENCE_RNN", 2, ()),
    ("GATHER", 0, ("GatherOptions", {})),
    ("EMBEDDING_LOOKUP", 1, ()),
]


@pytest.mark.parametrize(("kind", "position", "options"), LAYERS)
def test_matrices_are_bounded(tmp_path, kind, position, options):
    kernel = normal(4, 6)
    holds(row(tmp_path, one_layer(kind, kernel, (1, 6), options, position)), kernel)


@pytest.mark.parametrize(
    ("kind", "shape", "beside", "expected"),
    [
        ("MUL", (6,), (1, 3, 6), "bounded"),
        ("DIV", (3, 1), (1, 3, 6), "bounded"),
        ("MUL", (), (), "bounded"),
        ("MUL", (6,), (1, 3, 1), "unknown"),
        ("ADD", (6,), (1, 3, 6), "skipped"),
        ("PRELU", (6,), (1, 3, 6), "skipped"),
        ("RESHAPE", (6,), (1, 3, 6), "unknown"),
        ("Mine", (6,), (1, 3, 6), "unknown"),
    ],
)
def test_other_constants(tmp_path, kind, shape, beside, expected):
    array = normal(*shape) if shape else np.array([2.5], np.float32)
    weight = row(tmp_path, one_layer(kind, array, beside))
    assert status(weight) == expected
    if expected == "bounded":
        holds(weight, np.diag(np.ravel(1 / array.astype(float) if kind == "DIV" else array)))


QUANTIZED = [
    ((0.5,), (3,), 0),
    ((0.5,), (), 0),
    ((0.5, 1.0, 2.0, 0.25), (0, 0, 0, 0), 0),
    ((0.5, 1.0, 2.0, 0.25), (1, 2, 3, 4), 0),
    ((0.5, 1.0, 2.0, 0.25, 1.5, 3.0), (2,), 1),
]


@pytest.mark.parametrize(("scale", "zeros", "axis"), QUANTIZED)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_quantized_numbers_are_multiplied_out(tmp_path, scale, zeros, axis, dtype):
    codes = RNG.integers(0, 100, (4, 6)).astype(dtype)
    data = one_layer("FULLY_CONNECTED", codes, (1, 6), scale=scale, zeros=zeros, axis=axis)
    truth = np.zeros((4, 6))
    for i in range(4):
        for j in range(6):
            at = (i, j)[axis]
            zero = (zeros or (0,))[at if len(zeros) > 1 else 0]
            truth[i, j] = scale[at if len(scale) > 1 else 0] * (int(codes[i, j]) - zero)
    weight = row(tmp_path, data)
    np.testing.assert_array_equal(weight.read(), truth)
    assert weight.dtype == dtype
    holds(weight, truth)


def test_integers_of_four_bits(tmp_path):
    codes = RNG.integers(-8, 8, (3, 5))
    flat = [*(int(code) & 15 for code in codes.ravel()), 0]
    octets = np.array([a + 16 * b for a, b in zip(flat[::2], flat[1::2], strict=False)], np.uint8)
    tensors = [Tensor("x"), Tensor("w", (3, 5), octets, (0.5,), (0,), kind=17), Tensor("y")]
    weight = row(tmp_path, tflite_model(tensors, [Operator("FULLY_CONNECTED", (0, 1), (2,))]))
    np.testing.assert_array_equal(weight.read(), codes * 0.5)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("w", (4, 6), np.ones((4, 6), np.int8)),
        Tensor("w", (4, 6), np.ones((4, 6), np.int8), (1, 2, 3), axis=0),
        Tensor("w", (4, 6), np.ones((4, 6), np.int8), (1, 2, 3, 4), (1, 2), axis=0),
        Tensor("w", (4, 6), np.ones((4, 6), np.int8), (1, 2, 3, 4), axis=7),
        Tensor("w", (4, 6), np.ones((4, 6), np.int8), (1.0,), details=True),
        Tensor("w", (4, 7), np.ones((4, 6), np.float32)),
        Tensor("w", (4, 6), np.ones((4, 6), np.float32), kind=99),
        Tensor("w", (2, 2, 6), np.ones((2, 2, 6), np.float32)),
    ],
)
def test_numbers_that_are_not_told_are_unknown(tmp_path, tensor):
    data = tflite_model([Tensor("x"), tensor, Tensor("y")], [Operator("FULLY_CONNECTED", (0, 1), (2,))])
    weight = row(tmp_path, data)
    assert status(weight) == "unknown"
    assert weight.geometry.reason


@pytest.mark.parametrize(
    ("kind", "shape", "beside", "options"),
    [
        ("CONV_2D", (4, 3, 2, 3), (1, 9, 9, 4), ("Conv2DOptions", STRIDES)),
        ("CONV_2D", (4, 3, 2, 3), (1, 9, 9, 9), ("Conv2DOptions", STRIDES)),
        ("CONV_2D", (4, 3, 2, 3), (), ("Conv2DOptions", STRIDES)),
        ("CONV_2D", (4, 3, 2, 3), (1, 9, 9, 3), ("Conv2DOptions", {"Padding": 5, "StrideH": 1, "StrideW": 1})),
        ("CONV_2D", (4, 3, 2, 3), (1, 9, 9, 3), ("Conv2DOptions", {"Padding": 0})),
        ("CONV_2D", (4, 3, 2, 3), (1, 9, 9, 3), ()),
        ("DEPTHWISE_CONV_2D", (1, 3, 2, 6), (1, 9, 9, 4), ("DepthwiseConv2DOptions", STRIDES)),
        (
            "DEPTHWISE_CONV_2D",
            (1, 3, 2, 6),
            (1, 9, 9, 3),
            ("DepthwiseConv2DOptions", {**STRIDES, "DepthMultiplier": 3}),
        ),
        ("DEPTHWISE_CONV_2D", (2, 3, 2, 6), (1, 9, 9, 3), ("DepthwiseConv2DOptions", STRIDES)),
        ("FULLY_CONNECTED", (4, 6), (1, 6), ("FullyConnectedOptions", {"WeightsFormat": 1})),
        ("BATCH_MATMUL", (2, 4, 6), (2, 6, 4), ("BatchMatMulOptions", {})),
        ("GATHER", (4, 6), (3,), ("GatherOptions", {"Axis": 1})),
    ],
)
def test_layers_whose_options_do_not_fit_are_unknown(tmp_path, kind, shape, beside, options):
    position = 0 if kind == "GATHER" else 1
    assert status(row(tmp_path, one_layer(kind, normal(*shape), beside, options, position))) == "unknown"


def test_options_of_another_layer_are_refused(tmp_path):
    (tmp_path / "a.tflite").write_bytes(one_layer("CONV_2D", normal(4, 3, 2, 3), (1, 9, 9, 3), ("GatherOptions", {})))
    refused(tmp_path / "a.tflite", "other options")


def test_a_dequantized_constant_is_used_as_what_it_stands_for(tmp_path):
    """Files of float16 have DEQUANTIZE between a kernel and its layer."""
    kernel = normal(4, 6).astype(np.float16)
    tensors = [Tensor("x"), Tensor("w", (4, 6), kernel), Tensor("d", (4, 6)), Tensor("y")]
    operators = [Operator("DEQUANTIZE", (1,), (2,)), Operator("FULLY_CONNECTED", (0, 2), (3,))]
    holds(row(tmp_path, tflite_model(tensors, operators)), kernel)


def test_numbers_behind_the_message_are_read(tmp_path):
    kernel = normal(4, 6)

    def model(place):
        tensors = [Tensor("x"), Tensor("w", (4, 6), kernel, outside=place), Tensor("y")]
        return tflite_model(tensors, [Operator("FULLY_CONNECTED", (0, 1), (2,))])

    data = model(len(model(99)))
    np.testing.assert_array_equal(row(tmp_path, data + kernel.tobytes()).read(), kernel)
    (tmp_path / "b.tflite").write_bytes(data + kernel.tobytes()[1:])
    refused(tmp_path / "b.tflite", "a buffer of it takes 96 bytes")


def sparse(dense, turned, block):
    """Return a sparse tensor of a matrix: for each of its first axis's places those of the second that are not zero.

    With a block (rows, columns) the places are blocks, whose numbers are all stored.
    """
    height, width = block
    grid = dense.reshape(dense.shape[0] // height, height, dense.shape[1] // width, width).transpose(0, 2, 1, 3)
    grid = grid.transpose(1, 0, 2, 3) if turned else grid
    segments, indices, values = [0], [], []
    for row in grid:
        for i, one in enumerate(row):
            if one.any():
                indices.append(i)
                values += list(one.ravel())
        segments.append(len(indices))
    order, levels = (1, 0) if turned else (0, 1), [len(grid), (segments, indices)]
    cut = block != (1, 1)
    form = ((*order, 2, 3), (0, 1), (*levels, height, width)) if cut else (order, (), levels)
    return Tensor("w", dense.shape, np.array(values, np.float32), sparse=form)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("block", [(1, 1), (2, 1), (2, 3)])
def test_sparse_tensors_are_filled_with_zeros(tmp_path, turned, block):
    kernel = normal(4, 6) * (RNG.random((4, 6)) < 0.3)
    tensors = [Tensor("x"), sparse(kernel, turned, block), Tensor("d", (4, 6)), Tensor("y")]
    operators = [Operator("DENSIFY", (1,), (2,)), Operator("FULLY_CONNECTED", (0, 2), (3,))]
    weight = row(tmp_path, tflite_model(tensors, operators))
    np.testing.assert_array_equal(weight.read(), kernel)
    holds(weight, kernel)


@pytest.mark.parametrize(
    "form",
    [
        ((0, 1), (), (4,)),
        ((0, 0), (), (4, 6)),
        ((0, 1), (), (2**30, 2**30)),
        ((0, 1), (), (-1, 6)),
        ((0, 1), (), (4, 5)),
        ((0, 1), (), (6, 4)),
        ((0, 1, 2), (7,), (4, 6, 1)),
        ((0, 1), (), (4, ((0, 1, 2, 3), [0] * 24))),
        ((0, 1), (), (4, ((0, 30, 2, 3, 24), [0] * 24))),
        ((0, 1), (), (4, ((0, 6, 12, 18, 23), [0] * 24))),
        ((0, 1), (), (4, ((0, 6, 12, 18, 24), [200] * 24))),
    ],
)
def test_sparse_tensors_that_do_not_fit_are_errors(tmp_path, form):
    kernel = Tensor("w", (4, 6), normal(24), sparse=form)
    (tmp_path / "a.tflite").write_bytes(tflite_model([kernel], []))
    refused(tmp_path / "a.tflite", "'w' ")


def test_a_few_values_that_stand_for_very_many_are_refused(tmp_path):
    kernel = Tensor("w", (2**14, 2**14), normal(1), sparse=((0, 1), (), (1, ((0, 1), [0]))))
    (tmp_path / "a.tflite").write_bytes(tflite_model([kernel], []))
    refused(tmp_path / "a.tflite", "says that it takes")


def test_an_operator_that_stands_before_the_one_it_reads_is_followed(tmp_path):
    tensors = [Tensor("x"), Tensor("w", (4, 6), normal(4, 6)), Tensor("d", (4, 6)), Tensor("e", (4, 6)), Tensor("y")]
    product = Operator("FULLY_CONNECTED", (0, 3), (4,))
    chain = [Operator("DEQUANTIZE", (2,), (3,)), Operator("DEQUANTIZE", (1,), (2,))]
    assert status(row(tmp_path, tflite_model(tensors, [product, *chain[::-1]]))) == "bounded"
    assert status(row(tmp_path, tflite_model(tensors, [product, *chain]))) == "unknown"


def test_an_operator_that_writes_into_a_stored_tensor_is_refused(tmp_path):
    tensors = [Tensor("x"), Tensor("w", (4, 6), normal(4, 6)), Tensor("y")]
    operators = [Operator("ABS", (0,), (1,)), Operator("FULLY_CONNECTED", (0, 1), (2,))]
    (tmp_path / "a.tflite").write_bytes(tflite_model(tensors, operators))
    refused(tmp_path / "a.tflite", "writes into the stored tensor 1")


def test_each_use_that_differs_has_its_row(tmp_path):
    kernel = normal(4, 4)
    tensors = [Tensor("x", (1, 4, 4)), Tensor("w", (4, 4), kernel), *(Tensor(f"y{i}", (1, 4, 4)) for i in range(4))]
    operators = [
        Operator("FULLY_CONNECTED", (0, 1), (2,)),
        Operator("FULLY_CONNECTED", (2, 1), (3,)),
        Operator("MUL", (3, 1), (4,)),
        Operator("ADD", (4, 1), (5,)),
    ]
    (tmp_path / "a.tflite").write_bytes(tflite_model(tensors, operators))
    found = weights(tmp_path / "a.tflite")
    assert list(found) == ["w", "w (in y2)"]
    holds(found["w"], kernel)
    holds(found["w (in y2)"], np.diag(kernel.ravel()))


def test_a_constant_in_a_weight_that_the_network_computes_is_unknown(tmp_path):
    tensors = [
        Tensor("x", (1, 4)),
        Tensor("g", (1,)),
        Tensor("w", (4, 4), normal(4, 4)),
        Tensor("p", (4, 4)),
        Tensor("y"),
    ]
    operators = [Operator("MUL", (2, 1), (3,)), Operator("FULLY_CONNECTED", (0, 3), (4,))]
    assert status(row(tmp_path, tflite_model(tensors, operators))) == "unknown"


def test_custom_operators_are_noted(tmp_path):
    (tmp_path / "a.tflite").write_bytes(one_layer("Mine", normal(4, 6), (1, 6)))
    assert open_checkpoint(tmp_path / "a.tflite").notes == ("custom operators are named, not run: 'Mine'",)


def test_tensors_of_every_subgraph_have_their_row(tmp_path):
    kernel = normal(4, 6)
    tensors, operators = (
        [Tensor("x"), Tensor("w", (4, 6), kernel), Tensor("y")],
        [Operator("FULLY_CONNECTED", (0, 1), (2,))],
    )
    (tmp_path / "a.tflite").write_bytes(tflite_model(tensors, operators, subgraphs=3))
    assert list(weights(tmp_path / "a.tflite")) == ["w", "w#1", "w#2"]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda: tflite_model([Tensor("x")] * 2000, [], subgraphs=2000), "more than 65536 tensors"),
        (lambda: tflite_model([], [Operator("ADD", (), ())] * 2000, subgraphs=2000), "more than 131072 operators"),
        (lambda: tflite_model([Tensor("x")], [Operator("ADD", (0,) * 10000, ())], subgraphs=1000), "entries"),
        (lambda: tflite_model([Tensor("x" * 2000)], []), "2000 bytes"),
        (lambda: tflite_model([Tensor("x")], [Operator("ADD", (1,), (0,))]), "not there"),
        (lambda: tflite_model([Tensor("x")], [Operator("ADD", (-2,), (0,))]), "not there"),
        (lambda: b"\x1c\0\0\0TFL3" + b"\xff" * 100, "damaged"),
    ],
)
def test_counts_and_places_that_are_too_large_are_refused(tmp_path, data, match):
    (tmp_path / "a.tflite").write_bytes(data())
    refused(tmp_path / "a.tflite", match)


def test_a_buffer_beyond_the_end_is_refused(tmp_path):
    data = bytearray(one_layer("FULLY_CONNECTED", np.full((4, 6), 7, np.float32), (1, 6)))
    at = data.index(np.full((4, 6), 7, np.float32).tobytes()) - 4
    data[at : at + 4] = (2**30).to_bytes(4, "little")
    (tmp_path / "a.tflite").write_bytes(data)
    refused(tmp_path / "a.tflite", "a buffer of it takes 1073741824 bytes")


@pytest.mark.parametrize("quantized", [False, True])
def test_what_tensorflow_converts_has_the_numbers_of_its_interpreter_and_the_norms_of_the_model(tmp_path, quantized):
    tf, keras = pytest.importorskip("tensorflow"), pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the converter takes models on TensorFlow")
    layers = [
        keras.layers.Input((12, 12, 2)),
        keras.layers.Conv2D(8, 3, strides=2, padding="same", kernel_initializer="random_normal"),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, padding="valid", depthwise_initializer="random_normal"),
        keras.layers.Conv2DTranspose(3, 2, strides=2, kernel_initializer="random_normal"),
        keras.layers.Flatten(),
        keras.layers.Dense(40),
    ]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers)
    model.save(tmp_path / "a.keras")
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantized else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "a.tflite").write_bytes(converter.convert())
        interpreter = tf.lite.Interpreter(str(tmp_path / "a.tflite"))
    stored = {one["name"]: one for one in interpreter.get_tensor_details()}
    rows = open_checkpoint(tmp_path / "a.tflite").weights
    for weight in rows:
        details = stored[weight.name]
        values, kept = interpreter.get_tensor(details["index"]).astype("f8"), details["quantization_parameters"]
        along = [-1 if i == kept["quantized_dimension"] else 1 for i in range(values.ndim)]
        if kept["scales"].size:
            values = (values - kept["zero_points"].reshape(along)) * kept["scales"].astype("f8").reshape(along)
        np.testing.assert_array_equal(weight.read(), values)
    kernels = {w.geometry.kind: brackets(w)[0] for w in rows if w.geometry.operator}
    own = [brackets(w)[0] for w in open_checkpoint(tmp_path / "a.keras").weights if w.geometry.operator]
    kinds = ["CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"]
    for kind, bounds in zip(kinds, own, strict=True):
        tolerance = 2e-2 if quantized else 1e-6
        assert kernels[kind].upper == pytest.approx(bounds.upper, rel=tolerance)
        assert kernels[kind].lower == pytest.approx(bounds.lower, rel=tolerance)


def test_operators_with_very_many_inputs_and_outputs_end_in_time(tmp_path):
    """Not all inputs once more for each use, or for each output that goes into a weight."""
    count = 4000
    tensors = [Tensor(f"c{i}", (1,), np.ones(1, np.float32)) for i in range(20)] + [Tensor("y")] * count
    inputs, outputs = tuple(range(20)) * (count // 20), tuple(range(20, 20 + count))
    wide = [Operator("CUSTOMS", inputs, outputs), *(Operator("MUL", inputs, outputs[:1]) for _ in range(20))]
    users = [Operator("FULLY_CONNECTED", (0, out), (20,)) for out in outputs]
    (tmp_path / "a.tflite").write_bytes(tflite_model(tensors, [*wide, *users]))
    assert {status(one) for one in weights(tmp_path / "a.tflite").values()} == {"unknown"}
