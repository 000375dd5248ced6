"""Kernels as quantization libraries store them: packed and multiplied out code by code, by each format's definition."""

import json

import numpy as np
import pytest
import torch
from bracketed import brackets, status, weights
from explicit import norm
from readers import fails
from safetensors.torch import save_file

from opnorm.auditing.audits import audit

RNG = np.random.default_rng(0)
OUT, IN = 64, 96
FLOAT4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def packed(rows, bits):
    """Return rows of codes as words of 32 bits: one long integer, the first code in its lowest bits."""
    whole = [sum(int(code) << (bits * i) for i, code in enumerate(row)) for row in rows]
    count = -(-len(rows[0]) * bits // 32)
    return np.array([[(row >> (32 * i)) & 0xFFFFFFFF for i in range(count)] for row in whole], np.uint32).view(np.int32)


def halves(shape):
    return (RNG.random(shape) + 0.5).astype(np.float16)


def saved(folder, tensors, settings=None, file="config.json", key="quantization_config"):
    """Return the weights of a file of tensors with settings beside it."""
    kept = {
        name: torch.from_numpy(np.array(v, order="C")) if isinstance(v, np.ndarray) else v
        for name, v in tensors.items()
    }
    save_file(kept, folder / "a.safetensors")
    if settings is not None:
        (folder / file).write_text(json.dumps({key: settings} if key else settings))
    return weights(folder / "a.safetensors")


def is_whole(found, truth, name="m.l.weight", exact=True):
    """Check that one row stands for the layer, with these numbers, and the rest for its parts."""
    weight = found[name]
    assert {key: status(one) for key, one in found.items()} == {**dict.fromkeys(found, "skipped"), name: "bounded"}
    assert weight.shape == truth.shape
    np.testing.assert_allclose(weight.read(), truth, rtol=0 if exact else 1e-15)
    bounds = brackets(weight)[0]
    assert bounds.lower <= norm(truth) * (1 + 1e-12)
    assert norm(truth) <= bounds.upper * (1 + 1e-12)


def is_unknown(found, name):
    assert {key: status(one) for key, one in found.items()} == {**dict.fromkeys(found, "skipped"), name: "unknown"}
    assert "quantized" in found[name].geometry.reason


class Gptq:
    """A layer of GPTQ: y = x @ (s (q - z - shift)) with a group for each input."""

    def __init__(self, bits, groups, order=False, shift=1):
        self.codes, self.zeros = RNG.integers(0, 2**bits, (IN, OUT)), RNG.integers(0, 2**bits - 1, (groups, OUT))
        self.scales = halves((groups, OUT))
        self.index = np.arange(IN) // (IN // groups)
        if order:
            RNG.shuffle(self.index)
        self.tensors = {
            "m.l.qweight": packed(self.codes.T, bits).T,
            "m.l.qzeros": packed(self.zeros, bits),
            "m.l.scales": self.scales,
            "m.l.g_idx": self.index.astype(np.int32),
            "m.l.bias": np.zeros(OUT, np.float32),
        }
        self.truth = np.zeros((OUT, IN))
        for i in range(IN):
            for j in range(OUT):
                k = self.index[i]
                self.truth[j, i] = float(self.scales[k, j]) * (self.codes[i, j] - self.zeros[k, j] - shift)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("groups", "order"), [(1, False), (3, False), (3, True)])
def test_gptq(tmp_path, bits, groups, order):
    layer = Gptq(bits, groups, order)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": IN // groups, "desc_act": order}
    is_whole(saved(tmp_path, layer.tensors, settings), layer.truth)


def test_gptq_without_an_index_and_with_a_last_group_that_is_smaller(tmp_path):
    layer = Gptq(4, 3)
    layer.index = np.arange(IN) // 40
    truth = layer.scales.astype(float)[layer.index] * (layer.codes - layer.zeros[layer.index] - 1)
    del layer.tensors["m.l.g_idx"]
    settings = {"bits": 4, "group_size": 40, "desc_act": False, "checkpoint_format": "gptq"}
    is_whole(saved(tmp_path, layer.tensors, settings, "quantize_config.json", None), truth.T)


def test_gptq_of_the_second_version_adds_nothing_to_zero_points(tmp_path):
    layer = Gptq(4, 3, shift=0)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    is_whole(saved(tmp_path, layer.tensors, settings), layer.truth)


@pytest.mark.parametrize("shift", [0, 1])
def test_gptq_of_an_unknown_version_is_read_as_both(tmp_path, shift):
    layer = Gptq(4, 3, order=True, shift=shift)
    weight = saved(tmp_path, layer.tensors)["m.l.weight"]
    assert weight.geometry.assumed
    found = brackets(weight)
    assert len(found) == 2
    assert found[1 - shift].lower <= norm(layer.truth) * (1 + 1e-12)
    assert norm(layer.truth) <= found[1 - shift].upper * (1 + 1e-12)


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({"m.l.qzeros": np.zeros((3, 7), np.int32)}, {}),
        ({"m.l.qzeros": np.zeros((2, 8), np.int32)}, {}),
        ({"m.l.scales": np.ones((5, OUT), np.float16), "m.l.qzeros": np.zeros((5, 8), np.int32)}, {}),
        ({"m.l.g_idx": np.zeros(IN - 1, np.int32)}, {}),
        ({"m.l.qweight": np.zeros((11, OUT), np.int32)}, {}),
        ({}, {"bits": 8}),
        ({}, {"bits": 4, "group_size": 64}),
        ({}, {"quant_method": "awq"}),
    ],
)
def test_gptq_that_does_not_fit_is_unknown(tmp_path, changed, settings):
    is_unknown(saved(tmp_path, {**Gptq(4, 3).tensors, **changed}, settings), "m.l.qweight")


@pytest.mark.parametrize(
    "changed", [{"m.l.g_idx": np.zeros(IN, np.int32)}, {"m.l.qzeros": np.full((3, 8), -1, np.int32)}]
)
def test_gptq_whose_numbers_contradict_it_has_a_row_with_the_reason(tmp_path, changed):
    saved(tmp_path, {**Gptq(4, 3).tensors, **changed}, {"quant_method": "gptq", "bits": 4})
    (row,) = [row for row in audit(tmp_path / "a.safetensors").rows if row.name == "m.l.weight"]
    assert (row.status, row.lower) == ("failed", None)
    assert row.reason


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight outputs stands in the first, second, ... four bits


def awq_packed(codes):
    return packed([[row[8 * (i // 8) + AWQ_ORDER[i % 8]] for i in range(len(row))] for row in codes], 4)


def awq(groups=3):
    codes, zeros = RNG.integers(0, 16, (IN, OUT)), RNG.integers(0, 16, (groups, OUT))
    scales = halves((groups, OUT))
    truth = np.zeros((OUT, IN))
    for i in range(IN):
        for j in range(OUT):
            k = i * groups // IN
            truth[j, i] = float(scales[k, j]) * (codes[i, j] - zeros[k, j])
    return {"m.l.qweight": awq_packed(codes), "m.l.qzeros": awq_packed(zeros), "m.l.scales": scales}, truth


@pytest.mark.parametrize("settings", [None, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}])
def test_awq(tmp_path, settings):
    tensors, truth = awq()
    is_whole(saved(tmp_path, tensors, settings), truth)


@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        ({}, {"version": "gemv"}),
        ({}, {"quant_method": "gptq"}),
        ({"m.l.g_idx": np.zeros(IN, np.int32)}, {}),
        ({"m.l.qzeros": np.zeros((3, 9), np.int32)}, {}),
        ({}, {"bits": 8}),
    ],
)
def test_awq_of_another_form_is_unknown(tmp_path, changed, settings):
    is_unknown(saved(tmp_path, {**awq()[0], **changed}, settings), "m.l.qweight")


def text(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def four_bits(nested=False, kind="nf4", shape=(40, 33)):
    """Return a layer of bitsandbytes and its numbers: codes in pairs, the first in a byte's upper half."""
    count = shape[0] * shape[1]
    codes, table = RNG.integers(0, 16, count), np.sort(RNG.standard_normal(16)).astype(np.float32)
    blocks = -(-count // 64)
    scales = (RNG.random(blocks) + 0.5).astype(np.float32)
    even = [*codes, 0] if count % 2 else list(codes)
    octets = np.array([16 * a + b for a, b in zip(even[::2], even[1::2], strict=True)], np.uint8).reshape(-1, 1)
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float16", "shape": list(shape)}
    tensors = {"m.l.weight": octets, "m.l.weight.absmax": scales, "m.l.weight.quant_map": table}
    truth = [float(table[c]) * float(scales[i // 64]) for i, c in enumerate(codes)]
    if nested:
        state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.25}
        outer, values = RNG.random(-(-blocks // 16)).astype(np.float32), np.linspace(0.5, 1, 256, dtype=np.float32)
        inner = RNG.integers(0, 256, blocks).astype(np.uint8)
        tensors |= {
            "m.l.weight.absmax": inner,
            "m.l.weight.nested_absmax": outer,
            "m.l.weight.nested_quant_map": values,
        }
        scale = [float(values[c]) * float(outer[i // 16]) + 0.25 for i, c in enumerate(inner)]
        truth = [float(table[c]) * scale[i // 64] for i, c in enumerate(codes)]
    tensors[f"m.l.weight.quant_state.bitsandbytes__{kind}"] = text(state)
    return tensors, np.array(truth).reshape(shape)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(40, 33), (5, 13)])
def test_bitsandbytes_of_four_bits(tmp_path, nested, kind, shape):
    tensors, truth = four_bits(nested, kind, shape)
    is_whole(saved(tmp_path, tensors), truth)


@pytest.mark.parametrize(
    "changed",
    [
        {"m.l.weight.quant_state.bitsandbytes__nf4": text({"shape": [40, 34], "blocksize": 64})},
        {"m.l.weight.quant_state.bitsandbytes__nf4": text({"shape": [40, 33], "blocksize": 0})},
        {"m.l.weight.quant_state.bitsandbytes__nf4": text({"blocksize": 64})},
        {"m.l.weight.quant_state.bitsandbytes__nf4": text([1])},
        {"m.l.weight.quant_state.bitsandbytes__nf4": text({"shape": "ab", "blocksize": 64})},
        {"m.l.weight.quant_state.bitsandbytes__nf4": text({"shape": [2**40, 2**40], "blocksize": 1})},
        {"m.l.weight.quant_state.bitsandbytes__nf4": np.zeros(70000, np.uint8)},
        {"m.l.weight.quant_map": np.zeros(15, np.float32)},
        {"m.l.weight.absmax": np.zeros(20, np.float32)},
        {"m.l.weight.absmax": np.zeros(21, np.uint8)},
        {"m.l.weight.nested_absmax": np.zeros(2, np.float32)},
    ],
)
def test_bitsandbytes_that_does_not_fit_is_unknown(tmp_path, changed):
    is_unknown(saved(tmp_path, {**four_bits()[0], **changed}), "m.l.weight")


@pytest.mark.parametrize("order", [None, np.zeros((), np.uint8)])
def test_bitsandbytes_of_eight_bits(tmp_path, order):
    codes, rows = RNG.integers(-127, 128, (OUT, IN)).astype(np.int8), RNG.random(OUT).astype(np.float32)
    tensors = {"m.l.weight": codes, "m.l.SCB": rows} | ({} if order is None else {"m.l.weight_format": order})
    truth = [[int(codes[i, j]) * float(rows[i]) / 127 for j in range(IN)] for i in range(OUT)]
    is_whole(saved(tmp_path, tensors), np.array(truth), exact=False)


def test_bitsandbytes_in_the_order_of_a_gpu_is_unknown(tmp_path):
    tensors = {"m.l.weight": np.ones((8, 8), np.int8), "m.l.SCB": np.ones(8, np.float32)}
    is_unknown(saved(tmp_path, {**tensors, "m.l.weight_format": np.ones((), np.uint8)}), "m.l.weight")


def compressed(bits=4, groups=3, zeros=None, order=False):
    """Return a layer of compressed-tensors: codes from -2^(b-1), packed from 0, and a group for each input."""
    half = 2 ** (bits - 1)
    codes, scales = RNG.integers(-half, half, (OUT, IN)), halves((OUT, groups))
    index = np.arange(IN) // (IN // groups)
    tensors = {
        "m.l.weight_packed": packed(codes + half, bits),
        "m.l.weight_scale": scales,
        "m.l.weight_shape": np.array([OUT, IN], np.int64),
    }
    zero = RNG.integers(-half, half, (OUT, groups)) if zeros else np.zeros((OUT, groups), int)
    if zeros:
        tensors["m.l.weight_zero_point"] = (
            packed((zero + half).T, bits).T if zeros == "packed" else zero.astype(np.int8)
        )
    if order:
        RNG.shuffle(index)
        tensors["m.l.weight_g_idx"] = index.astype(np.int32)
    truth = np.zeros((OUT, IN))
    for i in range(OUT):
        for j in range(IN):
            k = index[j]
            truth[i, j] = float(scales[i, k]) * (codes[i, j] - zero[i, k])
    return tensors, truth


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("groups", "zeros", "order"), [(1, None, 0), (3, None, 0), (3, "packed", 0), (3, "plain", 1)])
def test_packed_compressed_tensors(tmp_path, bits, groups, zeros, order):
    tensors, truth = compressed(bits, groups, zeros, bool(order))
    is_whole(saved(tmp_path, tensors), truth)


@pytest.mark.parametrize(
    "changed",
    [
        {"m.l.weight_shape": np.array([OUT, IN - 9], np.int64)},
        {"m.l.weight_shape": np.array([1, OUT, IN], np.int64)},
        {"m.l.weight_scale": np.ones((OUT, 5), np.float16)},
        {"m.l.weight_scale": np.ones((OUT + 1, 3), np.float16)},
        {"m.l.weight_zero_point": np.zeros((OUT, 2), np.int8)},
        {"m.l.weight_g_idx": np.zeros(IN + 1, np.int32)},
        {"m.l.weight_global_scale": np.ones(1, np.float32)},
    ],
)
def test_compressed_tensors_that_do_not_fit_are_unknown(tmp_path, changed):
    is_unknown(saved(tmp_path, {**compressed()[0], **changed}), "m.l.weight_packed")


def float4(shape):
    """Return codes of float4 in pairs, the first in a byte's lower half, and their numbers."""
    codes = RNG.integers(0, 16, shape)
    octets = (codes[..., ::2] + 16 * codes[..., 1::2]).astype(np.uint8)
    values = [(-1) ** (int(c) >> 3) * FLOAT4[int(c) & 7] for c in codes.ravel()]
    return octets, np.array(values).reshape(shape)


@pytest.mark.parametrize("library", ["compressed-tensors", "ModelOpt"])
def test_float4_with_scales_of_float8_and_one_for_all(tmp_path, library):
    octets, values = float4((OUT, IN))
    inner, outer = torch.rand(OUT, IN // 16).to(torch.float8_e4m3fn), np.array([3.5], np.float32)
    spread = np.array([[float(inner[i, j // 16]) for j in range(IN)] for i in range(OUT)])
    if library == "ModelOpt":
        tensors = {"m.l.weight": octets, "m.l.weight_scale": inner, "m.l.weight_scale_2": outer.reshape(())}
        settings = {"quant_algo": "NVFP4", "group_size": 16}
        found = saved(tmp_path, tensors, settings, "hf_quant_config.json", "quantization")
        is_whole(found, values * (spread * 3.5))
    else:
        tensors = {"m.l.weight_packed": octets, "m.l.weight_scale": inner, "m.l.weight_global_scale": outer}
        is_whole(saved(tmp_path, tensors), values * (spread / 3.5))


def test_float4_with_powers_of_two(tmp_path):
    octets, values = float4((OUT, IN))
    scales = RNG.integers(120, 130, (OUT, IN // 32)).astype(np.uint8)
    truth = [[values[i, j] * 2.0 ** (int(scales[i, j // 32]) - 127) for j in range(IN)] for i in range(OUT)]
    is_whole(saved(tmp_path, {"m.l.weight_packed": octets, "m.l.weight_scale": scales}), np.array(truth))


def test_the_experts_of_gpt_oss(tmp_path):
    """Blocks (experts, out, groups, 16) of 32 codes, each a matrix of its own."""
    octets, values = float4((3, OUT, IN))
    scales = RNG.integers(120, 130, (3, OUT, IN // 32)).astype(np.uint8)
    tensors = {"mlp.experts.up_proj_blocks": octets.reshape(3, OUT, IN // 32, 16), "mlp.experts.up_proj_scales": scales}
    truth = np.array(
        [
            [[values[e, i, j] * 2.0 ** (int(scales[e, i, j // 32]) - 127) for j in range(IN)] for i in range(OUT)]
            for e in range(3)
        ]
    )
    weight = saved(tmp_path, tensors)["mlp.experts.up_proj"]
    np.testing.assert_array_equal(weight.read(), truth)
    bounds, largest = brackets(weight)[0], max(norm(one) for one in truth)
    assert bounds.lower <= largest * (1 + 1e-12)
    assert largest <= bounds.upper * (1 + 1e-12)


def test_a_power_of_two_that_is_no_number_is_a_nan(tmp_path):
    tensors = {"e_blocks": np.ones((2, 1, 16), np.uint8), "e_scales": np.array([[127], [255]], np.uint8)}
    values = saved(tmp_path, tensors)["e"].read()
    assert np.isnan(values).any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("own", [False, True])
def test_mlx(tmp_path, bits, own):
    codes = RNG.integers(0, 2**bits, (OUT, IN))
    scales, biases = halves((OUT, 3)), halves((OUT, 3))
    tensors = {"m.l.weight": packed(codes, bits).view(np.uint32), "m.l.scales": scales, "m.l.biases": biases}
    right = {"group_size": 32, "bits": bits}
    settings = {"group_size": 64, "bits": 4, "m.l": right} if own else right
    truth = [
        [float(scales[i, j // 32]) * int(codes[i, j]) + float(biases[i, j // 32]) for j in range(IN)]
        for i in range(OUT)
    ]
    is_whole(saved(tmp_path, tensors, settings, key="quantization"), np.array(truth))


@pytest.mark.parametrize(
    "settings", [None, {"bits": 4}, {"bits": 4, "group_size": 64}, {"bits": 4, "group_size": 32, "mode": "?"}]
)
def test_mlx_without_settings_that_fit_is_unknown(tmp_path, settings):
    tensors = {
        "m.l.weight": np.ones((OUT, 12), np.uint32),
        "m.l.scales": halves((OUT, 3)),
        "m.l.biases": halves((OUT, 3)),
    }
    is_unknown(saved(tmp_path, tensors, settings, key="quantization"), "m.l.weight")


def test_the_experts_of_mlx_are_a_matrix_each(tmp_path):
    codes, scales, biases = RNG.integers(0, 16, (3, OUT, IN)), halves((3, OUT, 3)), halves((3, OUT, 3))
    stored = np.stack([packed(one, 4) for one in codes]).view(np.uint32)
    tensors = {"m.switch.weight": stored, "m.switch.scales": scales, "m.switch.biases": biases}
    weight = saved(tmp_path, tensors, {"group_size": 32, "bits": 4}, key="quantization")["m.switch.weight"]
    spread = [np.repeat(one.astype(float), 32, axis=2) for one in (scales, biases)]
    (bounds,), truth = brackets(weight), max(norm(one) for one in spread[0] * codes + spread[1])
    assert bounds.lower <= truth * (1 + 1e-12)
    assert truth <= bounds.upper * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (OUT, 1), (1, IN)])
def test_quanto(tmp_path, shape):
    codes, scale = RNG.integers(-127, 128, (OUT, IN)).astype(np.int8), RNG.random(shape).astype(np.float32)
    found = saved(tmp_path, {"m.l.weight._data": codes, "m.l.weight._scale": np.asarray(scale)})
    factors = np.broadcast_to(scale, (OUT, IN))
    is_whole(found, np.array([[int(codes[i, j]) * float(factors[i, j]) for j in range(IN)] for i in range(OUT)]))


def test_packed_codes_of_quanto_are_unknown(tmp_path):
    tensors = {"m.l.weight._data._data": np.ones((8, 8), np.uint8), "m.l.weight._scale": halves((8, 1))}
    is_unknown(saved(tmp_path, {**tensors, "m.l.weight._shift": halves((8, 1))}), "m.l.weight._data._data")


HQQ = {8: (1, "8bit_u8"), 4: (2, "4bit_u8"), 3: (10, "3bit_32"), 2: (4, "2bit_u8"), 1: (8, "1bit_u8")}


def hqq(bits=4, axis=1):
    """Return a layer of HQQ: groups of 32 in rows or columns of a grid, whose rows are cut into slices."""
    shape = (OUT * IN // 32, 32) if axis else (32, OUT * IN // 32)
    each, packing = HQQ[bits]
    codes = RNG.integers(0, 2**bits, shape)
    step = -(-shape[0] // each)
    stored = np.zeros((step, shape[1]), np.int64)
    for i in range(shape[0]):
        stored[i % step] |= codes[i] << (bits * (each - 1 - i // step))
    scales, zeros = (halves((shape[0], 1) if axis else (1, shape[1])) for _ in range(2))
    truth = np.zeros(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            at = (i, 0) if axis else (0, j)
            truth[i, j] = float(scales[at]) * (codes[i, j] - float(zeros[at]))
    tensors = {
        "m.l.W_q": stored.astype(np.int32 if bits == 3 else np.uint8),
        "m.l.scale": scales,
        "m.l.zero": zeros,
        "m.l.shape": np.array([OUT, IN]),
        "m.l.axis": np.array(axis, np.int32),
        "m.l.nbits": np.array(bits, np.int32),
        "m.l.packing": np.frombuffer(packing.encode(), np.uint8),
        "m.l.view_as_float": np.array(0, np.uint8),
    }
    return tensors, truth.reshape(OUT, IN)


@pytest.mark.parametrize("bits", HQQ)
@pytest.mark.parametrize("axis", [0, 1])
def test_hqq(tmp_path, bits, axis):
    tensors, truth = hqq(bits, axis)
    is_whole(saved(tmp_path, tensors), truth)


@pytest.mark.parametrize(
    "changed",
    [
        {"m.l.view_as_float": np.array(1, np.uint8)},
        {"m.l.W_q": np.ones((96, 16), np.float16)},
        {"m.l.quant_scale": np.array(1, np.uint8)},
        {"m.l.axis": np.array(0, np.int32)},
        {"m.l.shape": np.array([OUT, IN + 1])},
        {"m.l.shape": np.zeros(1000)},
        {"m.l.packing": np.frombuffer(b"5bit_u8", np.uint8)},
        {"m.l.packing": np.ones(2000, np.uint8)},
        {"m.l.zero": np.ones((5, 1), np.float16)},
    ],
)
def test_hqq_that_does_not_fit_is_unknown(tmp_path, changed):
    is_unknown(saved(tmp_path, {**hqq()[0], **changed}), "m.l.W_q")


def test_a_name_that_is_taken_makes_no_second_row_of_that_name(tmp_path):
    tensors = {**awq()[0], "m.l.weight": np.eye(4, dtype=np.float32)}
    found = saved(tmp_path, tensors)
    assert set(found) == set(tensors)
    assert status(found["m.l.qweight"]) == "unknown"


def test_two_layers_that_make_one_name_have_a_row_each(tmp_path):
    found = saved(tmp_path, {**awq()[0], **compressed()[0]})
    assert [name for name, one in found.items() if status(one) == "bounded"] == ["m.l.weight", "m.l.weight#1"]


def test_blocks_that_do_not_divide_the_shape(tmp_path):
    """DeepSeek's: scale_inv (ceil(out / 128), ceil(in / 128)) of a kernel (576, 200), as multiplied by its kernels."""
    codes, scale = torch.randn(576, 200).to(torch.float8_e4m3fn), torch.rand(5, 2) + 0.1
    found = saved(
        tmp_path,
        {"m.l.weight": codes, "m.l.weight_scale_inv": scale},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    )
    truth = [[float(codes[i, j]) * float(scale[i // 128, j // 128]) for j in range(200)] for i in range(576)]
    is_whole(found, np.array(truth))


def mlx():
    tensors = {"m.l.weight": packed(RNG.integers(0, 16, (OUT, IN)), 4).view(np.uint32)}
    return {**tensors, "m.l.scales": halves((OUT, 3)), "m.l.biases": halves((OUT, 3))}


def damaged(tensors, chance):
    """Return tensors one of which is cut, turned, of another type, of random bytes, or not there."""
    name = str(chance.choice(list(tensors)))
    array = np.array(tensors[name])
    others = [
        array[: len(array) // 2] if array.ndim else array,
        array.T,
        array.reshape(-1),
        array.astype(chance.choice(["int8", "uint8", "int32", "int64", "float32", "float16"])),
        np.frombuffer(chance.bytes(array.nbytes), np.uint8).copy().view(array.dtype).reshape(array.shape),
        None,
    ]
    found = {**tensors, name: others[chance.integers(len(others))]}
    return {key: one for key, one in found.items() if one is not None}


SETTINGS = [
    {},
    {"bits": 4, "group_size": 32},
    {"bits": -1, "group_size": "x"},
    {"quant_method": 3, "checkpoint_format": []},
]


@pytest.mark.parametrize("library", ["gptq", "awq", "four", "nested", "compressed", "mlx", "hqq"])
def test_nothing_but_its_own_error_escapes_from_damaged_layers(tmp_path, library):
    makers = {"gptq": lambda: Gptq(4, 3).tensors, "awq": lambda: awq()[0], "mlx": mlx, "hqq": lambda: hqq()[0]}
    makers |= {
        "four": lambda: four_bits()[0],
        "nested": lambda: four_bits(nested=True)[0],
        "compressed": lambda: compressed(4, 3, "packed", True)[0],
    }
    whole = makers[library]()
    for seed in range(40):
        chance = np.random.default_rng(seed)
        key = "quantization" if library == "mlx" else "quantization_config"
        with np.errstate(all="ignore"):  # a scale of random bits is infinite
            tensors = damaged(damaged(whole, chance) if seed % 2 else whole, chance)
            saved(tmp_path, tensors, SETTINGS[seed % len(SETTINGS)], key=key)
            fails(tmp_path / "a.safetensors")
