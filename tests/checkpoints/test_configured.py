"""What a model's config.json settles of its tensors' geometry; and that a wrong one settles nothing."""

import json

import numpy as np
import pytest
import torch
from families import AUTOENCODER, BLOOM, DEEPSEEK, GPT2, LLAMA, MIXTURE, RESNET, T5, UNET, VIT, WHISPER, draw, write

import opnorm
from opnorm.checkpoints.config import ModelConfig, read_config
from opnorm.checkpoints.heads import fused
from opnorm.checkpoints.opening import open_checkpoint

FAMILIES = {
    "gpt2": GPT2, "llama": LLAMA, "bloom": BLOOM, "vit": VIT, "mixture": MIXTURE, "batch": RESNET, "whisper": WHISPER,
    "t5": T5, "deepseek": DEEPSEEK, "unet": UNET, "autoencoder": AUTOENCODER,
}  # fmt: skip


def rows_of(folder, family, **changed):
    config, tensors = FAMILIES[family] if isinstance(family, str) else family
    return {row.name: row for row in opnorm.audit(write(folder, tensors, config | changed)).rows}


def norm(matrix):
    return np.linalg.svd(np.asarray(matrix, "f8"), compute_uv=False)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_map_of_a_known_model_is_assumed(tmp_path, family):
    rows = rows_of(tmp_path, family)
    assert [name for name, row in rows.items() if row.assumed and row.status == "bounded"] == []
    assert [name for name, row in rows.items() if row.readings or row.status == "failed"] == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "t5", "deepseek"])
def test_the_norm_between_root_mean_squares_is_that_of_the_layer(tmp_path, family):
    """The truth goes by names: GPT-2's layers are x @ W, its tables and all others' layers W @ x."""
    rows, tensors = rows_of(tmp_path, family), FAMILIES[family][1]
    for name, tensor in tensors.items():
        if rows[name].status == "bounded":
            tables = ("embed_tokens", "wte", "wpe", "shared", "relative_attention_bias")
            inputs_first = any(table in name for table in tables) or ".c_" in name
            inputs, outputs = tensor.shape if inputs_first else tensor.shape[::-1]
            assert rows[name].rms_norm == pytest.approx(norm(tensor) * np.sqrt(inputs / outputs), rel=1e-5)


def test_a_mask_of_old_files_is_no_map(tmp_path):
    assert rows_of(tmp_path, "gpt2")["h.0.attn.bias"].reason == "a causal mask, no weight"
    other = rows_of(tmp_path, "gpt2", n_positions=15)["h.0.attn.bias"]
    assert (other.status, other.assumed) == ("bounded", True)


def test_patches_are_cut_with_the_stride_that_the_configuration_says(tmp_path):
    row = rows_of(tmp_path, "vit")["embeddings.patch_embeddings.projection.weight"]
    kernel = torch.from_numpy(VIT[1][row.name]).double()
    images = torch.eye(3 * 64, dtype=torch.float64).reshape(-1, 3, 8, 8)
    explicit = torch.nn.functional.conv2d(images, kernel, stride=4).reshape(len(images), -1).numpy()
    assert row.lower <= norm(explicit) * (1 + 1e-9)
    assert norm(explicit) <= row.upper
    assert row.upper <= norm(explicit) * 1.02
    assert (row.assumed, row.geometry) == (False, "convolution, strides 4, padding valid")


CONVOLUTIONS = [  # as torch.nn applies them in transformers and diffusers
    ("whisper", "model.encoder.conv1.weight", 1, (1, 1)),
    ("whisper", "model.encoder.conv2.weight", 2, (1, 1)),
    ("unet", "down_blocks.0.downsamplers.0.conv.weight", 2, (1, 1, 1, 1)),
    ("unet", "up_blocks.0.resnets.0.conv1.weight", 1, (1, 1, 1, 1)),
    ("autoencoder", "encoder.down_blocks.0.downsamplers.0.conv.weight", 2, (0, 1, 0, 1)),
    ("autoencoder", "quant_conv.weight", 1, (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("family", "name", "stride", "zeros"), CONVOLUTIONS)
def test_a_convolution_is_bounded_as_its_class_applies_it(tmp_path, family, name, stride, zeros):
    row = rows_of(tmp_path, family)[name]
    kernel = torch.from_numpy(FAMILIES[family][1][name]).double()
    size = (8, 8) if kernel.ndim == 4 else (48,)
    images = torch.eye(kernel.shape[1] * int(np.prod(size)), dtype=torch.float64).reshape(-1, kernel.shape[1], *size)
    slide = torch.nn.functional.conv2d if kernel.ndim == 4 else torch.nn.functional.conv1d
    explicit = slide(torch.nn.functional.pad(images, zeros), kernel, stride=stride).reshape(len(images), -1).numpy()
    assert norm(explicit) <= row.upper
    assert row.upper <= norm(explicit) * 1.25  # an image of 8 pixels is no image of every size
    assert (f"strides {stride}" in row.geometry) == (stride > 1)


def test_experts_are_turned_as_their_family_stores_them(tmp_path):
    rows = rows_of(tmp_path, "mixture")
    down = MIXTURE[1]["layers.0.mlp.experts.down_proj"]
    row = rows["layers.0.mlp.experts.down_proj"]
    assert row.upper == pytest.approx(max(map(norm, down)), rel=1e-5)
    assert row.rms_norm == pytest.approx(row.upper * np.sqrt(3 / 6), rel=1e-9)
    assert "(in, out)" in rows["layers.0.mlp.experts.gate_up_proj"].geometry
    assert rows["layers.0.mlp.experts.gate_up_proj_bias"].reason == "a bias is added, not multiplied"


def test_epsilon_comes_from_the_configuration(tmp_path):
    row, tensors = rows_of(tmp_path, "batch")["bn.weight"], RESNET[1]
    truth = np.abs(tensors["bn.weight"] / np.sqrt(tensors["bn.running_var"].astype("f8") + 1e-3)).max()
    assert row.lower == pytest.approx(truth, rel=1e-6)
    assert not row.readings
    for wrong in ("0.001", None, 0, -1.0, 10**400, float("inf"), True):
        assert len(rows_of(tmp_path, "batch", batch_norm_eps=wrong)["bn.weight"].readings) == 1


# ---- configurations that are not the model's ----


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "unheard_of"},
        {"model_type": ["llama"]},
        {"hidden_size": 13},
        {"hidden_size": "12"},
        {"num_attention_heads": 2**70, "num_key_value_heads": 2**70, "intermediate_size": True, "vocab_size": -1},
        {"auto_map": {"AutoModel": "modeling.Own"}},
        {"quantization_config": {"quant_method": "bitnet"}},
        {"quantization": {"bits": 4}},
        {"text_config": {"model_type": "llama", "quantization_config": {"quant_method": "bitnet"}}},
    ],
)
def test_a_configuration_of_another_model_settles_nothing(tmp_path, changed):
    plain = {row.name: row for row in opnorm.audit(write(tmp_path / "plain", LLAMA[1])).rows}
    rows = rows_of(tmp_path / "wrong", "llama", **changed)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        assert rows[name]._replace(seconds=0) == plain[name]._replace(seconds=0)


def test_a_matrix_that_lies_otherwise_than_its_family_stores_it_stays_assumed(tmp_path):
    config, tensors = GPT2
    turned = {name: np.ascontiguousarray(t.T) if ".c_fc" in name else t for name, t in tensors.items()}
    row = rows_of(tmp_path, (config, turned))["h.0.mlp.c_fc.weight"]
    assert (row.assumed, row.rms_norm) == (True, None)


@pytest.mark.parametrize("patch", [2, 8, [4, 4], None])
def test_patches_of_another_size_are_read_in_every_way(tmp_path, patch):
    row = rows_of(tmp_path, "vit", patch_size=patch)["embeddings.patch_embeddings.projection.weight"]
    assert row.assumed
    assert row.readings


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 10**5, '{"model_type": "gpt2"'])
def test_a_broken_configuration_is_a_note_and_never_an_error(tmp_path, content):
    write(tmp_path, LLAMA[1])
    (tmp_path / "config.json").write_text(content)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        report = opnorm.audit(path)
        assert all(row.assumed for row in report.rows)
        assert "its configuration is not read" in report.notes[0]
        assert "\n" not in report.notes[0]


def test_a_broken_configuration_of_a_part_is_a_note(tmp_path):
    write(tmp_path / "text_encoder", LLAMA[1])
    (tmp_path / "text_encoder" / "config.json").write_text("{")
    (tmp_path / "model_index.json").write_text('{"text_encoder": ["a", "b"]}')
    assert "its configuration is not read" in open_checkpoint(tmp_path).notes[0]


def test_a_configuration_too_large_is_not_read(tmp_path):
    write(tmp_path, LLAMA[1])
    (tmp_path / "config.json").write_bytes(b" " * (2**23 + 1))
    assert "larger than 8 MiB" in opnorm.audit(tmp_path).notes[0]


def test_embeddings_that_their_layer_scales_stay_assumed(tmp_path):
    rows = rows_of(tmp_path, "llama", model_type="gemma2")
    assert [name for name, row in rows.items() if row.assumed] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    ("model", "settings", "factor"),
    [
        ("gemma3_text", {}, 12**0.5),
        ("bart", {"scale_embedding": True}, 12**0.5),
        ("biogpt", {}, 12**0.5),
        ("bart", {"scale_embedding": False}, 1),
    ],
)
def test_a_scaled_embedding_is_bounded_as_its_layer_applies_it(tmp_path, model, settings, factor):
    row = rows_of(tmp_path, "llama", model_type=model, **settings)["model.embed_tokens.weight"]
    truth = np.linalg.norm(LLAMA[1]["model.embed_tokens.weight"].astype("f8"), 2)
    assert row.lower <= factor * truth * (1 + 1e-9) <= row.upper * (1 + 2e-9)
    assert row.rms_norm == pytest.approx(factor * truth * (30 / 12) ** 0.5, rel=1e-5)
    tied = [reading for reading in row.readings if reading[1] <= truth * (1 + 1e-9) and truth <= reading[2]]
    assert bool(tied) == (factor != 1), "the output layer may read the same matrix without the factor"


# ---- parts of a model ----


def test_each_part_of_a_model_has_its_own_sizes(tmp_path):
    text, tensors = LLAMA
    vision = {"model_type": "clip_vision_model", "hidden_size": 6, "patch_size": 2, "num_channels": 3}
    config = {"model_type": "llava", "text_config": text, "vision_config": vision}
    patches = {"vision_tower.vision_model.embeddings.patch_embedding.weight": draw(6, 3, 2, 2)}
    rows = rows_of(tmp_path, (config, {f"language_model.{key}": t for key, t in tensors.items()} | patches))
    assert not any(row.assumed for row in rows.values())


# ---- heads ----

FUSED = {
    "gpt2": ({"model_type": "gpt2", "n_embd": 8, "n_head": 2}, "c_attn", 24, "stacked"),
    "gpt_neox": ({"model_type": "gpt_neox", "hidden_size": 8, "num_attention_heads": 2}, "query_key_value", 24, "head"),
    "bloom": ({"model_type": "bloom", "hidden_size": 8, "n_head": 2}, "query_key_value", 24, "head"),
    "falcon, one": ({"model_type": "falcon", "hidden_size": 8, "num_attention_heads": 2}, "query_key_value", 16,
                    "stacked"),
    "falcon, groups": ({"model_type": "falcon", "hidden_size": 16, "num_attention_heads": 4, "num_kv_heads": 2,
                        "new_decoder_architecture": True}, "query_key_value", 32, "group"),
    "phi3": ({"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}, "qkv_proj",
             16, "stacked"),
}  # fmt: skip


@pytest.mark.parametrize("family", FUSED)
def test_each_output_of_a_joint_projection_belongs_to_one_head(family):
    table, module, outputs, order = FUSED[family]
    found = fused(ModelConfig(table["model_type"], table), module, outputs)
    places = found.places()
    assert found.order == order
    assert [len(places[part]) for part in ("query", "key", "value")] == [
        found.heads, found.key_value_heads, found.key_value_heads
    ]  # fmt: skip
    assert sorted(np.concatenate(list(places.values())).ravel()) == list(range(outputs))


def test_heads_are_interleaved_as_the_models_code_cuts_them():
    """The cuts are those of the attention modules of transformers, written out."""
    outputs = np.arange(24)
    neox = fused(ModelConfig("gpt_neox", FUSED["gpt_neox"][0]), "query_key_value", 24).places()
    cut = np.split(outputs.reshape(2, 12), 3, axis=-1)  # view(..., heads, 3 * head_dim).chunk(3, -1)
    for part, truth in zip(("query", "key", "value"), cut, strict=True):
        np.testing.assert_array_equal(neox[part], truth)
    falcon = fused(ModelConfig("falcon", FUSED["falcon, groups"][0]), "query_key_value", 32).places()
    cut = np.arange(32).reshape(2, 4, 4)  # view(..., groups, heads / groups + 2, head_dim)
    np.testing.assert_array_equal(falcon["query"], cut[:, :-2].reshape(4, 4))
    np.testing.assert_array_equal(falcon["key"], cut[:, -2])
    np.testing.assert_array_equal(falcon["value"], cut[:, -1])


@pytest.mark.parametrize(
    ("table", "outputs"),
    [
        ({"n_head": 2, "n_embd": 8}, 23),
        ({"n_head": 0, "n_embd": 8}, 24),
        ({}, 24),
        ({"n_head": 3, "n_embd": 8}, 24),
        ({"n_head": 2**60, "n_embd": 8}, 24),
    ],
)
def test_heads_that_do_not_fit_are_none(table, outputs):
    assert fused(ModelConfig("gpt2", table), "c_attn", outputs) is None


def test_a_configuration_is_read_from_a_folder_and_beside_a_file(tmp_path):
    write(tmp_path, *GPT2[::-1])
    for place in (tmp_path, tmp_path / "model.safetensors"):
        config = read_config(place)
        assert (config.hidden, config.heads, config.head_dim, config.key_value_heads) == (8, 2, 4, 2)
    (tmp_path / "config.json").unlink()
    assert read_config(tmp_path) == ModelConfig()


def test_a_scale_in_another_shard_and_blocks_of_the_configuration_scale_codes(tmp_path):
    """DeepSeek's layout: codes in one shard, their scale in the next, blocks of 3 x 5 by config.json alone."""
    codes = torch.randn(6, 10).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 2) + 0.5
    from safetensors.torch import save_file

    save_file({"w.weight": codes}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"w.weight_scale_inv": scale}, tmp_path / "model-00002-of-00002.safetensors")
    places = {"w.weight": "model-00001-of-00002.safetensors", "w.weight_scale_inv": "model-00002-of-00002.safetensors"}
    blocks = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [3, 5]}}
    (tmp_path / "config.json").write_text(json.dumps(blocks))
    truth = codes.double() * scale.double().repeat_interleave(3, 0).repeat_interleave(5, 1)
    assert norm(truth) == pytest.approx(opnorm.audit(tmp_path).rows[0].upper, rel=1e-5)  # without an index
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert norm(truth) == pytest.approx(opnorm.audit(tmp_path).rows[0].upper, rel=1e-5)
    assert len(open_checkpoint(tmp_path).weights) == 2
