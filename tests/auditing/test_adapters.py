"""Adapters of every kind, multiplied out, against their definitions in NumPy and PyTorch's own convolutions."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from network_files import grid_norm, norm, write

from opnorm.auditing.differences import diff
from opnorm.auditing.lora import Product


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def wide(array):
    return np.asarray(array, dtype=np.float64)


def only_row(tmp_path, base, tuned, **options):
    found = diff(write(tmp_path / "b.safetensors", base), write(tmp_path / "t.safetensors", tuned), **options)
    assert len(found.rows) == 1, found.rows
    return found.rows[0], found


def assert_matrix(bracket, truth):
    lower, upper = bracket
    assert lower * (1 - 1e-12) <= truth <= upper * (1 + 1e-12)  # LAPACK's own rounding
    assert upper <= lower * (1 + 3e-6)


def assert_convolution(bracket, kernel):
    at_least = grid_norm(kernel)
    assert at_least <= bracket[1] * (1 + 1e-12)
    assert bracket[0] <= at_least * 1.02  # the grid misses the top by less
    assert bracket[1] <= bracket[0] * 1.03


def assert_row(row, kind, W, tuned, difference=None):
    difference = wide(tuned) - wide(W) if difference is None else difference
    assert (row.status, row.reason) == (kind, "")
    for bracket, truth in ((row.base, W), (row.tuned, tuned), (row.difference, difference)):
        if np.ndim(W) == 2:
            assert_matrix(bracket, norm(truth))
        else:
            assert_convolution(bracket, truth)


def alpha(value):
    return np.array(value, dtype=np.float32)


# ---- DoRA ----


@pytest.mark.parametrize(
    "name", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight", "lora_magnitude_vector.my-own.weight"]
)
def test_dora_scales_the_rows_of_the_sum(tmp_path, name):
    W, A, B, m = normal(0, 30, 20), normal(1, 4, 20), normal(2, 30, 4), np.abs(normal(3, 30)) + 1
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "use_dora": True}))
    row, _ = only_row(tmp_path, {"q.weight": W}, {"q.lora_A.weight": A, "q.lora_B.weight": B, f"q.{name}": m})
    total = wide(W) + 2.0 * (wide(B) @ wide(A))
    tuned = (wide(m) / np.linalg.norm(total, axis=1))[:, None] * total
    assert_row(row, "DoRA", W, tuned)


@pytest.mark.parametrize("by", ["outputs", "inputs"])
def test_dora_of_a_convolution_scales_whole_filters_or_inputs(tmp_path, by):
    W, A, B = normal(0, 6, 4, 3, 3), normal(1, 2, 4, 3, 3), normal(2, 6, 2, 1, 1)
    total = wide(W) + 0.5 * np.einsum("or,rihw->oihw", wide(B[:, :, 0, 0]), wide(A))
    axes, shape = ((1, 2, 3), (6, 1, 1, 1)) if by == "outputs" else ((0, 2, 3), (1, 4, 1, 1))
    m = np.abs(normal(3, *shape)) + 1
    tuned = wide(m) * total / np.sqrt((total**2).sum(axis=axes, keepdims=True))
    row, _ = only_row(
        tmp_path,
        {"c.weight": W},
        {"c.lora_down.weight": A, "c.lora_up.weight": B, "c.alpha": alpha(1.0), "c.dora_scale": m},
    )
    assert_row(row, "DoRA", W, tuned)


def test_dora_as_peft_stores_it_for_a_convolution(tmp_path):
    W, A, B, m = normal(0, 6, 4, 3, 3), normal(1, 2, 4, 3, 3), normal(2, 6, 2, 1, 1), np.abs(normal(3, 1, 6, 1, 1))
    total = wide(W) + np.einsum("or,rihw->oihw", wide(B[:, :, 0, 0]), wide(A))
    tuned = wide(m).reshape(6, 1, 1, 1) * total / np.sqrt((total**2).sum(axis=(1, 2, 3), keepdims=True))
    row, _ = only_row(
        tmp_path,
        {"c.weight": W},
        {"c.lora_A.weight": A, "c.lora_B.weight": B, "c.lora_magnitude_vector": m},
    )
    assert_row(row, "DoRA", W, tuned)


def test_dora_without_its_weight_is_a_row_with_the_reason(tmp_path):
    tuned = {
        "q.lora_A.weight": normal(1, 2, 5),
        "q.lora_B.weight": normal(2, 6, 2),
        "q.lora_magnitude_vector": normal(3, 6),
    }
    row, _ = only_row(tmp_path, {"p.weight": normal(0, 3, 3)}, tuned)
    assert (row.name, row.status) == ("q", "failed")
    assert "which it scales" in row.reason


# ---- LoCon, LoHa, LoKr ----


def test_locon_is_the_three_convolutions_one_after_another(tmp_path):
    W = normal(0, 6, 4, 3, 3)
    down, mid, up = normal(1, 2, 4, 1, 1), normal(2, 2, 2, 3, 3), normal(3, 6, 2, 1, 1)
    impulses = torch.zeros(4, 4, 5, 5, dtype=torch.float64)
    impulses[range(4), range(4), 2, 2] = 1
    found = impulses
    for kernel in (down, mid, up):
        pad = kernel.shape[-1] // 2
        found = torch.nn.functional.conv2d(found, torch.tensor(kernel, dtype=torch.float64), padding=pad)
    update = 0.5 * found.numpy()[:, :, 3:0:-1, 3:0:-1].transpose(1, 0, 2, 3)  # a response is the kernel turned round
    parts = {"c.lora_down.weight": down, "c.lora_mid.weight": mid, "c.lora_up.weight": up, "c.alpha": alpha(1.0)}
    row, _ = only_row(tmp_path, {"c.weight": W}, parts)
    assert_row(row, "LoCon", W, wide(W) + update, update)


@pytest.mark.parametrize("spatial", [(), (3, 3)])
def test_loha_is_the_product_entry_by_entry(tmp_path, spatial):
    W, taps = normal(0, 6, 4, *spatial), int(np.prod(spatial, dtype=int))
    a1, b1, a2, b2 = normal(1, 6, 2), normal(2, 2, 4 * taps), normal(3, 6, 2), normal(4, 2, 4 * taps)
    update = 2.0 * ((wide(a1) @ wide(b1)) * (wide(a2) @ wide(b2))).reshape(W.shape)
    parts = {"c.hada_w1_a": a1, "c.hada_w1_b": b1, "c.hada_w2_a": a2, "c.hada_w2_b": b2, "c.alpha": alpha(4.0)}
    row, _ = only_row(tmp_path, {"c.weight": W}, parts)
    assert_row(row, "LoHa", W, wide(W) + update, update)


def test_loha_with_cores(tmp_path):
    W = normal(0, 6, 4, 3, 3)
    t1, a1, b1 = normal(1, 2, 2, 3, 3), normal(2, 2, 6), normal(3, 2, 4)
    t2, a2, b2 = normal(4, 2, 2, 3, 3), normal(5, 2, 6), normal(6, 2, 4)
    first, second = (  # LyCORIS's own sum
        np.einsum("ijkl,jr,ip->prkl", wide(t), wide(b), wide(a)) for t, a, b in ((t1, a1, b1), (t2, a2, b2))
    )
    names = ("hada_t1", "hada_w1_a", "hada_w1_b", "hada_t2", "hada_w2_a", "hada_w2_b")
    parts = {f"c.{name}": part for name, part in zip(names, (t1, a1, b1, t2, a2, b2), strict=True)}
    row, _ = only_row(tmp_path, {"c.weight": W}, parts | {"c.alpha": alpha(2.0)})
    assert_row(row, "LoHa", W, wide(W) + first * second, first * second)


@pytest.mark.parametrize("first", ["whole", "factored"])
@pytest.mark.parametrize("second", ["whole", "factored"])
@pytest.mark.parametrize("spatial", [(), (3, 3)])
def test_lokr_is_kroneckers_product(tmp_path, first, second, spatial):
    taps = int(np.prod(spatial, dtype=int))
    parts = {}
    if first == "whole":
        w1 = parts["c.lokr_w1"] = normal(1, 2, 2)
    else:
        parts["c.lokr_w1_a"], parts["c.lokr_w1_b"] = normal(1, 2, 1), normal(2, 1, 2)
        w1 = wide(parts["c.lokr_w1_a"]) @ wide(parts["c.lokr_w1_b"])
    if second == "whole":
        w2 = parts["c.lokr_w2"] = normal(3, 3, 2, *spatial)
    else:
        parts["c.lokr_w2_a"], parts["c.lokr_w2_b"] = normal(3, 3, 2), normal(4, 2, 2 * taps)
        w2 = (wide(parts["c.lokr_w2_a"]) @ wide(parts["c.lokr_w2_b"])).reshape(3, 2, *spatial)
    rank = 1 if first == "factored" else 2
    scale = 1.0 if first == second == "whole" else 3.0 / rank  # of two whole factors alpha stands for nothing
    update = np.zeros((6, 4, *spatial))
    for i, j in np.ndindex(2, 2):
        update[3 * i : 3 * i + 3, 2 * j : 2 * j + 2] = scale * wide(w1)[i, j] * wide(w2)
    W = normal(0, 6, 4, *spatial)
    row, _ = only_row(tmp_path, {"c.weight": W}, parts | {"c.alpha": alpha(3.0)})
    assert_row(row, "LoKr", W, wide(W) + update, update)


def test_a_whole_difference_is_added(tmp_path):
    W, update = normal(0, 6, 4), normal(1, 6, 4)
    row, _ = only_row(tmp_path, {"c.weight": W}, {"c.diff": update})
    assert_row(row, "whole", W, wide(W) + update, update)


# ---- names, layouts, what has no answer ----


@pytest.mark.parametrize(
    ("base", "down", "up"),
    [
        ("q.weight", "q.lora.down.weight", "q.lora.up.weight"),
        ("mid.to_q.weight", "unet.mid.to_q.lora.down.weight", "unet.mid.to_q.lora.up.weight"),
        ("mid.to_q.weight", "mid.processor.to_q_lora.down.weight", "mid.processor.to_q_lora.up.weight"),
        ("mid.to_out.0.weight", "mid.processor.to_out_lora.down.weight", "mid.processor.to_out_lora.up.weight"),
        ("q.weight", "q.lora_linear_layer.down.weight", "q.lora_linear_layer.up.weight"),
        ("down.0.to_q.weight", "lora_unet_down_0_to_q.lora_down.weight", "lora_unet_down_0_to_q.lora_up.weight"),
        (
            "h.0.mlp.weight",
            "base_model.model.h.0.mlp.lora_A.default.weight",
            "base_model.model.h.0.mlp.lora_B.default.weight",
        ),
        (
            "transformer.h.weight",
            "base_model.model.transformer.h.lora_A.weight",
            "base_model.model.transformer.h.lora_B.weight",
        ),
    ],
)
def test_the_weight_is_found_by_every_way_to_name_it(tmp_path, base, down, up):
    W, A, B = normal(0, 6, 4), normal(1, 2, 4), normal(2, 6, 2)
    row, _ = only_row(tmp_path, {base: W}, {down: A, up: B})
    update = wide(B) @ wide(A)
    assert row.name == base
    assert_row(row, "LoRA", W, wide(W) + update, update)


def test_a_weight_stored_as_in_out_gets_its_update_turned(tmp_path):
    W, A, B = normal(0, 5, 5), normal(1, 2, 5), normal(2, 5, 2)  # square: the shape would not tell
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "fan_in_fan_out": True}))
    row, _ = only_row(tmp_path, {"c.weight": W}, {"c.lora_A.weight": A, "c.lora_B.weight": B})
    update = (wide(B) @ wide(A)).T
    assert_row(row, "LoRA", W, wide(W) + update, update)


def test_an_embedding_gets_its_update_turned(tmp_path):
    W, A, B = normal(0, 9, 4), normal(1, 2, 9), normal(2, 4, 2)
    row, _ = only_row(tmp_path, {"e.weight": W}, {"e.lora_embedding_A": A, "e.lora_embedding_B": B})
    update = (wide(B) @ wide(A)).T
    assert_row(row, "LoRA", W, wide(W) + update, update)


def test_a_convolutions_update_without_its_weight_is_an_operator_too(tmp_path):
    A, B = normal(1, 2, 4, 3, 3), normal(2, 6, 2, 1, 1)
    row, _ = only_row(tmp_path, {"p.weight": normal(0, 3, 3)}, {"c.lora_down.weight": A, "c.lora_up.weight": B})
    assert (row.status, row.base) == ("LoRA", None)
    assert_convolution(row.difference, np.einsum("or,rihw->oihw", wide(B[:, :, 0, 0]), wide(A)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("q.oft_r.weight", "not multiplied out"),
        ("q.vera_lambda_b", "not multiplied out"),
        ("q.ia3_l", "not multiplied out"),
        ("q.lora_A.weight", "parts are missing"),
        ("q.hada_w1_a", "parts are missing"),
        ("q.lokr_w1", "parts are missing"),
        ("q.lora_embedding_A", "not multiplied out"),
    ],
)
def test_what_cannot_be_multiplied_out_says_why(tmp_path, name, words):
    found = diff(
        write(tmp_path / "b.safetensors", {"q.weight": normal(0, 4, 4)}),
        write(tmp_path / "t.safetensors", {name: normal(1, 4, 4)}),
    )
    row = next(row for row in found.rows if row.name == name)
    assert row.status == "failed"
    assert words in row.reason


def test_a_weight_that_is_stored_in_integers_is_not_added_to(tmp_path):
    tuned = {"q.lora_A.weight": normal(1, 2, 4), "q.lora_B.weight": normal(2, 6, 2)}
    row, _ = only_row(tmp_path, {"q.weight": np.ones((6, 4), np.int8)}, tuned)
    assert row.status == "failed"
    assert "int8" in row.reason


def test_factors_of_a_few_bytes_do_not_take_all_memory(tmp_path):
    tuned = {"q.lokr_w1": normal(1, 300, 300), "q.lokr_w2": normal(2, 300, 300)}  # 60 GiB multiplied out
    row, _ = only_row(tmp_path, {"p.weight": normal(0, 3, 3)}, tuned, memory_limit=10**9)
    assert row.status == "failed"
    assert "memory" in row.reason or "limit" in row.reason


def test_what_an_adapter_leaves_as_it_is_is_one_line(tmp_path):
    base = {f"layer.{i}.weight": normal(i, 4, 4) for i in range(50)}
    tuned = {"layer.7.lora_A.weight": normal(1, 2, 4), "layer.7.lora_B.weight": normal(2, 4, 2)}
    row, found = only_row(tmp_path, base, tuned)
    assert row.name == "layer.7.weight"
    assert found.common == 1
    assert [note for note in found.notes if "49 other tensors of the base" in note]


@pytest.mark.parametrize(
    "parts",
    [
        {"q.alpha": alpha(np.nan)},
        {"q.alpha": np.array(1, dtype=np.int64)[None][:0]},
        {"q.lora_A.weight": np.zeros((0, 4), np.float32)},
        {"q.lora_A.weight": alpha(1)},
        {"q.lora_B.weight": np.full((4, 2), np.inf, np.float32)},
        {"q.diff": alpha(1)},
        {
            "q.hada_w1_a": alpha(1),
            "q.hada_w1_b": normal(0, 3),
            "q.hada_w2_a": normal(0, 3),
            "q.hada_w2_b": normal(0, 3),
        },
        {"q.lokr_w1": alpha(1), "q.lokr_w2": normal(0, 2)},
    ],
)
@pytest.mark.parametrize(
    "config", [{}, {"lora_alpha": 10**400}, {"alpha": 1, "r": "x", "alpha_pattern": {"q": 10**400}}]
)
def test_an_adapter_that_makes_no_sense_leaves_the_other_rows(tmp_path, parts, config):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    sound = {"q.lora_A.weight": normal(1, 2, 4), "q.lora_B.weight": normal(2, 4, 2)} if "q.alpha" in parts else {}
    if "q.lora_A.weight" in parts or "q.lora_B.weight" in parts:
        sound = {"q.lora_A.weight": normal(1, 2, 4), "q.lora_B.weight": normal(2, 4, 2)}
    found = diff(
        write(tmp_path / "b.safetensors", {"q.weight": normal(0, 4, 4), "p.weight": normal(0, 4, 4)}),
        write(tmp_path / "t.safetensors", sound | parts | {"p.weight": normal(1, 4, 4)}),
    )
    assert next(row for row in found.rows if row.name == "p.weight").status == "compared"
    assert all(row.reason for row in found.rows if row.name != "p.weight")


def test_two_adapters_in_one_file_are_two_updates(tmp_path):
    parts = {f"q.lora_{side}.{which}.weight": normal(i, 4, 4) for i, (side, which) in enumerate(PAIRS)}
    found = diff(
        write(tmp_path / "b.safetensors", {"q.weight": normal(9, 4, 4)}), write(tmp_path / "t.safetensors", parts)
    )
    assert [(row.name, row.status) for row in found.rows] == [("q.weight", "LoRA")] * 2
    for row in found.rows:
        B, A = (wide(parts[f"q.lora_{side}.{row.adapter}.weight"]) for side in "BA")
        assert_row(row, "LoRA", normal(9, 4, 4), wide(normal(9, 4, 4)) + B @ A, B @ A)
    assert {row.adapter for row in found.rows} == {"first", "second"}


PAIRS = [("A", "first"), ("B", "second"), ("A", "second"), ("B", "first")]


def test_a_product_says_how_far_it_may_be_from_the_exact_one():
    a, b = (np.random.default_rng(seed).standard_normal((8, 8)) for seed in (0, 1))
    found = (Product(a) @ Product(b)) * Product(a)
    A, B = (np.vectorize(Fraction, otypes=[object])(array) for array in (a, b))
    errors = (A.dot(B) * A - np.vectorize(Fraction, otypes=[object])(found.values)).astype(np.float64)
    assert 0 < np.linalg.norm(errors) <= found.error < 1e-12
