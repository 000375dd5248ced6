"""Lay out the pages of the site in `build/pages`, and the settings in `build/mkdocs.yml`.

The pages are those of the repository, README first, with what only a site needs: links that lead out of `docs/` are
turned to where their files stand on the site, plots are drawn of the benchmarks' tables, commands' options are listed.

Run: python docs/site/build.py && mkdocs build --strict --config-file build/mkdocs.yml
"""

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from posixpath import normpath, relpath

from plots import draw_tables

ROOT = Path(__file__).parents[2]
DOCS, BUILD = ROOT / "docs", ROOT / "build"
PAGES = BUILD / "pages"
SETTINGS = DOCS / "site" / "mkdocs.yml"
ELSEWHERE = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md"}  # pages that docs/ does not hold
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def sources():
    """Return the repository's pages, each with its place on the site."""
    outside = {path.name: path.name.lower() for path in ROOT.glob("*.md")} | ELSEWHERE
    inside = {path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    return outside | inside


def place_of(file, pages):
    """Return where a file of the repository stands on the site; what is no page keeps its path, without `docs/`."""
    return pages.get(file) or file.removeprefix("docs/")


def relinked(text, source, pages, linked):
    """Return the page with its links turned; the files that are no pages are added to `linked`."""

    def turned(match):
        target = normpath(f"{Path(source).parent.as_posix()}/{match[1]}")
        if not (ROOT / target).is_file():
            raise SystemExit(f"{source}: the link to {match[1]} leads nowhere")
        if target not in pages:
            linked.add(target)
        return relpath(place_of(target, pages), Path(pages[source]).parent.as_posix())

    return outside_fences(text, lambda part: LINK.sub(turned, part))


def outside_fences(text, change):
    """Return the text with `change` made of all that is no block of code."""
    ends = [0, *(end for match in FENCE.finditer(text) for end in match.span()), len(text)]
    parts = [text[start:end] for start, end in pairwise(ends)]
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def plain_fences(text):
    """Return the text with fences that name a language alone: what tests read behind it, and `py`, is dropped."""
    return re.sub(r"^```(?:python \w+|py)$", "```python", text, flags=re.MULTILINE)


def with_plots(text, drawn):
    """Return the text with each plot before its table."""
    for name in drawn:
        text = text.replace(f"<!-- {name}:begin -->", f"![{drawn[name]}](figures/{name}.svg)\n\n<!-- {name}:begin -->")
    return text


def write(place, text):
    """Write a page."""
    path = PAGES / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def front(place, text):
    """Return the page; the first of all has no menu at its side, which would hold itself alone."""
    return f"---\nhide: [navigation]\n---\n{text}" if place == "index.md" else text


def write_pages():
    """Write all pages, and copy the files that they show or link to."""
    pages, linked = sources(), set()
    for source, place in pages.items():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), source, pages, linked)
        write(place, front(place, plain_fences(text)))
    for file in linked:
        target = PAGES / place_of(file, pages)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, target)


def append_commands():
    """Add to the page of the commands what their own help tells."""
    command = [sys.executable, "-m", "typer", "opnorm.cli.main", "utils", "docs", "--name", "opnorm"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"TERM": "dumb"})
    with (PAGES / "reference" / "commands.md").open("a", encoding="utf-8") as page:
        page.write(whole_summaries(re.sub(r"^# `opnorm`$", "", told.stdout, flags=re.MULTILINE)))


def whole_summaries(text):
    """Return what the commands' help tells, each command's sentence in the list of them whole, not cut short."""
    sentences = dict(re.findall(r"^## `\w+ (\w+)`\n\n(.+)$", text, re.MULTILINE))
    return re.sub(
        r"^\* `(\w+)`: .*\.\.\.$", lambda line: f"* `{line[1]}`: {sentences[line[1]]}", text, flags=re.MULTILINE
    )


def settings(places):
    """Return the settings, the pages of the gallery in its menu, and in the last one those that are in no other."""
    text = SETTINGS.read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md$", text, re.MULTILINE))
    gallery, others = [], []
    for place in sorted(set(places) - listed):
        (gallery if place.startswith("gallery/") else others).append(place)
    return with_items(with_items(text, "gallery/*", gallery), "others/*", others)


def with_items(text, mark, places):
    """Return the text with the line of `mark` once for each of the places."""
    return re.sub(
        rf"^(.*){re.escape(mark)}\n", lambda line: "".join(f"{line[1]}{p}\n" for p in places), text, flags=re.M
    )


def main():
    """Lay everything out afresh."""
    shutil.rmtree(PAGES, ignore_errors=True)
    write_pages()
    append_commands()
    benchmarks = PAGES / "benchmarks.md"
    drawn = draw_tables(benchmarks.read_text(encoding="utf-8"), PAGES / "figures")
    benchmarks.write_text(with_plots(benchmarks.read_text(encoding="utf-8"), drawn), encoding="utf-8")
    shutil.copy(DOCS / "site" / "site.css", PAGES)
    (BUILD / "mkdocs.yml").write_text(settings(sources().values()), encoding="utf-8")


if __name__ == "__main__":
    main()
