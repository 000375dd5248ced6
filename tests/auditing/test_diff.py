import json

import numpy as np
import pytest
from network_files import norm, write

from opnorm.auditing.differences import compare as compare_opened
from opnorm.auditing.differences import diff
from opnorm.auditing.lora import bracket_product
from opnorm.auditing.settings import Options
from opnorm.checkpoints import geometry
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Weight


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compare(tmp_path, base, tuned, **options):
    found = diff(write(tmp_path / "b.safetensors", base), write(tmp_path / "t.safetensors", tuned), **options)
    return {row.name: row for row in found.rows}, found


def assert_brackets(bracket, truth):
    lower, upper = bracket
    assert lower * (1 - 1e-12) <= truth <= upper * (1 + 1e-12)  # LAPACK's own rounding
    assert upper <= lower * (1 + 2e-6)


def test_both_norms_and_that_of_the_difference_are_bracketed(tmp_path):
    a, b = normal(0, 30, 20), normal(1, 30, 20)
    rows, _ = compare(tmp_path, {"w.weight": a}, {"w.weight": b})
    row = rows["w.weight"]
    assert row.status == "compared"
    assert_brackets(row.base, norm(a))
    assert_brackets(row.tuned, norm(b))
    truth = norm(b.astype(np.float64) - a)
    assert_brackets(row.difference, truth)
    assert row.relative == pytest.approx(truth / norm(a), rel=1e-5)


def test_a_file_differs_from_itself_by_zero(tmp_path):
    rows, _ = compare(tmp_path, {"w.weight": normal(0, 4, 3)}, {"w.weight": normal(0, 4, 3)})
    assert rows["w.weight"].difference == (0, 0)


def test_a_tiny_change_of_half_precision_is_seen(tmp_path):
    a = np.ones((2, 2), dtype=np.float16)
    b = a.copy()
    b[0, 0] = np.nextafter(np.float16(1), np.float16(2))
    rows, _ = compare(tmp_path, {"w.weight": a}, {"w.weight": b})
    assert_brackets(rows["w.weight"].difference, 2.0**-10)


def test_tensors_of_one_file_only_have_rows(tmp_path):
    rows, _ = compare(tmp_path, {"a.weight": normal(0, 3, 3)}, {"b.weight": normal(1, 3, 3)})
    assert rows["a.weight"].status == "only in base"
    assert_brackets(rows["a.weight"].base, norm(normal(0, 3, 3)))
    assert rows["b.weight"].status == "only in tuned"
    assert rows["b.weight"].base is None
    assert_brackets(rows["b.weight"].tuned, norm(normal(1, 3, 3)))


def test_tensors_of_different_shapes_are_named(tmp_path):
    rows, _ = compare(tmp_path, {"a.weight": normal(0, 3, 3)}, {"a.weight": normal(1, 3, 4)})
    assert (rows["a.weight"].status, rows["a.weight"].reason) == ("shapes differ", "[3, 3] in base, [3, 4] in tuned")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_and_the_other_norm_given(tmp_path, bad):
    rows, _ = compare(tmp_path, {"a.weight": normal(0, 2, 2)}, {"a.weight": np.full((2, 2), bad, dtype=np.float32)})
    row = rows["a.weight"]
    assert (row.status, row.tuned, row.difference) == ("failed", None, None)
    assert "4 of 4 entries" in row.reason
    assert_brackets(row.base, norm(normal(0, 2, 2)))


@pytest.mark.parametrize(
    ("first", "second", "prefix"),
    [("lora_A", "lora_B", "base_model.model."), ("lora_A", "lora_B", ""), ("lora_down", "lora_up", "")],
)
def test_a_lora_pair_is_the_difference_of_its_weight(tmp_path, first, second, prefix):
    W, A, B = normal(0, 30, 20), normal(1, 4, 20), normal(2, 30, 4)
    rows, found = compare(tmp_path, {"q.weight": W}, {f"{prefix}q.{first}.weight": A, f"{prefix}q.{second}.weight": B})
    assert list(rows) == ["q.weight"]
    assert rows["q.weight"].status == "LoRA"
    update = B.astype(np.float64) @ A
    assert_brackets(rows["q.weight"].difference, norm(update))
    assert_brackets(rows["q.weight"].tuned, norm(W + update))
    assert "the scale is taken as 1" in found.notes[-1]


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 8}, 2),
        ({"lora_alpha": 8, "use_rslora": True}, 4),
        ({"lora_alpha": 8, "alpha_pattern": {"q": 2}}, 0.5),
    ],
)
def test_the_scale_is_that_of_the_adapters_configuration(tmp_path, config, scale):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    A, B = normal(1, 4, 20), normal(2, 30, 4)
    rows, found = compare(tmp_path, {"q.weight": normal(0, 30, 20)}, {"q.lora_A.weight": A, "q.lora_B.weight": B})
    assert_brackets(rows["q.weight"].difference, scale * norm(B.astype(np.float64) @ A))
    assert not any("scale" in note for note in found.notes)


def test_the_scale_is_that_of_an_alpha_tensor(tmp_path):
    A, B = normal(1, 4, 20), normal(2, 30, 4)
    tuned = {"q.lora_down.weight": A, "q.lora_up.weight": B, "q.alpha": np.array(2.0, dtype=np.float32)}
    rows, _ = compare(tmp_path, {"q.weight": normal(0, 30, 20)}, tuned)
    assert list(rows) == ["q.weight"]
    assert_brackets(rows["q.weight"].difference, 0.5 * norm(B.astype(np.float64) @ A))


def test_an_adapters_configuration_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        compare(tmp_path, {"q.weight": normal(0, 3, 3)}, {"q.lora_A.weight": normal(1, 1, 3)})


def test_a_pair_without_its_weight_has_a_row(tmp_path):
    A, B = normal(1, 2, 20), normal(2, 30, 2)
    rows, _ = compare(tmp_path, {"other.weight": normal(0, 3, 3)}, {"q.lora_A.weight": A, "q.lora_B.weight": B})
    assert rows["q"].status == "LoRA"
    assert rows["q"].base is None
    assert_brackets(rows["q"].difference, norm(B.astype(np.float64) @ A))


def test_a_pair_of_convolutions_is_multiplied_out(tmp_path):
    W, A, B = normal(0, 6, 4, 3, 3), normal(1, 2, 4, 3, 3), normal(2, 6, 2, 1, 1)
    rows, _ = compare(tmp_path, {"c.weight": W}, {"c.lora_down.weight": A, "c.lora_up.weight": B})
    lower, upper = rows["c.weight"].difference
    update = np.einsum("or,rihw->oihw", B[:, :, 0, 0].astype(np.float64), A)
    symbols = np.fft.fft2(update, (64, 64)).transpose(2, 3, 0, 1)
    at_least = float(np.linalg.svd(symbols, compute_uv=False).max())
    assert at_least <= upper
    assert lower <= at_least * 1.02  # the grid misses the top by less


def test_a_pair_whose_shapes_do_not_fit_is_a_row_with_its_reason(tmp_path):
    rows, _ = compare(
        tmp_path,
        {"a.weight": normal(0, 3, 3)},
        {"q.lora_A.weight": normal(1, 2, 5), "q.lora_B.weight": normal(2, 4, 3)},
    )
    assert rows["q"].status == "failed"
    assert "no low-rank pair" in rows["q"].reason


@pytest.mark.parametrize(("outputs", "rank", "inputs"), [(50, 3, 40), (5, 8, 6), (40, 1, 1), (3, 3, 3)])
def test_the_norm_of_a_product_is_bracketed_without_the_product(outputs, rank, inputs):
    B, A = np.random.default_rng(0).standard_normal((outputs, rank)), 1e-3 * np.ones((rank, inputs))
    assert_brackets(bracket_product(B, A), norm(B @ A))


def test_a_product_that_cancels_has_a_bracket_that_holds():
    B = np.random.default_rng(1).standard_normal((50, 2))
    B[:, 1] = -B[:, 0]
    lower, upper = bracket_product(B, np.ones((2, 40)))
    assert lower == 0
    assert upper < 1e-9


def test_the_json_has_both_ends_of_each_bracket(tmp_path):
    _, found = compare(tmp_path, {"w.weight": normal(0, 3, 3)}, {"w.weight": normal(1, 3, 3)})
    document = json.loads(found.to_json())
    assert document["schema"] == 1
    (row,) = document["rows"]
    assert row["base"] == {"lower": found.rows[0].base[0], "upper": found.rows[0].base[1]}
    assert set(row) >= {"name", "shape", "status", "base", "tuned", "difference", "relative", "reason", "geometry"}


def test_globs_choose_rows(tmp_path):
    base = {"a.weight": normal(0, 3, 3), "b.weight": normal(0, 3, 3)}
    rows, _ = compare(tmp_path, base, base, include=["a*"])
    assert list(rows) == ["a.weight"]


def test_a_row_says_what_the_weight_was_taken_for_and_what_else_it_may_be():
    kernel = np.zeros((32, 1, 3, 3))
    kernel[:, 0, 1, 1] = 1
    other = geometry.channels_first("Conv", kernel.shape, geometry.Sliding(groups=32), assumed=True)
    main = geometry.channels_first("Conv", kernel.shape, geometry.Sliding(), assumed=True)
    weight = Weight("w", kernel.shape, "float64", lambda: kernel, main._replace(readings=(other,)))
    opened = "f", Checkpoint("npz", (weight,))
    found = compare_opened(opened, opened, Options())
    assert found.rows[0].geometry == f"{main.text} (assumed, it may be: {other.text})"
    assert any("1 tensors may be" in note for note in found.notes)


def test_optimizer_state_is_one_line_of_a_comparison_too(tmp_path):
    values = {"w.weight": normal(0, 3, 3), "optimizer.m": normal(1, 3, 3)}
    _, found = compare(tmp_path, values, values)
    assert "optimizer.m" not in found.to_text()
    assert "1 tensors of optimizer state" in found.to_text()
    assert "optimizer.m" in found.to_text(all_rows=True)
