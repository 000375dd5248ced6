"""The gallery shows its scripts as they are, what they printed, and pictures that are there, small, and described."""

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
sys.path.insert(0, str(GALLERY))
render = import_module("render")
sys.path.remove(str(GALLERY))
PAGES = render.pages()
LARGEST, ALL = 200 * 1024, 1536 * 1024  # bytes
SHOWN = re.compile(r"!\[([^]]*)\]\(pictures/(\S+?)\)")
SCRIPT = """
import sys
from PIL import Image

LIMIT = 3  # a comment


@staticmethod
def twice(x):
    return 2 * x


print(twice(LIMIT), sys.argv[1:])
Image.linear_gradient("L").resize((900, 300)).save("out.png")
"""
PAGE = """# A page

![Grey](pictures/page-out.png)

```
python examples/script.py --output out
```

<!-- code twice LIMIT -->
<!-- end -->

<!-- printed -->
<!-- end -->
"""


def shown(path):
    """Return the descriptions and the names of a page's pictures."""
    return SHOWN.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_is_its_scripts(name):
    text = PAGES[name].read_text(encoding="utf-8")
    assert render.with_code(text) == text, f"`make gallery PAGES={name}` takes the script's code into the page"


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_was_printed_by_the_script_as_it_is(name):
    text = PAGES[name].read_text(encoding="utf-8")
    script, _ = render.command_of(text)
    assert f"<!-- printed {render.digest(script)} -->" in text, (
        f"{script.name} has changed: `make gallery PAGES={name}`"
    )


@pytest.mark.parametrize("name", [*PAGES, "index"])
def test_the_pictures_of_a_page_are_there_small_and_described(name):
    found = shown(GALLERY / f"{name}.md")
    assert found
    for description, picture in found:
        assert description
        assert (GALLERY / "pictures" / picture).stat().st_size <= LARGEST


def test_every_picture_is_shown_and_all_together_are_small():
    pictures = list((GALLERY / "pictures").iterdir())
    assert {path.name for path in pictures} == {name for page in GALLERY.glob("*.md") for _, name in shown(page)}
    assert sum(path.stat().st_size for path in pictures) <= ALL


def test_the_index_has_every_page_with_its_thumbnail():
    text = (GALLERY / "index.md").read_text(encoding="utf-8")
    for name in PAGES:
        assert f"](pictures/{name}.png)]({name}.md)" in text
        assert f"[{PAGES[name].read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}]({name}.md)" in text


def test_a_page_gets_its_scripts_code_what_it_printed_and_its_pictures(tmp_path, monkeypatch):
    for folder in ("examples", "pictures"):
        (tmp_path / folder).mkdir()
    script, page = tmp_path / "examples" / "script.py", tmp_path / "page.md"
    script.write_text(SCRIPT)
    page.write_text(PAGE)
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "PICTURES", tmp_path / "pictures")
    render.render("page", page)
    text = page.read_text()
    code = "LIMIT = 3  # a comment\n\n\n@staticmethod\ndef twice(x):\n    return 2 * x"
    assert f"<!-- code twice LIMIT -->\n\n```python\n{code}\n```\n\n<!-- end -->" in text
    assert f"<!-- printed {render.digest(script)} -->\n\n```\n6 ['--output', 'out']\n```" in text
    assert render.with_code(text) == text
    with (
        Image.open(tmp_path / "pictures" / "page-out.png") as picture,
        Image.open(tmp_path / "pictures/page.png") as small,
    ):
        assert np.ptp(np.asarray(picture.convert("L")).astype(int)) == 255
        assert (picture.size, small.size) == ((900, 300), (480, 160))
