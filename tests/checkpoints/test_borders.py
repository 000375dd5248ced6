"""What the readers import: no framework ever, a format's library when a file of it is opened."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from samples import FILES

import opnorm.checkpoints
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

FRAMEWORKS = {"keras", "tensorflow", "tf_keras", "jax", "torch"}
LIBRARIES = {"h5py", "safetensors", "onnx", "ml_dtypes", "msgpack", "tensorstore"}
PACKAGE = Path(opnorm.checkpoints.__file__).parent


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_no_reader_names_a_framework():
    named = {path.name: set(_imported(path)) & (FRAMEWORKS | LIBRARIES) for path in PACKAGE.glob("*.py")}
    assert {name: found for name, found in named.items() if found} == {}


@pytest.mark.parametrize("name", FILES)
def test_opening_and_reading_imports_no_framework(tmp_path, name):
    path = FILES[name](tmp_path / name)
    program = (
        "import sys\nfrom opnorm.checkpoints.opening import open_checkpoint\n"
        f"print(sorted({LIBRARIES!r} & set(sys.modules)))\n"
        f"print(len([weight.read() for weight in open_checkpoint({str(path)!r}).weights]))\n"
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, count, after = result.stdout.splitlines()
    assert (before, after) == ("[]", "[]")
    assert int(count) >= 1


@pytest.mark.parametrize(("name", "library"), [("a.keras", "h5py"), ("a.h5", "h5py"), ("a.onnx", "onnx")])
def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch, name, library):
    path = FILES[name](tmp_path / name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=rf"Cannot read '.*{name}': .*{library}: pip install 'opnorm\[audit\]'"):
        open_checkpoint(path)
