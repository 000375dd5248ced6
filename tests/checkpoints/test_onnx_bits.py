"""ONNX Runtime's MatMulNBits, multiplied out code by code, and QDQ of four bits."""

import numpy as np
import onnx
import pytest
from bracketed import brackets, status, weights
from explicit import norm
from onnx import TensorProto, helper
from samples import onnx_model

RNG = np.random.default_rng(0)
OUT, IN, SIZE = 12, 70, 32
BLOCKS = 3


def octets(codes, bits):
    """Return rows of codes as bytes, the first code in the lowest bits."""
    rows = [sum(int(code) << (bits * i) for i, code in enumerate(row)) for row in codes]
    count = -(-len(codes[0]) * bits // 8)
    return np.array([list(row.to_bytes(count, "little")) for row in rows], np.uint8)


def layer(bits=4, zeros=None, **options):
    """Return a model of one layer, and what it multiplies with."""
    codes, scales = RNG.integers(0, 2**bits, (OUT, BLOCKS * SIZE)), RNG.random((OUT, BLOCKS)).astype(np.float32)
    stored = octets(codes.reshape(-1, SIZE), bits).reshape(OUT, BLOCKS, -1)
    constants = {"w": stored, "s": scales.ravel()}
    zero = np.full((OUT, BLOCKS), 2.0 ** (bits - 1))
    if zeros == "codes":
        zero = RNG.integers(0, 2**bits, (OUT, BLOCKS))
        constants["z"] = octets(zero, bits).ravel()
    elif zeros == "numbers":
        constants["z"] = zero = RNG.random((OUT, BLOCKS)).astype(np.float32)
    attributes = {"N": OUT, "K": IN, "bits": bits, "block_size": SIZE, **options}
    inputs = ["x", "w", "s", *(["z"] if zeros else [])]
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **attributes)
    truth = np.zeros((OUT, IN))
    for i in range(OUT):
        for j in range(IN):
            truth[i, j] = float(scales[i, j // SIZE]) * (codes[i, j] - float(zero[i, j // SIZE]))
    return node, constants, truth


def rows(folder, node, constants, **settings):
    model = onnx_model([node], constants, **settings)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, folder / "a.onnx")
    return weights(folder / "a.onnx")


def holds(weight, truth):
    values = weight.geometry.operator(weight.read().astype(float)) @ np.eye(truth.shape[1])
    np.testing.assert_allclose(values, truth, rtol=1e-15)
    bounds = brackets(weight)[0]
    assert bounds.lower <= norm(truth) * (1 + 1e-12)
    assert norm(truth) <= bounds.upper * (1 + 1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [None, "codes", "numbers"])
def test_packed_codes_are_multiplied_out(tmp_path, bits, zeros):
    node, constants, truth = layer(bits, zeros)
    found = rows(tmp_path, node, constants)
    holds(found["w"], truth)
    assert {status(one) for name, one in found.items() if name != "w"} == {"skipped"}


@pytest.mark.parametrize(
    "changed",
    [
        {"N": 13},
        {"K": 200},
        {"bits": 3},
        {"bits": 9},
        {"bits": 0},
        {"block_size": 16},
        {"block_size": -32},
        {"N": 2**62},
    ],
)
def test_attributes_that_do_not_fit_leave_the_norm_unknown(tmp_path, changed):
    node, constants, _ = layer(**changed) if "bits" not in changed else layer()
    node = node if "bits" not in changed else helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", N=OUT, K=IN, block_size=SIZE, **changed
    )  # fmt: skip
    assert status(rows(tmp_path, node, constants)["w"]) == "unknown"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("s", np.ones(5, np.float32)),
        ("z", np.ones(5, np.uint8)),
        ("z", np.ones(36, np.int8)),
        ("w", np.ones((OUT, BLOCKS, 16), np.int8)),
    ],
)
def test_constants_that_do_not_fit_leave_the_norm_unknown(tmp_path, name, array):
    node, constants, _ = layer(zeros="codes")
    assert status(rows(tmp_path, node, {**constants, name: array})["w"]) == "unknown"


def test_computed_zero_points_and_an_order_of_inputs_leave_the_norm_unknown(tmp_path):
    node, constants, _ = layer(zeros="codes")
    del constants["z"]
    assert status(rows(tmp_path, node, constants, inputs=("x", "z"))["w"]) == "unknown"
    node, constants, _ = layer()
    node.input.extend(["", "order"])
    constants["order"] = np.zeros(IN, np.int32)
    assert status(rows(tmp_path, node, constants)["w"]) == "unknown"


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
@pytest.mark.parametrize("block", [0, 2])
def test_four_bits_of_qdq_with_zero_points(tmp_path, kind, block):
    low = -8 if kind == TensorProto.INT4 else 0
    codes = RNG.integers(low, low + 16, (6, 8))
    shape = (3, 8) if block else (8,)
    zeros, scale = RNG.integers(low, low + 16, shape), RNG.random(shape).astype(np.float32)
    options = {"axis": 0, "block_size": 2} if block else {"axis": 1}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], **options),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = onnx_model(nodes, {"s": scale})
    for name, values in (("w", codes), ("z", zeros)):
        model.graph.initializer.append(helper.make_tensor(name, kind, values.shape, values.ravel()))
    onnx.save(model, tmp_path / "a.onnx")
    truth = np.zeros((6, 8))
    for i in range(6):
        for j in range(8):
            at = (i // 2, j) if block else (j,)
            truth[i, j] = np.float32(float(scale[at]) * (codes[i, j] - zeros[at]))
    holds(weights(tmp_path / "a.onnx")["w"], truth.T)
