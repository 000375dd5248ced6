"""Other tools from the package index beside opnorm on the real files of `audit.py`; write `benchmarks/README.md`.

    KERAS_BACKEND=tensorflow python benchmarks/audit_peers.py

It wants `weightwatcher`, `weightlens`, `ckptkit`, `modeldelta` and `mergelens`. Each file is given to each tool in a
process of its own, in the form that the tool takes. What a tool lists is counted, and its spectral norms: those within
1e-3 of float64's singular values of a two-dimensional tensor, or of the bracket that opnorm proves for the layer's
matrix or its convolution, are right. A second table does the same for the difference of two files of safetensors.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from audit import real
from tables import write_table

ERROR = 1e-3  # relative, of a number that counts as right
LAST = """
import json, resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([listed, norms, time.perf_counter() - begin, peak]))
"""
OPNORM = """
import sys, time
begin = time.perf_counter()
from opnorm.auditing.audits import audit
rows = audit(sys.argv[1], jobs=2).rows
listed, norms = len(rows), {
    row.name: [[row.lower, row.upper]] + ([[row.matrix_norm] * 2] if row.matrix_norm else [])
    for row in rows if row.status == "bounded"
}
"""
WEIGHTWATCHER = """
import pathlib, shutil, sys, tempfile, time
begin = time.perf_counter()
path = pathlib.Path(sys.argv[1])
folder = tempfile.TemporaryDirectory()
def in_a_folder(name):
    shutil.copy(path, pathlib.Path(folder.name) / name)
    return folder.name
if path.suffix == ".onnx":
    import onnx
    model = onnx.load(path)
elif path.suffix == ".jit":
    import torch
    model = torch.jit.load(path, map_location="cpu")
elif path.suffix == ".safetensors":
    model = in_a_folder("model.safetensors")
elif path.name.endswith(".weights.h5"):
    model = in_a_folder("model.h5")
else:
    import keras
    model = keras.models.load_model(path, compile=False)
import weightwatcher
table = weightwatcher.WeightWatcher(model=model).analyze(min_evals=1)
listed = len(table)
norms = dict(zip(table["longname"], table["sv_max"])) if listed else {}
"""
WEIGHTLENS = """
import sys, time
begin = time.perf_counter()
from weightlens.cli import run_cli
import contextlib, io
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    status = run_cli(["analyze", sys.argv[1]])
if status:
    sys.exit(f"exit status {status}")
listed = next(int(line.split(":")[1]) for line in printed.getvalue().splitlines() if line.startswith("tensor_count"))
norms = {}
"""
CKPTKIT = """
import sys, time
begin = time.perf_counter()
import ckptkit
listed, norms = ckptkit.inspect(sys.argv[1]).n_tensors, {}
"""
TOOLS = {"opnorm": OPNORM, "weightwatcher": WEIGHTWATCHER, "weightlens": WEIGHTLENS, "ckptkit": CKPTKIT}

OPNORM_DIFF = """
import sys, time
begin = time.perf_counter()
import opnorm
rows = opnorm.diff(sys.argv[1], sys.argv[2]).rows
listed, norms = len(rows), {row.name: row.difference[1] for row in rows if row.difference}
"""
MODELDELTA = """
import sys, time
begin = time.perf_counter()
from modeldelta.core.weight_diff import compare_models
from modeldelta.utils.model_loader import get_tensor_map
found, passed_over = compare_models(*map(get_tensor_map, sys.argv[1:]))
listed = len(found) + passed_over
norms = {one["name"]: one["top_singular_values"][0] for one in found if one["has_svd"]}
"""
MERGELENS = """
import sys, time
begin = time.perf_counter()
from mergelens import compare_models
listed, norms = len(compare_models(sys.argv[1:]).tensor_metrics), {}
"""
CKPTKIT_DIFF = """
import sys, time
begin = time.perf_counter()
import ckptkit
listed, norms = ckptkit.diff(*(f"{folder}/model.safetensors" for folder in sys.argv[1:])).n_shared, {}
"""
DIFFS = {"opnorm": OPNORM_DIFF, "modeldelta": MODELDELTA, "mergelens": MERGELENS, "ckptkit": CKPTKIT_DIFF}
DIFF_HEADER = ["tool", "tensors", "spectral norms", "right, of the matrices", "time", "memory", "or why none"]


def run(program: str, *paths: Path) -> list | str:
    """Return what a program prints at its end, or the last line of its error."""
    command = [sys.executable, "-c", program + LAST, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return re.sub(r"/\S+/", "", next(reversed(done.stderr.strip().splitlines()), f"exit status {done.returncode}"))
    return json.loads(done.stdout.strip().splitlines()[-1])


def cell(found: list | str, right: int | None = None) -> str:
    """Return what a tool did with a file in a cell of the table."""
    if isinstance(found, str):
        return re.sub(r"^\w+\.(\w+\.)*", "", found)[:60]
    listed, norms, seconds, peak = found
    numbers = f"{len(norms)} norms" + ("" if right is None or not norms else f", {right} right")
    return f"{listed}; {numbers if norms else 'no norms'}; {seconds:.1f} s; {peak:.0f} MiB"


def count_right(norms: dict[str, float], brackets: dict[str, list[float]]) -> int:
    """Return how many layers' numbers stand for the layer: as a convolution, or as a matrix."""

    def right(layer: str, norm: float) -> bool:
        ends = [
            found for name, found in brackets.items() if name == layer or name.startswith((layer + "/", layer + "."))
        ]
        return any(low * (1 - ERROR) <= norm <= high * (1 + ERROR) for pair in ends for low, high in pair)

    return sum(right(layer, norm) for layer, norm in norms.items())


def row(path: Path) -> list[str]:
    found = {tool: run(program, path) for tool, program in TOOLS.items()}
    ours, others = found.pop("opnorm"), found
    if isinstance(ours, str):
        raise RuntimeError(ours)
    cells = [cell(one, None if isinstance(one, str) else count_right(one[1], ours[1])) for one in others.values()]
    return [path.name, cell(ours), *cells]


def write_pair(folder: Path) -> dict[str, float]:
    """Write real weights, and the same with a change of rank two a matrix; return the norms of the changes."""
    from safetensors.numpy import load_file, save_file

    base = load_file(next(path for path in real() if path.suffix == ".safetensors"))
    draw, tuned, norms = np.random.default_rng(0), dict(base), {}
    for name, values in base.items():
        if values.ndim > 1:
            rows, columns = len(values), values.size // len(values)
            change = draw.standard_normal((rows, 2)) @ draw.standard_normal((2, columns)) / rows
            tuned[name] = (values + change.reshape(values.shape)).astype(np.float32)
            if values.ndim == 2:  # what more axes are, a matrix or a convolution, the tools see differently
                norms[name] = np.linalg.norm(tuned[name].astype(np.float64) - values, 2)
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text("{}")
    return norms


def differences() -> list[list[str]]:
    """Return a row a tool for the difference of two folders."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        truth = write_pair(Path(name))
        for tool, program in DIFFS.items():
            found = run(program, Path(name, "base"), Path(name, "tuned"))
            if isinstance(found, str):
                rows.append([tool, "", "", "", "", "", found[:100]])
                continue
            listed, norms, seconds, peak = found
            right = sum(abs(norm / truth.get(tensor, np.inf) - 1) <= ERROR for tensor, norm in norms.items())
            rows.append(
                [
                    tool,
                    str(listed),
                    str(len(norms)),
                    f"{right} of {len(truth)}",
                    f"{seconds:.1f} s",
                    f"{peak:.0f} MiB",
                    "",
                ]
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    rows = []
    for path in real():
        rows.append(row(path))
        print(rows[-1], flush=True)
    write_table("audit-peers", ["file", *TOOLS], rows)
    write_table("diff-peers", DIFF_HEADER, differences())


if __name__ == "__main__":
    main()
