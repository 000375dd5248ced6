"""Imports point one way: the graph is drawn from the source."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import opnorm

PACKAGE = Path(opnorm.__file__).parent
FRAMEWORKS = {"keras", "tensorflow", "tf_keras", "jax", "torch"}
TRUTH = {  # bounds and what they rest on: NumPy and SciPy alone
    "arguments", "bounds", "cells", "certificates", "checks", "convolution", "convolution_bounds", "deadlines",
    "estimates", "lapack", "matrix_bounds", "operators", "parallel", "sizes", "symbol_bounds", "symbols",
    "threads",
}  # fmt: skip
NETWORK = {  # bounds of whole networks: the truth, and the records that graphs are made of
    "activations", "chains", "distances", "effects", "folding", "gates", "kernel_products", "linear_rules", "network",
    "pooling", "sector_bounds", "shape_rules",
}  # fmt: skip


@cache
def imported(path):
    """Return the dotted names that the file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def dotted(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def arrows():
    modules = {dotted(path): path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}
    return {name: {other for other in modules if f"opnorm.{other}" in imported(path)} for name, path in modules.items()}


def test_no_arrow_turns_round():
    graph = arrows()
    assert graph["slots"] >= {"base"}  # the graph is no empty one
    TopologicalSorter(graph).prepare()  # raises CycleError, and names the cycle


def test_constraints_know_neither_their_slots_nor_models():
    graph = arrows()
    for name in ("iterations", "matrices", "frequencies", "clipping", "base", "constraints", "projections"):
        assert not graph[name] & {"slots", "models", "demo", "cli"}, name


def test_the_truth_rests_on_numpy_and_scipy_alone():
    graph = arrows()
    for name in TRUTH | NETWORK:
        assert graph[name] <= (TRUTH if name in TRUTH else TRUTH | NETWORK | {"checkpoints.records"}), name
        assert not {module.split(".")[0] for module in imported(PACKAGE / f"{name}.py")} & FRAMEWORKS, name


def test_the_audit_goes_from_bounds_to_checkpoints_to_rows_to_commands():
    graph = arrows()
    readers = {name for name in graph if name.startswith("checkpoints.")}
    audits = {"auditing", "declared", "diff", "lora", "measure", "network_report", "norms", "spectra"}
    forms = {"report", "html_report", "text_report"}
    commands = {"cli", "cli_audit", "cli_output"}
    assert readers
    for name in TRUTH:
        assert not graph[name] & (readers | audits | forms | commands), name
    for name in readers:
        assert not graph[name] & (audits | forms | commands), name
    for name in forms:
        assert not graph[name] & (readers | audits | commands), name
    for name in audits:
        assert not graph[name] & (commands | {"html_report"}), name


def test_no_framework_is_named_where_files_are_read():
    for name in arrows():
        if name.startswith("checkpoints.") and name != "checkpoints.live":  # which reads models that Keras made
            path = PACKAGE / f"{name.replace('.', '/')}.py"
            assert not {module.split(".")[0] for module in imported(path)} & FRAMEWORKS, name


def test_importing_the_package_imports_no_framework():
    program = f"import sys, opnorm; print(*({FRAMEWORKS!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
