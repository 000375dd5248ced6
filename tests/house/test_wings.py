"""The house as a table: which wing may import which, and which framework; the arrows are drawn from the source."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import opnorm

PACKAGE = Path(opnorm.__file__).parent
FRAMEWORKS = {"keras", "tensorflow", "tf_keras", "jax", "torch"}

# A wing is a folder, or a file beside the folders. After the colon: what it may import beside itself and `checks`.
WINGS = {
    "checks": set(),
    "arguments": set(),
    "tables": set(),
    "showing": set(),
    "selection": set(),
    "operators": set(),
    "backends": set(),
    "iterations": {"backends"},
    "rules": {"backends", "iterations", "showing", "arguments"},
    "bounds": {"operators"},
    "checkpoints": {"operators"},
    "networks": {"bounds", "operators", "checkpoints", "tables"},
    "auditing": {"bounds", "operators", "networks", "checkpoints", "tables"},
    "keras": {
        "backends",
        "iterations",
        "rules",
        "operators",
        "bounds",
        "checkpoints",
        "showing",
        "selection",
        "arguments",
    },
    "torch": {"backends", "iterations", "rules", "operators", "bounds", "checkpoints", "showing", "selection"},
    "jax": {"backends", "iterations", "rules", "operators", "showing", "selection"},
    "tf1": {"iterations", "rules", "arguments"},
    "demo": {"keras"},
    "cli": {"auditing", "demo", "tables"},
    "__main__": {"cli"},
    "_registration": {"keras"},
}
# Late: by name or inside of a function, where a model was handed over and its framework is there already.
LATE = {
    "backends": {"backends"},
    "networks": {"keras", "torch"},
    "auditing": {"keras", "torch"},
    "jax": {"jax"},  # the layers of flax and equinox, once these are imported
    "_registration": {"keras"},
    "cli": {"demo"},
}
MAY_NAME = {
    "backends": {"tensorflow", "jax", "torch"},
    "keras": {"keras", "tensorflow", "jax", "torch"},
    "torch": {"torch"},
    "jax": {"jax"},
    "tf1": {"tensorflow", "tf_keras"},
    "cli": {"keras", "tensorflow"},
    "demo": {"keras"},
}


@cache
def imported(path):
    """Return the dotted names that the file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("opnorm.") and " " not in str(node.value):
            names.add(str(node.value))  # `import_module("opnorm.keras")`
    return names


def dotted(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def wing_of(name):
    return name.split(".")[0]


MODULES = {dotted(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def arrows(name):
    """Return the modules of the package that `name` imports."""
    return {other for other in MODULES if f"opnorm.{other}" in imported(MODULES[name])} - {name}


@cache
def top_level(path):
    """Return the dotted names that the file imports when it is imported itself."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_module_stands_in_a_wing_of_the_table():
    assert {wing_of(name) for name in MODULES} == set(WINGS)


def test_no_arrow_turns_round():
    graph = {name: arrows(name) for name in MODULES}
    assert graph["keras.slots"] >= {"keras.base"}  # the graph is no empty one
    doors = {name for name in graph if MODULES[name].stem == "__init__"}
    inside = {
        name: {other for other in others if not (other in doors and name.startswith(f"{other}."))}
        for name, others in graph.items()
    }
    TopologicalSorter(inside).prepare()  # raises CycleError, and names the cycle


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_only_what_the_table_allows(wing):
    for name in MODULES:
        if wing_of(name) == wing:
            others = {wing_of(other) for other in arrows(name)} - {wing, "checks"}
            assert others <= WINGS[wing] | LATE.get(wing, set()), name
            early = {wing_of(other) for other in MODULES if f"opnorm.{other}" in top_level(MODULES[name])}
            assert early - {wing, "checks"} <= WINGS[wing], name


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_names_only_the_frameworks_that_the_table_allows(wing):
    for name, path in MODULES.items():
        if wing_of(name) == wing:
            assert {module.split(".")[0] for module in imported(path)} & FRAMEWORKS <= MAY_NAME.get(wing, set()), name


def test_importing_the_package_imports_no_framework():
    program = f"import sys, opnorm; print(*({FRAMEWORKS!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
