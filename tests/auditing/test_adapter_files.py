"""What stands beside an adapter's tensors in its file and its configuration: nothing is dropped, nothing misread."""

import json

import numpy as np
import pytest
from network_files import norm, write
from safetensors.numpy import save_file
from typer.testing import CliRunner

from opnorm.auditing.differences import compare, diff
from opnorm.auditing.settings import Options
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError
from opnorm.cli.main import app


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


# ---- names of other libraries ----


@pytest.mark.parametrize("config", [{"lora_parameters": {"rank": 2, "scale": 20.0}}, {}])
def test_mlx_stores_both_factors_turned(tmp_path, config):
    tuned = {"model.l.0.lora_a": A.T.copy(), "model.l.0.lora_b": B.T.copy()}
    found, whole = rows(tmp_path, {"model.l.0.weight": W}, tuned, config)
    scale = 20 if config else 1
    assert found["model.l.0.weight"].difference[1] == pytest.approx(scale * CHANGE, rel=1e-5)
    assert found["model.l.0.weight"].tuned[1] == pytest.approx(norm(W + scale * B.astype(np.float64) @ A), rel=1e-5)
    assert any("the scale is taken as 1" in note for note in whole.notes) == (not config)


def test_older_mlx_multiplies_its_scale_by_alpha_over_rank(tmp_path):
    tuned = {"l.lora_a": A.T.copy(), "l.lora_b": B.T.copy()}
    config = {"lora_parameters": {"rank": 2, "scale": 10.0, "alpha": 3}}
    found, _ = rows(tmp_path, {"l.weight": W}, tuned, config)
    assert found["l.weight"].difference[1] == pytest.approx(15 * CHANGE, rel=1e-5)


def test_mlx_dora_has_the_norms_of_the_rows(tmp_path):
    m = np.abs(normal(3, 6)) + 1
    tuned = {"l.lora_a": A.T.copy(), "l.lora_b": B.T.copy(), "l.m": m}
    found, _ = rows(tmp_path, {"l.weight": W}, tuned, {"lora_parameters": {"scale": 2.0}})
    total = W + 2 * B.astype(np.float64) @ A
    truth = norm((m / np.linalg.norm(total, axis=1))[:, None] * total)
    assert (found["l.weight"].status, set(found)) == ("DoRA", {"l.weight"})
    assert found["l.weight"].tuned[1] == pytest.approx(truth, rel=1e-5)


def test_mlx_embeddings_are_not_turned(tmp_path):
    E, a, b = normal(3, 9, 4), normal(4, 9, 2), normal(5, 2, 4)
    tuned = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    found, _ = rows(tmp_path, {"model.embed_tokens.weight": E}, tuned)
    assert found["model.embed_tokens.weight"].tuned[1] == pytest.approx(norm(E + a.astype(np.float64) @ b), rel=1e-5)


def test_mlx_experts_have_a_pair_each(tmp_path):
    E, a, b = normal(3, 5, 6, 4), normal(4, 5, 2, 4), normal(5, 5, 6, 2)
    tuned = {"l.switch_mlp.up.lora_a": a, "l.switch_mlp.up.lora_b": b}
    found, _ = rows(tmp_path, {"l.switch_mlp.up.weight": E}, tuned, {"lora_parameters": {"scale": 2.0}})
    row = found["l.switch_mlp.up.weight"]
    update = 2 * b.astype(np.float64) @ a
    assert row.difference[1] == pytest.approx(max(map(norm, update)), rel=1e-5)
    assert row.tuned[1] == pytest.approx(max(map(norm, E + update)), rel=1e-5)


def test_experts_without_their_weight_are_matrices_too(tmp_path):
    a, b = normal(4, 5, 2, 4), normal(5, 5, 6, 2)
    found, _ = rows(tmp_path, {"l.weight": W}, {"up.lora_a": a, "up.lora_b": b})
    assert found["up"].base is None
    assert found["up"].difference[1] == pytest.approx(max(map(norm, b.astype(np.float64) @ a)), rel=1e-5)


@pytest.mark.parametrize("stored", ["outputs first", "inputs first"])
def test_pefts_update_of_a_parameter_has_a_pair_for_each_expert(tmp_path, stored):
    experts, rank = 3, 2
    E = normal(3, experts, 6, 4) if stored == "outputs first" else normal(3, experts, 4, 6)
    A, B = normal(4, rank * experts, 4), normal(5, 6, rank * experts)
    name = "base_model.model.l.mlp.experts"
    config = {"lora_alpha": 6, "r": rank, "target_parameters": ["mlp.experts.up"]}
    found, _ = rows(
        tmp_path,
        {"l.mlp.experts.up": E, "l.mlp.experts.down": normal(6, experts, 5, 5)},
        {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B},
        config,
    )
    first, second = A.reshape(experts, rank, 4).astype(np.float64), B.reshape(6, rank, experts)
    update = 3 * np.einsum("ore,eri->eoi", second, first)
    row = found["l.mlp.experts.up"]
    assert row.difference[1] == pytest.approx(max(map(norm, update)), rel=1e-5)
    tuned = E + (update if stored == "outputs first" else update.swapaxes(1, 2))
    assert row.tuned[1] == pytest.approx(max(map(norm, tuned)), rel=1e-5)


@pytest.mark.parametrize("shapes", [{"up": (3, 4, 4)}, {"up": (3, 6, 4), "other": (3, 4, 6)}, {"up": (3, 7, 7)}, {}])
def test_an_update_of_a_parameter_that_may_be_several_is_a_reason(tmp_path, shapes):
    outputs = 4 if shapes.get("up") == (3, 4, 4) else 6
    name = "base_model.model.l.experts"
    tuned = {f"{name}.lora_A.weight": normal(4, 6, 4), f"{name}.lora_B.weight": normal(5, outputs, 6)}
    base = {f"l.experts.{key}": normal(i, *shape) for i, (key, shape) in enumerate(shapes.items())}
    config = {"lora_alpha": 6, "r": 2, "target_parameters": ["experts.up"]}
    found, _ = rows(tmp_path, {"l.weight": W, **base}, tuned, config)
    assert all(row.difference is None for row in found.values())
    assert any(row.status == "failed" and row.reason for row in found.values())


@pytest.mark.parametrize(
    ("base", "layer"),
    [
        ("model.layers.0.q.weight", "layers.0.q"),  # torchtune's names, of its own base
        ("model.diffusion_model.input_blocks.4.1.to_q.weight", "lora_unet_input_blocks_4_1_to_q"),
        ("text_model.encoder.q.weight", "lora_te1_text_model_encoder_q"),
        ("encoder.layer.0.q.weight", "base_model.model.bert.encoder.layer.0.q"),
        ("down_blocks.0.to_q.weight", "lycoris_unet_down_blocks_0_to_q"),
        ("double_blocks.0.qkv.weight", "diffusion_model.double_blocks.0.qkv"),
    ],
)
def test_prefixes_of_either_side_are_left_away(tmp_path, base, layer):
    sides = ("lora_a", "lora_b") if layer.startswith("layers") else ("lora_down", "lora_up")
    tuned = {f"{layer}.{side}.weight": part for side, part in zip(sides, (A, B), strict=True)}
    found, _ = rows(tmp_path, {base: W, f"{base}_other": W}, tuned)
    assert found[base].difference[1] == pytest.approx(CHANGE, rel=1e-5)


@pytest.mark.parametrize(("layer", "own"), [("lora_te1_l", "text_encoder"), ("lora_te2_l", "text_encoder_2")])
def test_each_text_encoder_gets_its_own_update(tmp_path, layer, own):
    base = {f"{part}.l.weight": W for part in ("text_encoder", "text_encoder_2", "unet")}
    found, _ = rows(tmp_path, base, {f"{layer}.lora_down.weight": A, f"{layer}.lora_up.weight": B})
    assert set(found) == {f"{own}.l.weight"}
    assert found[f"{own}.l.weight"].difference[1] == pytest.approx(CHANGE, rel=1e-5)


def test_a_name_that_may_be_of_two_weights_is_a_reason(tmp_path):
    tuned = {"lora_unet_a_b_c.lora_down.weight": A, "lora_unet_a_b_c.lora_up.weight": B}
    found, _ = rows(tmp_path, {"a.b_c.weight": W, "a_b.c.weight": W}, tuned)
    assert found["lora_unet_a_b_c"].status == "failed"
    assert "'a.b_c.weight' and 'a_b.c.weight'" in found["lora_unet_a_b_c"].reason


# ---- configurations ----


def test_a_rank_pattern_gives_the_rank_of_two_whole_factors(tmp_path):
    first, second = normal(3, 2, 2), normal(4, 3, 2)
    config = {"peft_type": "LOKR", "r": 8, "alpha": 6, "rank_pattern": {"l": 3}}
    found, _ = rows(tmp_path, {"l.weight": W}, {"l.lokr_w1": first, "l.lokr_w2": second}, config)
    truth = 2 * norm(np.kron(first.astype(np.float64), second))
    assert found["l.weight"].difference[1] == pytest.approx(truth, rel=1e-5)


def test_an_adapter_of_another_kind_is_named_by_its_configuration(tmp_path):
    tuned = {"base_model.model.l.hira_A": A, "base_model.model.l.hira_B": B}
    found, whole = rows(tmp_path, {"l.weight": W}, tuned, {"peft_type": "HIRA"})
    assert {row.status for row in found.values()} == {"failed"}
    assert all("kind HIRA" in row.reason for row in found.values())
    assert "kind HIRA" in whole.nothing_common


@pytest.mark.parametrize("key", ["use_qalora", "kasa_config"])
def test_what_changes_the_product_is_a_reason(tmp_path, key):
    found, _ = rows(tmp_path, {"l.weight": W}, LORA, {"lora_alpha": 2, key: {"x": 1}})
    assert key in found["l.weight"].reason


def test_an_adapters_configuration_that_is_nested_without_end_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        rows(tmp_path, {"l.weight": W}, LORA)


def test_each_adapter_of_a_folder_has_its_own_configuration(tmp_path):
    base = write(tmp_path / "b.safetensors", {"l.weight": W})
    earlier = tmp_path / "two" / "checkpoint-10"  # of a training: no adapter of its own
    for place, alpha in ((tmp_path / "two", 2), (tmp_path / "two" / "other", 8), (earlier, 3)):
        place.mkdir()
        write(place / "adapter_model.safetensors", LORA)
        (place / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
    opened = open_checkpoint(tmp_path / "two" / "adapter_model.safetensors")
    found = compare(("b", open_checkpoint(base)), (str(tmp_path / "two"), opened), Options())
    assert [(row.name, row.adapter) for row in found.rows] == [("l.weight", ""), ("l.weight", "other")]
    scales = [row.difference[1] / CHANGE for row in found.rows]
    assert scales == pytest.approx([1, 4], rel=1e-5)
    assert "LoRA of 'other'" in found.to_text()


def test_each_named_adapter_of_a_file_takes_the_configuration_of_its_folder(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    parts = {f"l.lora_{s}.{which}.weight": p for which in ("default", "other") for s, p in (("A", A), ("B", B))}
    _, whole = rows(tmp_path, {"l.weight": W}, parts, {"lora_alpha": 2})
    scales = {row.adapter: row.difference[1] / CHANGE for row in whole.rows}
    assert scales == pytest.approx({"default": 1, "other": 4}, rel=1e-5)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_scale_that_diffusers_notes_in_the_file_counts(tmp_path, prefix):
    noted = {f"{prefix}r": 2, f"{prefix}lora_alpha": 8, f"{prefix}alpha_pattern": {"m": 2}}
    parts = {f"{prefix}{layer}.{side}": part for layer in "lm" for side, part in _sides()}
    save_file(parts, tmp_path / "t.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    base = write(tmp_path / "b.safetensors", {"l.weight": W, "m.weight": W})
    found = diff(base, tmp_path / "t.safetensors")
    scales = {row.name: row.difference[1] / CHANGE for row in found.rows}
    assert scales == pytest.approx({"l.weight": 4, "m.weight": 1}, rel=1e-5)


@pytest.mark.parametrize("noted", ["{", "[]", "[" * 100_000])
def test_what_is_noted_and_makes_no_sense_is_as_if_it_were_not_there(tmp_path, noted):
    save_file(LORA, tmp_path / "t.safetensors", {"lora_adapter_metadata": noted})
    found = diff(write(tmp_path / "b.safetensors", {"l.weight": W}), tmp_path / "t.safetensors")
    assert found.rows[0].difference[1] == pytest.approx(CHANGE, rel=1e-5)


@pytest.mark.parametrize(
    ("kohya", "diffusers"),
    [
        ("input_blocks_0_0", "conv_in"),
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        (
            "input_blocks_4_1_transformer_blocks_1_attn2_to_k",
            "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        ),
        ("input_blocks_8_1_proj_in", "down_blocks.2.attentions.1.proj_in"),
        ("middle_block_1_proj_out", "mid_block.attentions.0.proj_out"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_0_skip_connection", "up_blocks.1.resnets.2.conv_shortcut"),
        ("label_emb_0_2", "add_embedding.linear_2"),
    ],
)
def test_stable_diffusions_own_names_are_found_in_diffusers_base(tmp_path, kohya, diffusers):
    tuned = {f"lora_unet_{kohya}.{side}.weight": part for side, part in (("lora_down", A), ("lora_up", B))}
    found, _ = rows(tmp_path, {f"{diffusers}.weight": W, "other.weight": W}, tuned)
    assert list(found) == [f"{diffusers}.weight"]


def folders(tmp_path, tuned, config):
    """Return the folder of a model, and that of an adapter."""
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    write(tmp_path / "base" / "model.safetensors", {"model.l.weight": W})
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write(tmp_path / "adapter" / "adapter_model.safetensors", tuned)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return str(tmp_path / "base"), str(tmp_path / "adapter")


def test_folders_of_a_model_and_of_its_adapter_are_compared(tmp_path):
    tuned = {f"base_model.model.model.{name}": part for name, part in LORA.items()}
    result = CliRunner().invoke(app, ["diff", *folders(tmp_path, tuned, {"lora_alpha": 6}), "--json", "-"])
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert row["difference"]["upper"] == pytest.approx(3 * CHANGE, rel=1e-5)


@pytest.mark.parametrize(
    ("tuned", "config", "words"),
    [
        ({f"other.{name}": part for name, part in LORA.items()}, {}, "share no name"),
        ({"base_model.model.model.l.vera_lambda_b": A[0]}, {"peft_type": "VERA"}, "the kind VERA"),
    ],
)
def test_an_adapter_of_which_nothing_fits_exits_with_two(tmp_path, tuned, config, words):
    result = CliRunner().invoke(app, ["diff", *folders(tmp_path, tuned, config)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_the_projections_of_pytorchs_attention_are_told_apart(tmp_path):
    joint, output = normal(3, 18, 6), normal(4, 6, 6)
    A, B, D = normal(5, 2, 6), normal(6, 18, 2), normal(7, 6, 2)
    name = "base_model.model.attn"
    tuned = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    tuned |= {f"{name}.base_layer.out_proj.lora_A.weight": A, f"{name}.base_layer.out_proj.lora_B.weight": D}
    found, _ = rows(tmp_path, {"attn.in_proj_weight": joint, "attn.out_proj.weight": output}, tuned)
    assert found["attn.in_proj_weight"].difference[1] == pytest.approx(norm(B.astype(np.float64) @ A), rel=1e-5)
    assert found["attn.out_proj.weight"].status == "failed"
    assert "twice" in found["attn.out_proj.weight"].reason


def test_an_update_of_a_quantized_weight_is_added_to_what_its_codes_stand_for(tmp_path):
    codes, scale = np.random.default_rng(7).integers(-127, 128, (6, 4)).astype(np.int8), normal(8, 6, 1)
    found, whole = rows(tmp_path, {"l.weight": codes, "l.weight_scale": scale}, LORA)
    row, stored = found["l.weight"], codes * scale.astype(np.float64)
    truths = {"base": norm(stored), "tuned": norm(stored + B.astype(np.float64) @ A), "difference": CHANGE}
    assert row.status == "LoRA"
    for name, truth in truths.items():
        lower, upper = getattr(row, name)
        assert lower <= truth * (1 + 1e-12)
        assert truth <= upper * (1 + 1e-12)
        assert upper <= lower * (1 + 1e-5)
    assert whole.nothing_common == ""


def test_an_update_of_codes_that_nothing_scales_is_a_reason(tmp_path):
    found, _ = rows(tmp_path, {"l.weight": np.ones((6, 4), np.int8)}, LORA)
    assert (found["l.weight"].status, found["l.weight"].tuned) == ("failed", None)
    assert "not known what the codes stand for" in found["l.weight"].reason


@pytest.mark.parametrize(
    ("arguments", "name"), [((3, "a"), "base"), (({"w": W}, None), "tuned"), (({"w": W}, ""), "tuned")]
)
def test_what_is_no_checkpoint_is_refused_by_the_arguments_name(arguments, name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        diff(*arguments)


def test_an_adapter_of_a_layer_that_the_base_lacks_is_not_said_to_be_in_the_base(tmp_path):
    _, found = rows(tmp_path, {"other.weight": W}, HADA)
    assert found.nothing_common.endswith("share no name; the latter has 'l'")
