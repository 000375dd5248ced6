"""The Python of the pages on PyTorch runs, and the example prints what is true."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

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


def test_the_blocks_on_pytorch_in_the_guides_run():
    pages = [page for page in (ROOT / "docs").glob("*.md") if "```python torch\n" in page.read_text(encoding="utf-8")]
    assert pages
    for page in pages:
        namespace = {}
        for block in re.findall(r"^```python torch\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            exec(compile(block, str(page), "exec"), namespace)


def test_the_lines_of_the_readme_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n(import torch\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace = {"critic": torch.nn.Linear(3, 2)}
    exec(compile(block, "README.md", "exec"), namespace)
    namespace["critic"](torch.ones(1, 3)).sum().backward()
    namespace["optimizer"].step()
    assert torch.linalg.matrix_norm(namespace["critic"].weight, 2).item() == pytest.approx(1.0, rel=1e-3)


def test_the_constrained_critic_never_finds_more_than_the_distance(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = import_module("wgan_torch")
    result = example.trained(example.VARIANTS["opnorm.torch.SpectralNorm"], 15, 0)
    assert result.lipschitz <= 1.01
    assert 0 < result.found <= result.after


def test_the_capped_transformer_trains_where_the_other_blows_up(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = import_module("char_transformer")
    free, capped = (example.trained(variant, 40, 0) for variant in example.VARIANTS[1:])
    assert not max(free.losses) < 100  # it is there by its 20th step
    assert max(capped.losses) < 7  # log(94) = 4.5 nats are those of one who knows nothing
    assert capped.end < 3.2
    assert capped.logits <= 0.25 * 1.02  # of each head (32, 8): at most sqrt(8 / 32) times itself
    example.draw(tmp_path / "loss.png", {example.VARIANTS[1]: [free], example.VARIANTS[2]: [capped]})
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
