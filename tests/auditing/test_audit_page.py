"""The Python of `docs/audit.md` runs, and the page tells every key of a row."""

import re
from pathlib import Path

from opnorm.auditing.audits import audit
from opnorm.auditing.report import Row

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"


def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opnorm.audit", audit, raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)


def test_the_page_explains_every_key_of_a_row():
    text = PAGE.read_text(encoding="utf-8")
    for key in Row._fields:
        assert f"`{key}`" in text, key
