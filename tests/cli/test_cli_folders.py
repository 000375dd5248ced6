"""The commands on folders."""

import json

import numpy as np
import pytest
from families import LLAMA, write
from samples import FILES
from typer.testing import CliRunner

from opnorm.auditing.sandbox import is_native
from opnorm.cli import main as cli


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model", *LLAMA[::-1])


def test_every_command_takes_a_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    audited = json.loads(invoke("audit", ".", "--json", "-").stdout)
    assert (audited["file"], len(audited["rows"])) == (".", len(LLAMA[1]))
    assert invoke("check", folder, "--max-norm", "1e6").exit_code == 0
    compared = invoke("diff", folder, folder / "model.safetensors")
    assert compared.exit_code == 0, compared.stderr


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "unet/config.json", "model_index.json"])
def test_no_output_replaces_what_is_read_in_a_folder(folder, name):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    content = file.read_bytes() if file.exists() else b"{}"
    file.write_bytes(content)
    result = invoke("audit", folder, "--json", file)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert file.read_bytes() == content
    assert invoke("audit", folder, "--json", folder / "report.json").exit_code == 0


def test_a_folder_is_read_apart_where_native_code_reads_a_file_of_it(tmp_path):
    assert not is_native(str(write(tmp_path / "plain", {"w": np.eye(2)})))
    FILES["a.h5"](tmp_path / "tf_model.h5")
    assert is_native(str(tmp_path))
    result = invoke("audit", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "kernel" in result.stdout


@pytest.mark.parametrize(("name", "native"), [("a.h5", True), ("a.keras", True), ("a.safetensors", False)])
def test_a_file_of_an_unknown_name_is_read_apart_where_native_code_reads_it(tmp_path, name, native):
    path = FILES[name](tmp_path / name).rename(tmp_path / "blob")
    assert is_native(str(path)) == native
    assert invoke("audit", path).exit_code == 0


def test_a_folder_without_a_model_fails_in_one_line(tmp_path):
    result = invoke("audit", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "it is a folder" in result.stderr
