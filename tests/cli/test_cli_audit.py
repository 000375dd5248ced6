import csv
import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from network_files import norm, tensors, write
from typer.testing import CliRunner

from opnorm.cli import main as cli

FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def assert_fails_in_one_line(result, *words):
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cli") / "model.safetensors")


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    """A model whose two matrices have the norms 1 and 0.5."""
    values = {"a.weight": np.eye(3, dtype=np.float32), "b.weight": np.eye(3, dtype=np.float32) / 2}
    return write(tmp_path_factory.mktemp("unit") / "unit.safetensors", values | {"a.bias": np.ones(3, np.float32)})


def test_a_pipe_gets_plain_lines_with_full_names(model):
    result = invoke("audit", model)
    assert result.exit_code == 0
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    for name in tensors():
        assert name in result.stdout
    assert result.stderr == ""


def test_json_on_stdout_is_nothing_but_json(model):
    result = invoke("audit", model, "--json", "-")
    assert len(json.loads(result.stdout)["rows"]) == len(tensors())
    assert result.stderr == ""


def test_csv_on_stdout_is_nothing_but_csv(model):
    assert len(list(csv.DictReader(io.StringIO(invoke("audit", model, "--csv", "-").stdout)))) == len(tensors())


def test_files_are_whole_and_nothing_else_is_left(model, tmp_path):
    outputs = [tmp_path / name for name in ("a.json", "a.csv", "a.html")]
    result = invoke("audit", model, "--json", outputs[0], "--csv", outputs[1], "--html", outputs[2])
    assert (result.exit_code, result.stdout) == (0, "")
    assert sorted(tmp_path.iterdir()) == sorted(outputs)
    assert json.loads(outputs[0].read_text())["schema"] == 1
    assert outputs[2].read_text().rstrip().endswith("</html>")


def test_a_file_that_cannot_be_replaced_stays_and_nothing_is_left(model, tmp_path):
    (tmp_path / "folder").mkdir()
    assert_fails_in_one_line(invoke("audit", model, "--json", tmp_path / "folder"), "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_missing_folder_is_found_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr("opnorm.auditing.audits.audit", lambda *_, **__: pytest.fail("worked first"))
    assert_fails_in_one_line(invoke("audit", model, "--json", tmp_path / "no" / "a.json"), "no such folder")


def test_two_outputs_on_stdout_are_refused(model):
    assert_fails_in_one_line(invoke("audit", model, "--json", "-", "--csv", "-"), "only one")


@pytest.mark.parametrize("command", [["audit"], ["check", "--max-norm", "1"], ["diff", "other.npz"]])
@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"\x93NUMPY"])
def test_a_file_that_cannot_be_read_fails_in_one_line(tmp_path, command, content):
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    assert_fails_in_one_line(invoke(*command, path))


def test_options_that_make_no_sense_fail(model):
    assert_fails_in_one_line(invoke("audit", model, "--tolerance", "-1"), "tolerance")
    assert_fails_in_one_line(invoke("check", model, "--max-norm", "nan"), "--max-norm")
    assert invoke("audit", model, "--jobs", "0").exit_code == 2


def test_globs_choose_tensors(model):
    result = invoke("audit", model, "--json", "-", "--include", "layer.*", "--include", "x", "--exclude", "*.bias")
    names = [row["name"] for row in json.loads(result.stdout)["rows"]]
    assert names == [f"layer.{i}.weight" for i in range(5)]


# ---- check ----


def test_a_check_that_holds_exits_with_zero(unit):
    result = invoke("check", unit, "--max-norm", "1")
    assert result.exit_code == 0
    assert result.stdout == "2 of 2 norms are proved to be at most 1; 1 are no linear map and were not checked\n"


def test_a_check_that_is_violated_exits_with_one_and_names_the_tensor(unit):
    result = invoke("check", unit, "--max-norm", "0.999")
    assert result.exit_code == 1
    assert result.stdout.startswith("a.weight: violated: the norm is at least 1\n")
    assert "b.weight" not in result.stdout


def test_a_check_that_cannot_be_proved_exits_with_one_and_says_so(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    path = write(tmp_path / "m.safetensors", {"w.weight": matrix})
    limit = norm(matrix) * 1.01
    assert invoke("check", path, "--max-norm", limit).exit_code == 0
    result = invoke("check", path, "--max-norm", limit, "--time-limit", "0")
    assert result.exit_code == 1
    assert "w.weight: not proved: the norm is between" in result.stdout


def test_a_tensor_with_a_nan_does_not_pass(model):
    result = invoke("check", model, "--max-norm", "1e9")
    assert result.exit_code == 1
    assert "layer.2.weight: not proved: 12 of 12 entries are NaN" in result.stdout


def test_a_check_of_nothing_exits_with_two(unit):
    assert_fails_in_one_line(invoke("check", unit, "--max-norm", "1", "--include", "*.bias"), "nothing to check")
    assert_fails_in_one_line(invoke("check", unit, "--max-norm", "1", "--include", "no such"), "nothing to check")


# ---- diff ----


def test_a_diff_shows_a_line_a_tensor(unit, model):
    result = invoke("diff", unit, unit)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["tensor", "a.bias", "a.weight", "b.weight"]


def test_a_diff_on_stdout_is_nothing_but_json(unit):
    document = json.loads(invoke("diff", unit, unit, "--json", "-").stdout)
    assert {row["name"]: row["difference"] for row in document["rows"]}["a.weight"] == {"lower": 0, "upper": 0}


# ---- the shell ----


def run(*arguments):
    program = "import sys; from opnorm.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


def test_no_framework_is_imported_for_a_file(unit):
    program = f"""
import sys
from typer.testing import CliRunner
from opnorm.cli import main as cli
assert CliRunner().invoke(cli.app, ["audit", {str(unit)!r}]).exit_code == 0
print(sorted({FRAMEWORKS!r} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_a_small_file_is_audited_soon(tmp_path):
    values = {f"layer.{i}.weight": np.ones((256, 256), dtype=np.float32) for i in range(4)}  # 1 MiB
    path = write(tmp_path / "small.safetensors", values)
    begin = time.perf_counter()
    assert run("audit", path).returncode == 0
    assert time.perf_counter() - begin < 6  # the goal of 1.5 s is measured in benchmarks/; machines here are shared


def test_a_reader_that_has_seen_enough_is_no_error(unit):
    program = f"{sys.executable} -c 'from opnorm.cli.main import main; main()' audit {unit} --json - | head -1"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("{\n", "")
