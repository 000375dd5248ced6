"""The Python of `docs/audit.md` runs, and the page tells every key of a row."""

import io
import re
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from opnorm.auditing.audits import audit
from opnorm.auditing.report import Row

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_python_of_the_page_runs_and_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opnorm.audit", audit, raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert f"```\n{capsys.readouterr().out}```" in PAGE.read_text(encoding="utf-8")


def test_the_page_explains_every_key_of_a_row():
    text = PAGE.read_text(encoding="utf-8")
    for key in Row._fields:
        assert f"`{key}`" in text, key


def test_the_terminal_of_the_page_is_what_a_terminal_shows(monkeypatch):
    try:
        files = metadata.files("silero-vad") or []
    except metadata.PackageNotFoundError:
        pytest.skip("silero-vad is not installed")
    path = next(file.locate() for file in files if file.name == "silero_vad_16k.safetensors")
    console = Console(file=io.StringIO(), width=80)
    console.print(audit(path))
    command = "$ opnorm audit silero_vad_16k.safetensors"
    assert f"```\n{command}\n{console.file.getvalue()}```" in PAGE.read_text(encoding="utf-8")
