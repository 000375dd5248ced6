"""What one finds at `import opnorm`: its names, for people, prompts and type checkers, whatever else is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import opnorm

SOURCE = str(Path(opnorm.__file__).parents[1])
WITHOUT = "import sys; sys.modules['keras'] = sys.modules['tensorflow'] = None  # as if neither were installed\n"
BARE = {"BlockDiagonal", "Bounds", "Certificate", "Convolution", "Diagonal", "DiffReport", "NetworkBound", "Report"} | {
    "audit", "certify", "diff", "linear_operator", "linear_operators", "lipschitz_bound", "spectral_norm",
}  # fmt: skip


def said_by(program, *options):
    """Return what a fresh process prints."""
    environment = {**os.environ, "PYTHONPATH": SOURCE, "KERAS_BACKEND": "jax"}
    command = [sys.executable, *options, program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout


def submodules():
    """Return the names of the modules for one framework each whose file is there."""
    folder = Path(opnorm.__file__).parent
    return {name for name in ("jax", "tf1", "torch") if (folder / f"{name}.py").exists() or (folder / name).is_dir()}


def test_a_prompt_completes_every_public_name_and_nothing_else():
    names = set(dir(opnorm))
    assert "tf1" in submodules()
    assert {name for name in names if not name.startswith("_")} == {*opnorm.__all__} | submodules()
    assert {"__version__", "__doc__", "__path__"} <= names


@pytest.mark.parametrize(("front", "more"), [("torch", {"lightning", "transformers"}), ("jax", set()), ("tf1", set())])
def test_a_front_end_completes_its_public_names_and_no_module_of_its_own(front, more):
    legacy = "import os; os.environ['TF_USE_LEGACY_KERAS'] = '1'\n"
    pytest.importorskip({"torch": "torch", "jax": "optax", "tf1": "tf_keras"}[front])
    program = f"import opnorm.{front} as front; print(*dir(front)); print(*front.__all__)"
    shown, public = said_by(legacy + program, "-c").splitlines()[-2:]
    assert {name for name in shown.split() if not name.startswith("_")} == {*public.split()} | more


def test_an_unknown_name_is_told_as_python_tells_it():
    assert not hasattr(opnorm, "nope")
    with pytest.raises(AttributeError, match="module 'opnorm' has no attribute 'nope'"):
        _ = opnorm.nope


def test_without_a_framework_hasattr_says_what_is_there_and_raises_nothing():
    program = WITHOUT + "import opnorm; print(*(name for name in dir(opnorm) if hasattr(opnorm, name)))"
    found = {name for name in said_by(program, "-c").split() if not name.startswith("__")}
    assert found - submodules() == BARE  # a submodule that cannot be imported may be there; using it raises


def test_without_a_framework_the_error_names_the_module_that_is_missing():
    program = WITHOUT + "import opnorm\ntry: opnorm.SpectralNorm\nexcept AttributeError as error: print(error)"
    assert said_by(program, "-c").startswith("`opnorm.SpectralNorm` cannot be imported: import of keras halted")


@pytest.mark.parametrize(
    ("missing", "told"), [("keras", "plain PyTorch has it in `opnorm.torch`"), ("tensorflow", "unless KERAS_BACKEND")]
)
def test_without_keras_or_its_backend_the_error_says_what_to_do(missing, told):
    hidden = f"import sys; sys.modules[{missing!r}] = None; import os; os.environ.pop('KERAS_BACKEND'); import opnorm\n"
    assert told in said_by(hidden + "try: opnorm.SpectralNorm\nexcept AttributeError as error: print(error)", "-c")
    imported = hidden + "try: from opnorm import SpectralNorm\nexcept ImportError as error: print(error.__notes__)"
    assert told in said_by(imported, "-c")


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("from opnorm import SpectralNorm", "keras"),
        ("from opnorm import tf1", "tensorflow"),
        ("import opnorm.tf1", "tensorflow"),
        ("import opnorm; opnorm.tf1.SpectralNorm", "tensorflow"),
    ],
)
def test_without_a_framework_an_import_raises_the_import_error_itself(line, missing):
    program = WITHOUT + f"try:\n    {line}\nexcept ImportError as error: print(type(error).__name__, error)"
    assert said_by(program, "-c").startswith(f"ModuleNotFoundError import of {missing} halted")


def test_without_a_framework_help_still_shows_what_there_is():
    text = said_by(WITHOUT + "import opnorm; help(opnorm)", "-c")
    assert "spectral_norm(x" in text
    assert "class Bounds" in text
    assert "halted" not in text


def test_help_shows_every_public_name():
    text = said_by("import opnorm; help(opnorm)", "-c")
    heads = [line.split("(")[0].removeprefix("class ") for line in map(str.strip, text.splitlines()) if "(" in line]
    aliases = {line.split(" = ")[0] for line in map(str.strip, text.splitlines()) if " = " in line}
    assert set(opnorm.__all__) <= {*heads, *aliases}


def test_a_submodule_that_is_installed_later_is_found_by_the_next_use():
    program = (
        WITHOUT + "import opnorm; module = opnorm.tf1; repr(module)\n"
        "from types import ModuleType; sys.modules['opnorm.tf1'] = late = ModuleType('opnorm.tf1')\n"
        "late.SpectralNorm = 7; print(module.SpectralNorm, opnorm.tf1 is late)"
    )
    assert said_by(program, "-c").split() == ["7", "True"]


MYPY = """
import opnorm

reveal_type(opnorm.spectral_norm)
reveal_type(opnorm.SpectralNorm)
reveal_type(opnorm.SpectralNormalization)
reveal_type(opnorm.constrain)
reveal_type(opnorm.audit)
reveal_type(opnorm.tf1)
opnorm.SpectralNorm(valu=2.0)
opnorm.nope
"""


def test_mypy_sees_real_types_and_refuses_what_is_not_there(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(MYPY)
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, str(tmp_path / "user.py")]
    result = subprocess.run(command, env={**os.environ, "MYPYPATH": SOURCE}, capture_output=True, text=True)
    revealed = [line.split('"')[1] for line in result.stdout.splitlines() if "Revealed type is" in line]
    assert "opnorm.bounds.brackets.Bounds" in revealed[0]
    assert revealed[1].endswith("-> opnorm.keras.constraints.SpectralNorm")
    assert revealed[2].endswith("-> opnorm.keras.wrappers.SpectralNormalization")
    assert "opnorm.keras.attachments.Attachments" in revealed[3]
    assert "opnorm.auditing.report.Report" in revealed[4]
    assert "ModuleType" in revealed[5]
    errors = [line for line in result.stdout.splitlines() if " error: " in line]
    assert ['Unexpected keyword argument "valu"' in errors[0], '"nope"' in errors[1], len(errors)] == [True, True, 2]


def test_what_type_checkers_are_told_is_what_python_gets():
    for name in BARE:
        assert getattr(opnorm, name).__name__ == name
    assert set(opnorm._HOMES) == set(opnorm.__all__)
