"""Folders that nobody vouches for: their configurations, lists of parts and indices may hold anything."""

import json
import os
import random

import numpy as np
import pytest
from families import AUTOENCODER, GPT2, LLAMA, MIXTURE, RESNET, UNET, VIT, draw, write
from readers import fails

import opnorm
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

NASTY = [
    None,
    True,
    -1,
    0,
    1,
    3,
    2**63,
    10**400,
    1e308,
    float("nan"),
    "8",
    [],
    [8],
    [8] * 10**4,
    {},
    {"a": {}},
    "é" * 9,
]
FAMILIES = [GPT2, LLAMA, VIT, MIXTURE, RESNET, UNET, AUTOENCODER]


def nasty(config, chance):
    """Return a configuration with a few of its values, or values of others, replaced."""
    keys = [*config, "text_config", "quantization_config", "auto_map", "head_dim", "num_key_value_heads", "n_inner"]
    changed = {key: chance.choice(NASTY) for key in chance.sample(keys, chance.choice([1, 2, 5]))}
    if chance.random() < 0.2:
        changed["vision_config"] = {"model_type": chance.choice(NASTY), **config, **changed}
    return config | changed


@pytest.mark.parametrize("seed", range(40))
def test_a_configuration_of_nonsense_ends_no_audit_and_changes_no_matrix(tmp_path, seed):
    chance = random.Random(seed)
    config, tensors = chance.choice(FAMILIES)
    rows = opnorm.audit(write(tmp_path, tensors, nasty(config, chance))).rows
    assert {row.name for row in rows} == set(tensors)
    for row in rows:
        if len(row.shape) == 2 and row.status == "bounded":
            truth = np.linalg.svd(tensors[row.name].astype("f8"), compute_uv=False)[0]
            assert row.lower <= truth * (1 + 1e-9)
            assert truth <= row.upper * (1 + 1e-9)


def test_a_damaged_configuration_ends_no_audit(tmp_path):
    write(tmp_path, *LLAMA[::-1])
    data = (tmp_path / "config.json").read_bytes()
    for seed in range(60):
        chance, broken = random.Random(seed), bytearray(data)
        for _ in range(chance.choice([1, 4, 30])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        (tmp_path / "config.json").write_bytes(broken)
        assert len(open_checkpoint(tmp_path).weights) == len(LLAMA[1])


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": ["1.safetensors"]}},
        {"weight_map": {"a": None}},
        {"weight_map": {"a": ""}},
        {"weight_map": {"a": "."}},
        {"weight_map": {"a": "sub"}},
        {"weight_map": {"a": "\0"}},
        {"weight_map": {"a": "config.json"}},
        {"weight_map": {"a": "model.safetensors.index.json"}},
        {"weight_map": {"a": "pipe"}},
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_no_shard_is_refused(tmp_path, index, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / name).write_text(json.dumps(index))
    assert fails(tmp_path)


def test_what_is_no_file_is_not_opened(tmp_path):
    write(tmp_path, {"a.weight": draw(2, 2)})
    for name in ("config.json", "model_index.json", "modules.json", "pytorch_model.bin"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "model.fp16.safetensors").mkdir()
    assert len(open_checkpoint(tmp_path).weights) == 1


def test_a_pipeline_of_itself_is_read_once(tmp_path):
    write(tmp_path, {"a.weight": draw(2, 2)})
    (tmp_path / "again").symlink_to(tmp_path)
    parts = {"again": ["a", "b"], "..": ["a", "b"], ".": ["a", "b"], "/etc": ["a", "b"], "again/again": ["a", "b"]}
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    names = [weight.name for weight in open_checkpoint(tmp_path).weights]
    assert names == ["a.weight", "again.a.weight", "again/again.a.weight"]


@pytest.mark.parametrize("name", ["model_index.json", "modules.json"])
@pytest.mark.parametrize("content", ["[" * 10**5, '{"a": 1, "a": 2}', "\xff", ""])
def test_a_broken_list_of_parts_is_one_line(tmp_path, name, content):
    write(tmp_path, {"a.weight": draw(2, 2)})
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_of_many_files_and_folders_are_looked_at_within_bounds(tmp_path):
    for number in range(300):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"'checkpoint-0', .* and 95 more"):
        open_checkpoint(tmp_path)


def test_a_link_that_leads_round_in_a_circle_hides_no_other_file(tmp_path):
    write(tmp_path, {"w": np.eye(3, dtype=np.float32)})
    (tmp_path / "other.safetensors").symlink_to("other.safetensors")
    assert [row.name for row in opnorm.audit(tmp_path).rows] == ["w"]


def test_links_to_files_that_are_missing_are_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError, match=r"links to files that are missing: 'model\.safetensors'"):
        opnorm.audit(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "quantize_config.json", "hf_quant_config.json"])
def test_a_configuration_that_is_nested_too_deeply_leaves_the_weights_readable(tmp_path, name):
    write(tmp_path, {"w": np.eye(3, dtype=np.float32), "w.scales": np.ones(3, np.float32)})
    (tmp_path / name).write_text("[" * 100_000)
    assert len(opnorm.audit(tmp_path).rows) == 2


def test_files_and_folders_that_could_be_read_are_both_named(tmp_path):
    write(tmp_path, {"w": np.eye(2, dtype=np.float32)}, name="a.safetensors")
    write(tmp_path, {"w": np.eye(2, dtype=np.float32)}, name="b.safetensors")
    write(tmp_path / "inner", {"w": np.eye(2, dtype=np.float32)})
    with pytest.raises(CheckpointError, match=r"name one in it: 'a\.safetensors', 'b\.safetensors', 'inner'$"):
        opnorm.audit(tmp_path)
