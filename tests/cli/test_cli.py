import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from opnorm.cli import frameworks as backends
from opnorm.cli import main as cli


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def hide(monkeypatch, *modules):
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in modules else find_spec(name))


def assert_fails_in_one_line(result, *words):
    assert result.exit_code != 0
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.fixture
def keras_settings(tmp_path, monkeypatch):
    """No KERAS_BACKEND, and a Keras configuration folder of the test's own."""
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    return tmp_path / "keras.json"


def test_version_is_the_installed_one():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"opnorm {version('opnorm')}\n")


def test_help_names_the_commands():
    assert "demo" in invoke("--help").stdout


def test_the_command_line_imports_no_framework():
    code = "import sys, opnorm.cli.main; print(sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_an_unknown_backend_is_refused_in_one_line(tmp_path):
    assert_fails_in_one_line(invoke("demo", "--backend", "theano", "--output", tmp_path), "theano", "torch")


def test_a_backend_that_is_not_installed_is_named_with_its_remedy(monkeypatch, tmp_path):
    hide(monkeypatch, "jax")
    assert_fails_in_one_line(invoke("demo", "--backend", "jax", "--output", tmp_path), 'pip install "opnorm[jax]"')


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch, tmp_path):
    hide(monkeypatch, "mlxtend", "plotly")
    assert_fails_in_one_line(invoke("demo", "--output", tmp_path), "mlxtend, plotly", 'pip install "opnorm[demo]"')


def test_an_output_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    assert_fails_in_one_line(invoke("demo", "--output", tmp_path / "file" / "folder"), "folder")


def test_no_folder_is_made_when_nothing_can_be_written_into_it(monkeypatch, tmp_path):
    hide(monkeypatch, "plotly")
    invoke("demo", "--output", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_no_epochs_is_refused(tmp_path):
    assert invoke("demo", "--epochs", 0, "--output", tmp_path).exit_code != 0


def test_the_request_wins_over_the_environment(monkeypatch, keras_settings):
    monkeypatch.setattr(backends, "find_spec", lambda name: True)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert (backends.choose("torch"), backends.choose()) == ("torch", "jax")


def test_without_the_environment_kerass_own_setting_counts(monkeypatch, keras_settings):
    monkeypatch.setattr(backends, "find_spec", lambda name: True)
    keras_settings.write_text(json.dumps({"backend": "torch"}))
    assert backends.choose() == "torch"


@pytest.mark.parametrize("setting", ['{"backend": "tensorflow"}', "{}", "not JSON", None])
def test_without_a_usable_setting_the_first_installed_backend_counts(monkeypatch, keras_settings, setting):
    monkeypatch.setattr(backends, "find_spec", lambda name: name != "tensorflow" or None)
    if setting is not None:
        keras_settings.write_text(setting)
    assert backends.choose() == "jax"


def test_without_any_backend_the_remedy_is_named(monkeypatch, keras_settings):
    hide(monkeypatch, *backends.BACKENDS)
    with pytest.raises(backends.MissingError, match=r"pip install"):
        backends.choose()


def test_a_backend_other_than_the_running_one_is_refused(monkeypatch):
    class Running:
        class backend:  # noqa: N801 - Keras's name
            @staticmethod
            def backend():
                return "jax"

    monkeypatch.setattr(backends, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "keras", Running)
    assert backends.choose("jax") == "jax"
    with pytest.raises(backends.MissingError, match="already runs on jax"):
        backends.choose("torch")


def test_what_an_import_prints_is_shown_only_if_it_fails(capfd):
    with backends._standard_error_held_back():
        subprocess.run(["sh", "-c", "echo chatter >&2"], check=True)
    with pytest.raises(subprocess.CalledProcessError), backends._standard_error_held_back():
        subprocess.run(["sh", "-c", "echo reason >&2; exit 1"], check=True)
    assert capfd.readouterr().err == "reason\n"
