"""The README's Python runs, block after block in one namespace."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


OTHERS = {"tf1.md", "torch.md", "migration-torch.md", "jax.md", "migration-jax.md"}  # run by the tests of these wings
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if "```python\n" in page.read_text("utf-8") and page.name not in OTHERS
]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_python_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)
