"""The documentation's front door: the reference is complete, links lead somewhere, every page is in a menu."""

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path
from posixpath import normpath

import pytest

import opnorm

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
CALLBACKS = {"opnorm.torch.lightning.SpectralMonitor", "opnorm.torch.transformers.SpectralMonitor"}


@pytest.fixture
def site(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    return import_module("build")


def referred(*pages):
    """Return the names that pages of the reference describe."""
    texts = [(REFERENCE / f"{page}.md").read_text(encoding="utf-8") for page in pages]
    return [name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


def listed(package):
    """Return `__all__` of a package, from its source: a framework need not be installed."""
    path = ROOT / "src" / "opnorm" / package
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    stated = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    return {f"opnorm.{package}.{name}" for name in (stated[0] if stated else classes)}


def test_the_reference_describes_every_public_name_once():
    for pages, names in [
        (("keras", "truth"), {f"opnorm.{name}" for name in opnorm.__all__}),
        (("torch",), listed("torch") | CALLBACKS),
        (("jax",), listed("jax")),
        (("tf1",), listed("tf1")),
    ]:
        found = referred(*pages)
        assert sorted(found) == sorted(set(found))
        assert set(found) == names


def test_the_page_of_all_names_has_them():
    text = (REFERENCE / "index.md").read_text(encoding="utf-8")
    for name in referred("keras", "truth", "torch", "jax", "tf1"):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), name
    for command in ("audit", "check", "diff", "demo"):
        assert f"\nopnorm {command} " in text


def test_every_page_is_in_a_menu_and_every_link_leads_to_a_file(site):
    pages = site.sources()
    settings = site.settings(pages.values())
    assert [place for place in pages.values() if not re.search(rf" {re.escape(place)}$", settings, re.MULTILINE)] == []
    for source in pages:
        site.relinked((ROOT / source).read_text(encoding="utf-8"), source, pages, set())


def test_links_are_turned_to_where_their_files_stand_on_the_site(site):
    pages, linked = site.sources(), set()
    text = "[a](../benchmarks/README.md#x) [b](../CHANGELOG.md) [c](https://x.org/y.md)\n```\n[d](e.md)\n```\n"
    turned = site.relinked(text, "docs/limits.md", pages, linked)
    assert turned == "[a](benchmarks.md#x) [b](changelog.md) [c](https://x.org/y.md)\n```\n[d](e.md)\n```\n"
    assert site.relinked("![](figures/norms.svg)", "docs/limits.md", pages, linked) == "![](figures/norms.svg)"
    assert linked == {"docs/figures/norms.svg"}
    with pytest.raises(SystemExit, match="leads nowhere"):
        site.relinked("[a](gone.md)", "docs/limits.md", pages, linked)


def test_new_pages_stand_in_the_menu_of_the_gallery_or_in_the_last(site):
    lines = site.settings(["index.md", "gallery/new.md", "strange.md"]).splitlines()
    assert lines.index("      - gallery/new.md") == lines.index("      - All: gallery/index.md") + 1
    assert lines.index("      - strange.md") == lines.index("      - Changes: changelog.md") + 1
    assert not [line for line in lines if line.endswith("/*")]


def test_links_that_lead_nowhere_and_things_from_elsewhere_are_found(site, tmp_path):
    links = import_module("links")
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#here">b</a><a href="#top">t</a><img src="x.svg">'
    )
    (tmp_path / "b.html").write_text(
        '<a href="a.html#there">a</a><script src="https://x.org/y.js"></script><p id="here">'
    )
    assert links.mistakes(tmp_path) == [
        "a.html: x.svg leads nowhere",
        "b.html: loads https://x.org/y.js",
        "b.html: a.html#there leads nowhere",
    ]


def test_every_plot_of_the_benchmarks_is_drawn_from_its_table(site, tmp_path):
    plots = import_module("plots")
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    drawn = plots.draw_tables(text, tmp_path)
    assert set(drawn) == set(plots.PLOTS)
    assert all((tmp_path / f"{name}.svg").stat().st_size < 200_000 for name in drawn)
    first = plots.table(text, "native")[1]
    assert first["variant"] == "opnorm.torch.constrain"
    assert plots.table(text, "gpu") == []  # no figures yet


def test_the_readme_installs_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    asked = {extra for some in re.findall(r'(?:"\.|whl\)|")\[([\w,]+)\]"', text) for extra in some.split(",")}
    assert {"keras", "jax", "torch", "legacy"} <= asked <= set(extras)


def test_pictures_of_the_front_page_are_small():
    for name in re.findall(r"!\[[^]]*\]\((\S+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / name).stat().st_size < 200 * 1024


def test_every_page_with_a_line_in_a_menu_is_within_two_clicks_of_the_readme(site):
    lines = site.SETTINGS.read_text(encoding="utf-8")
    pages = {source: place for source, place in site.sources().items() if f" {place}\n" in lines}
    reached = {"README.md"}
    for _ in range(2):
        for source in sorted(reached):
            text = (ROOT / source).read_text(encoding="utf-8")
            targets = {normpath(f"{Path(source).parent.as_posix()}/{link}") for link in site.LINK.findall(text)}
            reached |= targets & set(pages)
    assert sorted(set(pages) - reached) == []


def test_no_link_is_called_by_the_name_of_a_file(site):
    called = re.compile(r"\[[\w./-]+\.md[^]]*\]\(")
    assert [source for source in site.sources() if called.search((ROOT / source).read_text(encoding="utf-8"))] == []


def test_the_list_of_commands_has_each_sentence_whole(site):
    told = "* `audit`: Show the norm of...\n* `demo`: Train.\n\n## `opnorm audit`\n\nShow the norm of every tensor.\n"
    assert site.whole_summaries(told).startswith("* `audit`: Show the norm of every tensor.\n* `demo`: Train.\n")
