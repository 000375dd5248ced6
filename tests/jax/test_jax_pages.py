"""The Python of the pages on JAX runs; what needs flax or equinox, where these are installed."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / "jax.md", ROOT / "docs" / "migration-jax.md"]
NEEDS = {"": "optax", " nnx": "flax.nnx", " equinox": "equinox", " haiku": "haiku"}


@pytest.mark.parametrize("kind", NEEDS, ids=NEEDS.values())
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_python_of_the_page_runs(page, kind, capsys):
    pytest.importorskip(NEEDS[kind])
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python( \w+)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert all(told in NEEDS for told, _ in blocks)
    namespace = {name: import_module(home) for name, home in (("jax", "jax"), ("jnp", "jax.numpy"))}
    namespace["opnorm"] = import_module("opnorm.jax") and import_module("opnorm")
    for told, block in blocks:
        if told == kind:
            exec(compile(block, str(page), "exec"), namespace)
    for shown in re.findall(r"^```\n(path .*?)^```", text, re.DOTALL | re.MULTILINE) if not kind else []:
        assert shown in capsys.readouterr().out


def test_the_part_of_the_page_on_transformers_that_is_on_jax_runs():
    text = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
    namespace = {}
    for block in re.findall(r"^```python jax\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, "transformers.md", "exec"), namespace)
    assert "muon" in namespace


def test_the_example_holds_its_cap_and_is_unsure_far_from_the_data(monkeypatch):
    pytest.importorskip("flax.nnx")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    example = import_module("sngp_nnx")
    result = example.measured(*example.trained(example.VARIANTS["SNGP, cap 0.95"], 2, 0))
    assert result.norm < 0.95 * 1.001
    assert result.far > result.near


def test_the_blocks_on_jax_in_the_guides_run():
    pages = [page for page in (ROOT / "docs").glob("*.md") if "```python jax\n" in page.read_text(encoding="utf-8")]
    assert pages
    for page in pages:
        namespace = {}
        for block in re.findall(r"^```python jax\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            exec(compile(block, str(page), "exec"), namespace)


def test_the_lines_of_the_readme_run():
    jax, optax = import_module("jax"), pytest.importorskip("optax")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```py\n(import optax\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    namespace = {}
    exec(compile(block, "README.md", "exec"), namespace)
    params = {"kernel": jax.numpy.eye(3, 4) + 1}
    updates, _ = namespace["optimizer"].update(params, namespace["optimizer"].init(params), params)
    norm = jax.numpy.linalg.norm(optax.apply_updates(params, updates)["kernel"], 2)
    assert norm == pytest.approx(1.0, rel=1e-3)
