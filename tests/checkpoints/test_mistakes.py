"""Files that are no checkpoint: the error names the path as it was typed, what the file is, and what to do."""

import gzip

import numpy as np
import pytest
import torch
from network_files import write
from readers import refused
from samples import FILES

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>404", "web page"),
        (b"<html lang=en>", "web page"),
        (b"\xef\xbb\xbf<!doctype html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.keras", "a.onnx", "a.bin", "a.gguf", "a"])
def test_what_happened_to_a_file_is_said_with_the_remedy(tmp_path, content, words, name):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, words)


@pytest.mark.parametrize("name", ["a.pkl", "a.mlmodel", "a", "a.pbtxt", "a.distcp"])
def test_an_unknown_ending_is_answered_by_what_can_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    refused(tmp_path / name, r"What can be read: .*\.safetensors .*\.keras .*\.onnx .*\.pt")


def test_a_file_of_another_kind_is_answered_by_its_ending(tmp_path):
    write(tmp_path / "a.npz", {"w": np.eye(2, dtype=np.float32)})
    refused(tmp_path / "a.npz", r"it holds safetensors, which has the ending .*\.safetensors")
    FILES["a.h5"](tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", r"it holds HDF5, which has the ending \.hdf5 or \.h5")


@pytest.mark.parametrize("name", ["saved_model.pb", "frozen.pb", "model.ckpt-1.index"])
def test_a_pickle_under_a_name_of_tensorflows_is_said_to_be_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    refused(tmp_path / name, r"is something else, but it holds a pickle, which has the ending .*\.pt")


def test_a_folder_is_answered_by_what_is_in_it(tmp_path):
    refused(tmp_path, "it is a folder, no file. What can be read: ")
    for i in range(7):
        write(tmp_path / f"model-{i}.safetensors", {"w": np.eye(2, dtype=np.float32)})
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"name one in it: 'model-0\.safetensors', .*'model-4\.safetensors' and 2 more")
    (tmp_path / "my.safetensors.index.json").write_text("{}")
    refused(tmp_path, r"name one in it: 'my\.safetensors\.index\.json'$")


@pytest.mark.parametrize("typed", ["a.gguf", "./a.gguf", "folder/../a.gguf"])
def test_the_path_is_named_as_it_was_typed(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.gguf").write_bytes(b"nothing")
    for path in (typed, typed.replace("a.gguf", "missing.npz"), "."):
        with pytest.raises(CheckpointError) as error:
            # `open_checkpoint` takes what the shell hands on; pathlib drops no more than "./"
            open_checkpoint(path)
        assert str(error.value).startswith(f"Cannot read {path.removeprefix('./') or '.'!r}: ")


def test_a_whole_module_is_answered_by_how_to_save_its_weights(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"save its state_dict: torch\.save\(model\.state_dict\(\), path\)")


def test_a_habit_of_pytorchs_examples_is_read(tmp_path):
    torch.save({"state_dict": {"w": torch.eye(2)}}, tmp_path / "model_best.pth.tar")
    assert len(open_checkpoint(tmp_path / "model_best.pth.tar").weights) == 1


def test_a_link_is_read_by_its_own_ending(tmp_path):
    blob = write(tmp_path / "4d7a2146", {"w": np.eye(2, dtype=np.float32)})  # as the cache of Hugging Face has it
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert len(open_checkpoint(tmp_path / "model.safetensors").weights) == 1
