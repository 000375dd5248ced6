"""What stands beside an adapter's tensors in its file and its configuration: nothing is dropped, nothing misread."""

import json

import numpy as np
import pytest
from network_files import norm, write

from opnorm.auditing.differences import diff


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


W, A, B = normal(0, 6, 4), normal(1, 2, 4), normal(2, 6, 2)
LORA = {"l.lora_A.weight": A, "l.lora_B.weight": B}
CHANGE = norm(B.astype(np.float64) @ A)


def rows(tmp_path, base, tuned, config=None):
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = diff(write(tmp_path / "b.safetensors", base), write(tmp_path / "t.safetensors", tuned))
    return {row.name: row for row in found.rows}, found


HADA = {
    f"l.hada_{part}": normal(i, *((6, 2), (2, 4))[i % 2]) for i, part in enumerate(("w1_a", "w1_b", "w2_a", "w2_b"))
}


@pytest.mark.parametrize(
    "more",
    [{"l.diff": normal(3, 6, 4)}, HADA, {"l.weight": normal(3, 6, 4)}, {"base_model.model.l.base_layer.weight": 2 * W}],
)
def test_a_second_source_of_a_weight_is_a_reason(tmp_path, more):
    found, _ = rows(tmp_path, {"l.weight": W}, LORA | more)
    assert (found["l.weight"].status, found["l.weight"].difference) == ("failed", None)
    assert "nothing says" in found["l.weight"].reason


@pytest.mark.parametrize("name", ["l.weight", "base_model.model.l.base_layer.weight"])
def test_a_weight_that_is_the_bases_does_not_hold_the_update(tmp_path, name):
    found, _ = rows(tmp_path, {"l.weight": W}, LORA | {name: W})
    assert (found["l.weight"].status, set(found)) == ("LoRA", {"l.weight"})
    assert found["l.weight"].difference[1] == pytest.approx(CHANGE, rel=1e-5)


@pytest.mark.parametrize("inputs_first", [True, False])
@pytest.mark.parametrize("config", [{}, {"fan_in_fan_out": True}])
def test_a_square_matrix_of_gpt2_is_stored_as_the_others_of_its_model(tmp_path, inputs_first, config):
    square, wide = normal(3, 6, 6), normal(4, 6, 24) if inputs_first else normal(4, 24, 6)
    A, B = normal(5, 2, 6), normal(6, 6, 2)
    tuned = {"h.0.c_proj.lora_A.weight": A, "h.0.c_proj.lora_B.weight": B}
    found, _ = rows(tmp_path, {"h.0.c_proj.weight": square, "h.0.c_fc.weight": wide}, tuned, {"lora_alpha": 2} | config)
    update = B.astype(np.float64) @ A
    truth = norm(square + (update.T if inputs_first else update))
    assert found["h.0.c_proj.weight"].tuned[1] == pytest.approx(truth, rel=1e-5)


def test_the_configurations_orientation_gives_way_to_the_shape(tmp_path):
    A, B = normal(5, 2, 4), normal(6, 6, 2)
    parts = {"l.lora_A.weight": A, "l.lora_B.weight": B}
    found, _ = rows(tmp_path, {"l.weight": W}, parts, {"lora_alpha": 2, "fan_in_fan_out": True})
    assert found["l.weight"].tuned[1] == pytest.approx(norm(W + B.astype(np.float64) @ A), rel=1e-5)


def test_an_adapters_own_bias_is_no_linear_map(tmp_path):
    found, whole = rows(tmp_path, {"l.weight": W, "l.bias": W[:, 0]}, LORA | {"l.lora_B.bias": W[:, 0]})
    assert (found["l.lora_B.bias"].status, found["l.weight"].status) == ("skipped", "LoRA")
    assert not any("as they were" in note for note in whole.notes)


@pytest.mark.parametrize("way", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_adapter_that_began_with_a_part_of_the_base_is_not_added_to_it(tmp_path, way):
    found, _ = rows(tmp_path, {"l.weight": W}, LORA, {"lora_alpha": 2, "init_lora_weights": way})
    assert (found["l.weight"].status, found["l.weight"].tuned) == ("failed", None)
    assert way in found["l.weight"].reason


def test_updates_under_two_names_of_a_layer_are_a_reason(tmp_path):
    twice = {"base_model.model.l.lora_A.weight": A, "base_model.model.l.lora_B.weight": B}
    found, _ = rows(tmp_path, {"l.weight": W}, LORA | twice)
    assert "under several names" in found["l.weight"].reason


def test_a_part_of_another_update_has_a_row(tmp_path):
    found, _ = rows(tmp_path, {"l.weight": W}, LORA | {"l.hada_w1_a": normal(3, 6, 2)})
    assert found["l.weight"].difference[1] == pytest.approx(CHANGE, rel=1e-5)
    assert found["l.hada_w1_a"].status == "failed"


@pytest.mark.parametrize(
    ("patterns", "alphas"),
    [
        ({"l": 200}, {"l": 200, "xl": 2, "a.l": 200}),
        ({"a.l": 6}, {"l": 2, "xl": 2, "a.l": 6}),
        ({"(x|y)l": 6}, {"l": 2, "xl": 6, "a.l": 2}),
        ({r"(x|a)\.?l": 6}, {"l": 2, "xl": 6, "a.l": 6}),
        ({r"(a|b)\.(l|m)": 6}, {"l": 2, "xl": 2, "a.l": 6}),
        ({"x?l": 6, "l": 8}, {"l": 6, "xl": 6, "a.l": 6}),
        ({"^l": 6}, {"l": 6, "xl": 2, "a.l": 2}),
    ],
)
def test_a_pattern_is_matched_as_peft_matches_it(tmp_path, patterns, alphas):
    names = ("l", "xl", "a.l")
    tuned = {f"base_model.model.{name}.{side}": part for name in names for side, part in _sides()}
    found, _ = rows(
        tmp_path, {f"{n}.weight": W for n in names}, tuned, {"lora_alpha": 2, "r": 2, "alpha_pattern": patterns}
    )
    measured = {name: found[f"{name}.weight"].difference[1] / CHANGE * 2 for name in names}
    assert measured == pytest.approx(alphas, rel=1e-5)


def _sides():
    return (("lora_A.weight", A), ("lora_B.weight", B))


@pytest.mark.parametrize("key", ["(a+)+", "(a|a)*b", "a*a*a*a*b", "(a|a)" * 19, "(", "x{9}" * 9])
def test_a_pattern_that_takes_for_ever_or_is_none_is_a_reason(tmp_path, key):
    layer = "a" * 60
    tuned = {f"{layer}.{side}": part for side, part in _sides()}
    found, _ = rows(tmp_path, {f"{layer}.weight": W}, tuned, {"lora_alpha": 2, "alpha_pattern": {key: 1}})
    assert found[f"{layer}.weight"].status == "failed"
    assert "pattern" in found[f"{layer}.weight"].reason


@pytest.mark.parametrize(
    "name", ["base_model.model.head.weight", "base_model.model.head.modules_to_save.default.weight"]
)
def test_what_peft_saves_whole_is_compared_with_its_weight(tmp_path, name):
    old, new = normal(3, 5, 5), normal(4, 5, 5)
    found, whole = rows(tmp_path, {"l.weight": W, "head.weight": old, "o.weight": W}, LORA | {name: new})
    assert found["head.weight"].status == "compared"
    assert found["head.weight"].difference[1] == pytest.approx(norm(new.astype(np.float64) - old), rel=1e-5)
    assert set(found) == {"l.weight", "head.weight"}
    assert any("1 other tensors of the base" in note for note in whole.notes)


@pytest.mark.parametrize("alpha", ["2", None, [2], True])
def test_the_note_on_a_scale_is_true(tmp_path, alpha):
    found, whole = rows(tmp_path, {"l.weight": W}, LORA, {"lora_alpha": alpha})
    assert not any("no adapter_config.json" in note for note in whole.notes)
    assert any("alpha" in note for note in whole.notes)
    assert (found["l.weight"].status == "failed") == (alpha is not None)
