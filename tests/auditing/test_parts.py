"""Experts and fused projections: each part's bracket against the SVD of its own rows, beside that of the whole."""

import csv
import io
import json
from statistics import median

import numpy as np
import pytest
from network_files import norm, write

from opnorm.auditing.audits import audit
from opnorm.auditing.measure import measure
from opnorm.auditing.report import Report
from opnorm.auditing.settings import Settings
from opnorm.checkpoints import geometry
from opnorm.checkpoints.fused import divided
from opnorm.checkpoints.records import Weight


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def only_row(tmp_path, name, tensor, **others):
    found = audit(write(tmp_path / "m.safetensors", {name: tensor, **others}))
    return next(row for row in found.rows if row.name == name), found


def assert_parts(row, truth):
    assert [part["name"] for part in row.parts] == list(truth)
    for part, matrix in zip(row.parts, truth.values(), strict=True):
        assert part["lower"] * (1 - 1e-12) <= norm(matrix) <= part["upper"] * (1 + 1e-12)
        assert part["upper"] <= part["lower"] * (1 + 2e-6)


def test_each_expert_of_a_stack_is_a_part(tmp_path):
    stack = normal(0, 9, 12, 7) * np.arange(1, 10)[:, None, None].astype(np.float32)
    row, found = only_row(tmp_path, "mlp.experts.gate_up_proj", stack)
    assert_parts(row, {f"expert {i}": expert for i, expert in enumerate(stack)})
    norms = [norm(expert) for expert in stack]
    assert row.lower <= max(norms) * (1 + 1e-12)
    assert row.upper == max(part["upper"] for part in row.parts)
    line = next(line for line in found.to_text().splitlines() if line.startswith(row.name))
    largest = int(np.argmax(norms))
    middle = f"{median(part['upper'] for part in row.parts):.6g}"
    assert f"9 parts, the largest expert {largest} {row.upper:.6g}, median {middle}" in line


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("attn.in_proj_weight", ("query", "key", "value")),
        ("layers.0.self_attn.qkv_proj.weight", ("query", "key", "value")),
        ("blocks.0.attn.qkv.weight", ("query", "key", "value")),
        ("layers.0.attn.Wqkv.weight", ("query", "key", "value")),
        ("block.1.attn.kv.weight", ("key", "value")),
    ],
)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_equal_runs_of_a_fused_projection_are_parts(tmp_path, name, parts, layout):
    blocks = [normal(i, 8, 8) * (i + 1) for i in range(len(parts))]
    tensor = np.concatenate(blocks, axis=0 if layout == "rows" else 1)
    row, _ = only_row(tmp_path, name, tensor)
    assert_parts(row, dict(zip(parts, blocks, strict=True)))
    assert row.lower <= norm(tensor) * (1 + 1e-12) <= row.upper * (1 + 2e-12)
    assert row.assumed


def test_gpt2s_attention_is_stored_in_columns(tmp_path):
    tensor = normal(0, 6, 18)
    row, found = only_row(tmp_path, "h.0.attn.c_attn.weight", tensor)
    parts = {name: tensor[:, 6 * i : 6 * i + 6] for i, name in enumerate(("query", "key", "value"))}
    assert_parts(row, parts)
    assert f"query {row.parts[0]['upper']:.6g}, key" in found.to_text()


def test_gates_are_halves_whatever_the_inputs(tmp_path):
    tensor = normal(0, 20, 7)
    row, _ = only_row(tmp_path, "layers.0.mlp.gate_up_proj.weight", tensor)
    assert_parts(row, {"gate": tensor[:10], "up": tensor[10:]})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.self_attn.qkv_proj.weight", (16, 8)),  # fewer heads of keys: nothing tells whose rows
        ("h.0.attn.qkv_proj.weight", (24, 8)),  # CodeGen's alternates
        ("h.0.attn.query_key_value.weight", (24, 8)),  # GPT-NeoX's and BLOOM's too
        ("in_proj.weight", (24, 8)),  # DeBERTa's, Mamba's
        ("layers.0.linear.weight", (24, 8)),
    ],
)
def test_what_names_do_not_tell_is_left_whole(tmp_path, name, shape):
    row, _ = only_row(tmp_path, name, normal(0, *shape))
    assert row.status == "bounded"
    assert row.parts == ()


def test_places_that_alternate_from_head_to_head_are_parts_too():
    matrix = normal(0, 12, 5).astype(np.float64)  # 2 heads of q, k, v with 2 rows each
    places = {f"{which} {head}": [6 * head + 2 * i, 6 * head + 2 * i + 1] for head in (0, 1) for i, which in ORDER}
    places["query"] = [0, 1, 6, 7]
    weight = Weight("w", (12, 5), "float64", lambda: matrix, divided(geometry.rows("Linear"), lambda: places))
    row, _ = measure(weight, Settings())
    assert_parts(row, {name: matrix[rows] for name, rows in places.items()})


ORDER = list(enumerate(("query", "key", "value")))


def test_parts_of_scaled_values_are_scaled():
    matrix = normal(0, 6, 6).astype(np.float64)
    halves = divided(geometry.rows("Linear"), lambda: {"a": slice(0, 3), "b": slice(3, 6)})
    tripled = geometry.scaled(halves, lambda values: 3 * values, "three times")
    row, _ = measure(Weight("w", (6, 6), "float64", lambda: matrix, tripled), Settings())
    assert_parts(row, {"a": 3 * matrix[:3], "b": 3 * matrix[3:]})


def test_without_time_parts_are_wider_and_as_true(tmp_path):
    stack = normal(0, 40, 64, 64)
    path = write(tmp_path / "m.safetensors", {"experts.up": stack, "self_attn.qkv_proj.weight": normal(1, 96, 32)})
    for row in audit(path, time_limit=0).rows:
        assert len(row.parts) in (3, 40)
        blocks = stack if len(row.parts) == 40 else normal(1, 96, 32).reshape(3, 32, 32)
        for part, block in zip(row.parts, blocks, strict=True):
            assert part["lower"] <= norm(block) * (1 + 1e-12) <= part["upper"] * (1 + 2e-12)


def test_places_that_do_not_fit_leave_the_whole_as_it_is():
    wrong = divided(geometry.rows("Linear"), lambda: {"a": [99]})
    row, _ = measure(Weight("w", (3, 3), "float64", lambda: np.eye(3), wrong), Settings())
    assert (row.status, row.parts) == ("bounded", ())


@pytest.mark.parametrize("name", ["blocks.0.ffn.experts.mlp.w1", "mlp.experts.weight1"])
def test_experts_joined_in_one_matrix_are_a_reason(tmp_path, name):
    row, _ = only_row(tmp_path, name, normal(0, 12, 4))
    assert (row.status, row.upper) == ("failed", None)
    assert "how many there are is not known" in row.reason


def test_a_bias_of_experts_is_a_bias(tmp_path):
    row, _ = only_row(tmp_path, "experts.up_bias", normal(0, 4, 6), **{"experts.up": normal(1, 4, 5, 6)})
    assert (row.status, row.reason) == ("skipped", geometry.BIAS)
    alone, _ = only_row(tmp_path, "experts.up_bias", normal(0, 4, 6))
    assert alone.status == "bounded"


def test_parts_are_in_every_form_of_the_report(tmp_path):
    _, found = only_row(tmp_path, "mlp.experts.up", normal(0, 5, 6, 6))
    document = json.loads(found.to_json())
    assert document["rows"][0]["parts"][4] == dict(found.rows[0].parts[4])
    assert Report.from_dict(document, {}) == found
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert row["parts"].startswith("5 parts, the largest expert")


def test_a_terminal_of_80_columns_tells_how_many_parts_there_are_and_their_median(tmp_path):
    from rich.console import Console

    name = "model.layers.0.mlp.experts.gate_up_proj"
    row, found = only_row(tmp_path, name, normal(0, 16, 8, 6))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(found)
    middle = f"{median(part['upper'] for part in row.parts):.4g}"
    line = next(line for line in console.export_text().splitlines() if line.startswith(name))
    assert f"16, {middle}" in line


def configured(tmp_path, config, name, tensor):
    (tmp_path / "config.json").write_text(json.dumps(config))
    row, _ = only_row(tmp_path, name, tensor)
    assert not row.assumed
    return row


def test_a_configuration_tells_the_heads_of_gpt2(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 50, "n_inner": None}
    tensor = normal(0, 8, 24)
    row = configured(tmp_path, config, "h.0.attn.c_attn.weight", tensor)
    thirds = dict(zip(("query", "key", "value"), np.split(tensor, 3, axis=1), strict=True))
    heads = {f"{which} head {i}": third[:, 4 * i : 4 * i + 4] for which, third in thirds.items() for i in (0, 1)}
    assert_parts(row, thirds | heads)


def test_a_configuration_tells_heads_that_share_their_rows_in_turn(tmp_path):
    config = {"model_type": "bloom", "hidden_size": 8, "n_head": 2, "vocab_size": 30}
    tensor = normal(0, 24, 8)
    row = configured(tmp_path, config, "h.0.self_attention.query_key_value.weight", tensor)
    cut = tensor.reshape(2, 3, 4, 8)  # heads, which, rows of a head
    thirds = {which: cut[:, i].reshape(8, 8) for i, which in ORDER}
    assert_parts(row, thirds | {f"{which} head {head}": cut[head, i] for i, which in ORDER for head in (0, 1)})


def test_with_fewer_heads_of_keys_each_part_has_its_own_size(tmp_path):
    config = {
        "model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 20, "vocab_size": 30,
    }  # fmt: skip
    tensor = normal(0, 16, 8)
    row = configured(tmp_path, config, "model.layers.0.self_attn.qkv_proj.weight", tensor)
    assert len(row.parts) == 3 + 8
    assert_parts(row._replace(parts=row.parts[:3]), {"query": tensor[:8], "key": tensor[8:12], "value": tensor[12:]})


def test_a_configuration_leaves_the_halves_of_a_gate(tmp_path):
    config = {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 20}
    tensor = normal(0, 40, 8)
    row = configured(tmp_path, config, "model.layers.0.mlp.gate_up_proj.weight", tensor)
    assert_parts(row, {"gate": tensor[:20], "up": tensor[20:]})


def test_experts_of_a_known_family_stay_parts(tmp_path):
    config = {
        "model_type": "gpt_oss", "hidden_size": 6, "intermediate_size": 10, "num_local_experts": 4,
        "num_attention_heads": 2,
    }  # fmt: skip
    stack = normal(0, 4, 6, 20)
    row = configured(tmp_path, config, "model.layers.0.mlp.experts.gate_up_proj", stack)
    assert_parts(row, {f"expert {i}": expert for i, expert in enumerate(stack)})


def test_more_heads_than_any_model_has_are_left_whole(tmp_path):
    config = {"model_type": "gpt2", "n_embd": 2048, "n_head": 2048}
    row = configured(tmp_path, config, "h.0.attn.c_attn.weight", normal(0, 2048, 6144))
    assert [part["name"] for part in row.parts] == ["query", "key", "value"]
