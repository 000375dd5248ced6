"""The Python of the pages on PyTorch runs, and the example prints what is true."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "torch.md", ROOT / "docs" / "migration-torch.md"]


@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_python_of_the_page_runs(page, capsys):
    text = page.read_text(encoding="utf-8")
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, str(page), "exec"), namespace)
    for shown in re.findall(r"^```\n(path .*?)^```", text, re.DOTALL | re.MULTILINE):
        assert shown in capsys.readouterr().out


def test_the_constrained_critic_never_finds_more_than_the_distance(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = import_module("wgan_torch")
    result = example.trained(example.VARIANTS["opnorm.torch.SpectralNorm"], 15, 0)
    assert result.lipschitz <= 1.01
    assert 0 < result.found <= result.after
