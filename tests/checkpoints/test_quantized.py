"""Kernels stored as codes: multiplied out where their scale stands beside them, else a row with the reason."""

import json

import numpy as np
import pytest
import torch
from bracketed import brackets, status, weights
from explicit import norm
from safetensors.torch import save_file

from opnorm.auditing.audits import audit

FLOAT8 = torch.float8_e4m3fn


def spread(scale, shape, block):
    """Return one factor for each code, by indexing: scale[i // block, j // block]."""
    rows, columns = (torch.arange(n) // b for n, b in zip(shape, block, strict=True))
    return scale[rows][:, columns]


SCALES = [
    ("weight_scale", (), None),
    ("weight_scale", (1,), None),
    ("weight_scale", (200, 1), (1, 300)),
    ("weight_scale", (200,), (1, 300)),
    ("scale_weight", (), None),
    ("scale_weight", (1,), None),
    ("scale", (), None),
    ("weight.scale", (2, 3), (128, 128)),
    ("weight_scale_inv", (2, 3), (128, 128)),
    ("weight_scale_inv", (4, 5), (64, 64)),
    ("weight_scale", (200, 10), (1, 32)),
]


@pytest.mark.parametrize(("name", "shape", "block"), SCALES)
@pytest.mark.parametrize("dtype", [FLOAT8, torch.float8_e5m2, torch.int8])
def test_codes_are_multiplied_by_the_scale_beside_them(tmp_path, name, shape, block, dtype):
    codes = (torch.randn(200, 300) * 30).to(dtype)
    scale = torch.rand(shape) + 0.1
    save_file({"l.weight": codes, f"l.{name}": scale}, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    grid = scale.reshape(200, 1) if block and len(shape) == 1 else scale
    factors = spread(grid, (200, 300), block) if block else scale.reshape(())
    truth = (codes.double() * factors.double()).numpy()
    np.testing.assert_array_equal(found["l.weight"].read(), truth)
    assert status(found["l.weight"]) == "bounded"
    assert status(found[f"l.{name}"]) == "skipped"


def test_a_scale_in_another_shard_is_found(tmp_path):
    codes, scale = (torch.eye(8) * 256).to(FLOAT8), torch.tensor(1 / 256)
    save_file({"l.weight": codes}, tmp_path / "1.safetensors")
    save_file({"l.weight_scale": scale}, tmp_path / "2.safetensors")
    index = {"weight_map": {"l.weight": "1.safetensors", "l.weight_scale": "2.safetensors"}}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    row = audit(tmp_path / "a.safetensors.index.json").rows[0]
    assert (row.lower, row.upper) == (pytest.approx(1, rel=1e-6), pytest.approx(1, rel=1e-6))


def test_the_size_of_blocks_is_that_of_the_config(tmp_path):
    """Blocks of 100 and of 128 both fit: (200, 300) in (2, 3)."""
    codes, scale = torch.randn(200, 300).to(FLOAT8), torch.rand(2, 3)
    save_file({"l.weight": codes, "l.weight_scale_inv": scale}, tmp_path / "a.safetensors")
    config = {"quantization_config": {"weight_block_size": [100, 100]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    truth = (codes.double() * spread(scale, (200, 300), (100, 100)).double()).numpy()
    weight = weights(tmp_path / "a.safetensors")["l.weight"]
    np.testing.assert_array_equal(weight.read(), truth)
    assert brackets(weight)[0].lower == pytest.approx(norm(truth), rel=2e-6)


@pytest.mark.parametrize(
    ("others", "dtype"),
    [
        ({}, FLOAT8),
        ({"l.weight_scale": torch.rand(8)}, FLOAT8),  # of rows, or of columns
        ({"l.weight_scale": torch.rand(3, 3)}, FLOAT8),  # no power of two
        ({"l.weight_scale": torch.rand(2, 2, 2)}, FLOAT8),
        ({"l.weight_scale": torch.tensor(1.0), "l.scale": torch.tensor(1.0)}, FLOAT8),
        ({"l.weight_scale": torch.tensor(1.0), "l.weight_zero_point": torch.tensor(1)}, torch.int8),
        ({"l.weight_scale": torch.ones(8, 1).to(FLOAT8), "l.weight_scale_2": torch.tensor(1.0)}, torch.uint8),
    ],
)
def test_codes_whose_scale_is_missing_or_not_clear_are_unknown(tmp_path, others, dtype):
    save_file({"l.weight": torch.ones(8, 8).to(dtype), **others}, tmp_path / "a.safetensors")
    report = audit(tmp_path / "a.safetensors")
    row = next(row for row in report.rows if row.name == "l.weight")
    assert (row.status, row.lower, bool(row.reason)) == ("failed", None, True)
    assert not [row for row in report.rows if row.status == "bounded"]


@pytest.mark.parametrize(
    ("codes", "scale", "other"),
    [
        ("l.weight", "l.weight_scale", "l.weight_offset"),
        ("l.weight", "l.weight_scale", "l.zero_point"),
        ("l.weight", "l.scale", "l.zeros"),
        ("l.weight", "l.weight.scale", "l.weight.shift"),
        ("l.weight", "l.weight_scale", "l.whatever"),
        ("l.weight", "l.weight_scale", "l.weight_bias"),
        ("weight", "weight_scale", "zp"),
        ("m.w", "m.w_scale", "m.w_min"),
        ("m.w", "m.w_scale", "m.zeros"),
    ],
)
@pytest.mark.parametrize("shape", [(), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.int8, FLOAT8])
def test_codes_beside_which_something_unknown_stands_are_unknown(tmp_path, codes, scale, other, shape, dtype):
    """It may be an offset: int8 codes of 10 less an offset of -5 are 15, whose norm is 60 and not 40."""
    tensors = {codes: torch.full((4, 4), 10.0).to(dtype), scale: torch.ones(4, 1), other: torch.full(shape, -5.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    assert (status(found[codes]), status(found[scale])) == ("unknown", "skipped")
    if other.startswith(codes):
        assert status(found[other]) == "skipped"


def test_what_is_known_to_be_harmless_may_stand_beside_codes(tmp_path):
    tensors = {"l.weight": torch.eye(4).to(torch.int8), "l.weight_scale": torch.ones(4, 1), "l.bias": torch.ones(4)}
    tensors |= {"l.input_scale": torch.tensor(1.0), "l.norm.weight": torch.ones(4)}
    tensors |= {f"e.{name}_proj": torch.eye(4).to(FLOAT8) for name in ("up", "down")}
    tensors |= {f"e.{name}_proj_scale": torch.ones(4, 1) for name in ("up", "down")}
    save_file(tensors, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    assert {status(found[name]) for name in ("l.weight", "e.up_proj", "e.down_proj")} == {"bounded"}


INT32, UINT8, HALF = torch.int32, torch.uint8, torch.float16
LIBRARIES = [
    (".qweight", (8, 64), INT32, {".qzeros": ((6, 8), INT32), ".scales": ((6, 64), HALF), ".g_idx": ((64,), INT32)}),
    (".qweight", (64, 8), INT32, {".qzeros": ((6, 8), INT32), ".scales": ((6, 64), HALF)}),
    (".weight", (32, 1), UINT8, {".weight.absmax": ((4, 4), torch.float32), ".weight.quant_map": ((16,), torch.float32),
                                 ".weight.quant_state.bitsandbytes__nf4": ((9,), UINT8)}),
    (".weight", (8, 8), torch.int8, {".SCB": ((8,), torch.float32), ".weight_format": ((), UINT8)}),
    (".weight_packed", (8, 1), INT32, {".weight_scale": ((8, 2), HALF), ".weight_shape": ((2,), torch.int64)}),
    (".weight", (8, 2), torch.uint32, {".scales": ((8, 2), HALF), ".biases": ((8, 2), HALF)}),
    ("_blocks", (8, 2, 16), UINT8, {"_scales": ((8, 3), UINT8)}),
    (".weight._data", (8, 8), torch.int8, {".weight._scale": ((8, 1), HALF), ".weight._shift": ((8, 1), HALF)}),
]  # fmt: skip


@pytest.mark.parametrize(("codes", "shape", "dtype", "parts"), LIBRARIES)
def test_a_layer_of_a_quantization_library_has_one_row_that_is_not_known(tmp_path, codes, shape, dtype, parts):
    tensors = {f"m.l{codes}": torch.ones(shape).to(dtype)}
    tensors |= {f"m.l{name}": torch.ones(size).to(kind) for name, (size, kind) in parts.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    assert {key: status(one) for key, one in found.items()} == {
        **dict.fromkeys(tensors, "skipped"),
        f"m.l{codes}": "unknown",
    }


@pytest.mark.parametrize("name", ["l.scales", "l.qzeros", "l.weight_scale_inv", "l.weight.absmax"])
def test_a_scale_whose_codes_are_elsewhere_is_no_kernel(tmp_path, name):
    save_file({name: torch.ones(6, 64)}, tmp_path / "a.safetensors")
    assert status(weights(tmp_path / "a.safetensors")[name]) == "unknown"


@pytest.mark.parametrize("name", ["l", "l.weight"])
def test_codes_called_qweight_are_scaled_by_the_rows_beside_them(tmp_path, name):
    codes, scale = torch.randint(-127, 128, (6, 4), dtype=torch.int8), torch.rand(6, 1) + 0.1
    save_file({f"{name}.qweight": codes, f"{name}.scale": scale}, tmp_path / "a.safetensors")
    rows = {row.name: row for row in audit(tmp_path / "a.safetensors").rows}
    truth = norm((codes.double() * scale.double()).numpy())
    assert rows["l.weight"].lower <= truth * (1 + 1e-9) <= rows["l.weight"].upper * (1 + 2e-9)
    assert rows[f"{name}.scale"].status == "skipped"


@pytest.mark.parametrize(
    ("codes", "scale"),
    [("l.q", "l.scales"), ("l.weight.q", "l.weight.scale"), ("l.weight_q4", "l.weight_zeros"), ("l.q", "l.q.scale")],
)
def test_the_scale_of_codes_that_are_not_understood_is_no_matrix(tmp_path, codes, scale):
    tensors = {codes: torch.ones(6, 4, dtype=torch.uint8), scale: torch.rand(6, 2), "m.scale": torch.eye(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    rows = {row.name: row.status for row in audit(tmp_path / "a.safetensors").rows}
    assert rows == {codes: "failed", scale: "failed", "m.scale": "bounded"}
