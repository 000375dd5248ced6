"""Run the scripts of the gallery, and put their code, what they print and what they draw into its pages.

A page is written by hand, but for two kinds of places, which end at `<!-- end -->`. `<!-- code NAME ... -->` gets the
definitions of these names. `<!-- printed ... -->` gets what the script printed, and a digest of the script that did: a
test compares it, so that no page keeps the figures of another script. The command that is run is the page's first that
starts with `python examples/`; pictures in its output folder come to `pictures/`, each with a page's name before its
own; a thumbnail of the page's first stands beside them.

Run: make gallery            (all pages: seven minutes of processor time)
     make gallery PAGES=wgan
"""

import ast
import hashlib
import os
import re
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

HERE = Path(__file__).parent
ROOT, PICTURES = HERE.parents[1], HERE / "pictures"
LARGEST = 200 * 1024  # bytes of a picture
THUMBNAIL = (480, 320)  # pixels
# Packages whose version is told, by the name that a script imports.
TOLD = {"jax": "jax", "keras": "keras", "sklearn": "scikit-learn", "torch": "torch"}
FIRST = re.compile(r"!\[[^]]*\]\(pictures/(\S+)\)")
COMMAND = re.compile(r"^python (examples/\w+\.py)(.*)$", re.MULTILINE)
CODE = re.compile(r"<!-- code ([\w ]+) -->.*?<!-- end -->", re.DOTALL)
PRINTED = re.compile(r"<!-- printed.*?-->.*?<!-- end -->", re.DOTALL)


def pages():
    """Return the pages that show a script, by name."""
    return {path.stem: path for path in sorted(HERE.glob("*.md")) if COMMAND.search(path.read_text(encoding="utf-8"))}


def command_of(text):
    """Return the path of a page's script, and its arguments."""
    script, arguments = COMMAND.search(text).groups()
    return ROOT / script, shlex.split(arguments)


def with_code(text):
    """Return the text of a page with the definitions that it shows as its script has them."""
    source = command_of(text)[0].read_text(encoding="utf-8")
    return CODE.sub(
        lambda found: _place(f"code {found[1]}", f"```python\n{_excerpt(source, found[1].split())}\n```"), text
    )


def _place(title, content):
    return f"<!-- {title} -->\n\n{content}\n\n<!-- end -->"


def _excerpt(source, names):
    """Return the definitions of `names` at the top of a module, in its order, decorators and all."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        for name in _defined(node):
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            found[name] = (first, "\n".join(lines[first - 1 : node.end_lineno]))
    return "\n\n\n".join(text for _, text in sorted({found[name] for name in names}))


def _defined(node):
    targets = node.targets if isinstance(node, ast.Assign) else [node]
    return [getattr(target, "name", getattr(target, "id", "")) for target in targets]


def digest(script):
    """Return what tells a script from another, or from what it was."""
    return hashlib.sha256(script.read_bytes()).hexdigest()[:12]


def run(script, arguments, folder):
    """Return what a script prints in an empty folder, and how many seconds of processor time it took."""
    before = _processor_time()
    ran = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ran.stdout, _processor_time() - before


def _processor_time():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment():
    look = {"MATPLOTLIBRC": str(HERE / "matplotlibrc"), "COLUMNS": "100", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {"KERAS_BACKEND": "jax", **os.environ, **look}


def with_printed(text, printed, seconds):
    """Return the text of a page with what its script printed."""
    script, _ = command_of(text)
    packages = ", ".join(versions(script))
    told = f"*{packages + '; ' if packages else ''}{seconds:.0f} s of processor time.*"
    lines = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
    return PRINTED.sub(lambda _: _place(f"printed {digest(script)}", f"```\n{lines}\n```\n\n{told}"), text)


def versions(script):
    """Return the packages that matter to a script, with their versions."""
    imported = re.findall(r"^\s*(?:import|from) (\w+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    used = {*imported, _environment()["KERAS_BACKEND"]} if "keras" in imported else {*imported}
    return [f"{TOLD[name]} {version(TOLD[name])}" for name in sorted(used & TOLD.keys())]


def keep_pictures(name, text, folder):
    """Bring a page's pictures in, in at most 256 colours, and a thumbnail of the one that it shows first."""
    for path in folder.rglob("*.png"):
        with Image.open(path) as picture:
            _save(picture.convert("RGB"), PICTURES / f"{name}-{path.stem}.png")
    with Image.open(PICTURES / FIRST.search(text)[1]) as picture:
        thumbnail = picture.convert("RGB")
        thumbnail.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
        _save(thumbnail, PICTURES / f"{name}.png")


def _save(picture, path):
    """Save a picture as large as `LARGEST` allows."""
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        _save(picture.resize([side * 4 // 5 for side in picture.size], Image.Resampling.LANCZOS), path)


def render(name, path):
    """Run a page's script and write the page anew."""
    with TemporaryDirectory() as folder:
        printed, seconds = run(*command_of(path.read_text(encoding="utf-8")), folder)
        text = path.read_text(encoding="utf-8")  # whoever wrote on it meanwhile keeps their words
        keep_pictures(name, text, Path(folder))
    path.write_text(with_printed(with_code(text), printed, seconds), encoding="utf-8")
    print(f"{name}: {seconds:.0f} s of processor time")


def main(chosen):
    """Render the chosen pages, or all."""
    known = pages()
    for name in chosen or known:
        if name not in known:
            raise SystemExit(f"no page {name}; there are {', '.join(known)}")
        render(name, known[name])


if __name__ == "__main__":
    main(sys.argv[1:])
