"""Folders of models, and files whose names do not say what they are."""

import json
import shutil

import numpy as np
import pytest
import torch
from families import LLAMA, VIT, draw, write
from readers import refused
from safetensors.numpy import save_file
from samples import FILES

import opnorm
from opnorm.auditing.differences import diff
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

ONE, TWO = {"a.weight": draw(3, 2), "b.weight": draw(4, 3)}, {"c.weight": draw(2, 4)}


def tensors_of(path):
    return {weight.name: weight.read() for weight in open_checkpoint(path).weights}


def assert_same(found, truth):
    assert set(found) == set(truth)
    for name, tensor in truth.items():
        np.testing.assert_array_equal(found[name], tensor)


def as_torch(tensors, path):
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)


def as_safetensors(tensors, path):
    save_file(tensors, path)


def shards(folder, save, names, index):
    for tensors, name in zip((ONE, TWO), names, strict=True):
        save(tensors, folder / name)
    places = {key: name for tensors, name in zip((ONE, TWO), names, strict=True) for key in tensors}
    if index:
        (folder / index).write_text(json.dumps({"metadata": {"total_size": 104}, "weight_map": places}))


# ---- one model ----


@pytest.mark.parametrize(
    ("save", "names", "index"),
    [
        (as_safetensors, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
         "model.safetensors.index.json"),
        (as_torch, ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
         "pytorch_model.bin.index.json"),
        (as_safetensors, ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
         "model.safetensors.index.fp16.json"),
        (as_safetensors, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (as_torch, ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"], None),
    ],
)  # fmt: skip
def test_the_shards_of_a_folder_are_one_model(tmp_path, save, names, index):
    shards(tmp_path, save, names, index)
    assert_same(tensors_of(tmp_path), ONE | TWO)
    found = open_checkpoint(tmp_path)
    assert found.format == ("torch" if save is as_torch else "safetensors")
    if index:
        assert found.notes == ()
        assert_same(tensors_of(tmp_path / index), ONE | TWO)


def test_a_missing_shard_is_said(tmp_path):
    save_file(ONE, tmp_path / "model-00001-of-00003.safetensors")
    save_file(TWO, tmp_path / "model-00003-of-00003.safetensors")
    refused(tmp_path, "of the 00003 shards of 'model' some are missing")
    save_file(TWO, tmp_path / "model-9999999999-of-9999999999.safetensors")
    refused(tmp_path, "name one in it")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.non_ema.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["pytorch_model.bin", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"],
         "diffusion_pytorch_model.fp16.safetensors"),
        (["adapter_model.bin", "adapter_model.safetensors"], "adapter_model.safetensors"),
        (["optimizer.bin", "pytorch_model.bin"], "pytorch_model.bin"),
        (["optimizer.pt", "lora.safetensors"], "lora.safetensors"),
    ],
)  # fmt: skip
def test_of_several_files_of_a_model_one_is_read_and_the_others_are_named(tmp_path, names, chosen):
    for name in names:
        tensors = ONE if name == chosen else TWO
        (as_safetensors if name.endswith("safetensors") else as_torch)(tensors, tmp_path / name)
    assert_same(tensors_of(tmp_path), ONE)
    (other,) = set(names) - {chosen}
    assert open_checkpoint(tmp_path).notes == (
        f"{chosen!r} is read; of what else the folder holds nothing is: {other!r}",
    )


def test_what_a_training_leaves_beside_the_weights_is_named_and_not_opened(tmp_path):
    write(tmp_path, ONE)
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        (tmp_path / name).write_bytes(b"\x80no pickle at all")
    (note,) = open_checkpoint(tmp_path).notes
    assert "'optimizer.pt', 'rng_state_0.pth', 'scheduler.pt', 'training_args.bin'" in note


def test_of_the_checkpoints_of_a_training_none_is_chosen(tmp_path):
    for step in (500, 1000, 20):
        write(tmp_path / f"checkpoint-{step}", ONE)
    (tmp_path / "runs").mkdir()
    refused(tmp_path, r"it is a folder, no file; name one in it: 'checkpoint-20', 'checkpoint-500', 'checkpoint-1000'$")
    write(tmp_path, TWO)
    assert_same(tensors_of(tmp_path), TWO)


def test_the_cache_of_hugging_face_is_read_through_its_links(tmp_path):
    """snapshots/<commit>/ has links to blobs/; every other link out of a folder of shards stays refused."""
    home = tmp_path / "hub" / "models--a"
    folder = home / "snapshots" / "4d7a"
    folder.mkdir(parents=True)
    (home / "blobs").mkdir()
    shards(folder, as_safetensors, ["1.safetensors", "2.safetensors"], "model.safetensors.index.json")
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(home / "blobs" / f"{number:064}")
        file.symlink_to(f"../../blobs/{number:064}")
    assert_same(tensors_of(folder), ONE | TWO)
    assert_same(tensors_of(folder / "model.safetensors.index.json"), ONE | TWO)
    assert_same(tensors_of(home), ONE | TWO)
    write(home / "snapshots" / "f00d", TWO)
    refused(home, "it is a folder, no file")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("f00d\n")
    assert_same(tensors_of(home), TWO)
    (home / "other").mkdir()
    shutil.move(folder, home / "other" / "4d7a")
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(home / "other" / "4d7a")


@pytest.mark.parametrize("where", ["link", "target"])
def test_a_link_has_the_configuration_beside_it_or_its_target(tmp_path, where):
    config, tensors = LLAMA
    file = write(tmp_path / "target", tensors) / "model.safetensors"
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "model.safetensors").symlink_to(file)
    (tmp_path / where / "config.json").write_text(json.dumps(config))
    for path in (tmp_path / "link", tmp_path / "link" / "model.safetensors"):
        assert not any(weight.geometry.assumed for weight in open_checkpoint(path).weights)


def test_a_broken_index_in_a_folder_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"^Cannot read '.*/model\.safetensors\.index\.json': it has no `weight_"):
        open_checkpoint(tmp_path)


# ---- a pipeline, an adapter ----


def test_the_parts_of_a_pipeline_are_read_each_with_its_own_configuration(tmp_path):
    write(tmp_path / "text_encoder", *LLAMA[::-1])
    write(tmp_path / "vit", *VIT[::-1])
    write(tmp_path / "unet", ONE, name="diffusion_pytorch_model.fp16.safetensors")
    as_torch(TWO, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    (tmp_path / "scheduler").mkdir()
    parts = {name: ["diffusers", "Class"] for name in ("unet", "text_encoder", "vit", "scheduler", "none", "../evil")}
    index = {"_class_name": "StableDiffusionPipeline", "feature_extractor": [None, None], **parts}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    report = opnorm.audit(tmp_path)
    names = {f"text_encoder.{name}" for name in LLAMA[1]} | {f"vit.{name}" for name in VIT[1]}
    assert {row.name for row in report.rows} == names | {f"unet.{name}" for name in ONE}
    assert {row.name for row in report.rows if row.assumed} == {f"unet.{name}" for name in ONE}
    assert "the folder 'unet' holds nothing is: 'diffusion_pytorch_model.bin'" in report.notes[0]


def test_the_modules_of_sentence_transformers_are_read_together(tmp_path):
    write(tmp_path, ONE)
    write(tmp_path / "2_Dense", TWO)
    (tmp_path / "1_Pooling").mkdir()
    modules = [{"idx": number, "path": path} for number, path in enumerate(["", "1_Pooling", "2_Dense"])]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert_same(tensors_of(tmp_path), ONE | {f"2_Dense.{name}": tensor for name, tensor in TWO.items()})


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"unet": 3}'])
def test_a_broken_list_of_parts_is_an_error_or_none(tmp_path, content):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model_index\.json is not JSON|it is a folder, no file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_folder_of_an_adapter_is_compared_with_its_scale(tmp_path, name):
    W, A, B = draw(5, 4), draw(2, 4), draw(5, 2)
    base = write(tmp_path / "base", {"model.layer.weight": W})
    folder = tmp_path / "adapter"
    folder.mkdir()
    parts = {f"base_model.model.model.layer.lora_{part}.weight": array for part, array in (("A", A), ("B", B))}
    (as_safetensors if name.endswith("safetensors") else as_torch)(parts, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    (row,) = diff(base, folder).rows
    truth = np.linalg.svd(3 * (B.astype("f8") @ A), compute_uv=False)[0]
    assert row.difference[0] <= truth * (1 + 1e-9)
    assert truth <= row.difference[1] * (1 + 1e-9)
    assert row.difference[1] == pytest.approx(truth, rel=1e-5)
    assert len(opnorm.audit(folder).rows) == 2


def test_keras_shards_are_read_by_their_folder(tmp_path, monkeypatch):
    names = ["model_00000.weights.h5", "model_00001.weights.h5"]
    for name in names:
        FILES["a.weights.h5"](tmp_path / name)
    (tmp_path / "model.weights.json").write_text(json.dumps({"weight_map": {"/layers/dense/vars": names}}))
    found = open_checkpoint(tmp_path)
    assert found.format == "h5"
    assert found.notes == ()
    assert found.weights


# ---- files whose names tell nothing ----


@pytest.mark.parametrize("name", [name for name in FILES if name != "a.onnx"])
@pytest.mark.parametrize("other", ["blob", "weights.2026-11-27", "model.model"])
def test_a_file_of_an_unknown_name_is_read_by_its_content(tmp_path, name, other):
    path = FILES[name](tmp_path / name)
    truth = tensors_of(path)
    found = tensors_of(shutil.copy(path, tmp_path / other))
    assert [tensor.tobytes() for tensor in found.values()] == [tensor.tobytes() for tensor in truth.values()]


def test_an_index_of_an_unknown_name_is_read_by_its_content(tmp_path):
    shards(tmp_path, as_safetensors, ["1", "2"], "shards.json")
    assert_same(tensors_of(tmp_path / "shards.json"), ONE | TWO)
    shards(tmp_path, as_torch, ["3", "4"], "others")
    assert_same(tensors_of(tmp_path / "others"), ONE | TWO)


@pytest.mark.parametrize(
    "content", ["{}", '{"hidden_size": 3}', '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map"']
)
def test_json_that_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    refused(tmp_path / "a.json", "Cannot read")


def test_an_archive_of_something_else_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a.py", "print(1)")
    refused(tmp_path / "a.whl", "there is no reader for '.whl', and it holds a zip archive")
