"""`weightwatcher` beside opnorm on the real files of `audit.py`: rows, time, memory; write `benchmarks/README.md`.

Each file is given to each tool in a process of its own, and to `weightwatcher` in the form that it takes: what the
file's framework loads from it, or a folder with the file alone.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from audit import real
from tables import write_table

HEADER = [
    "file",
    "tensors",
    "opnorm: bounded",
    "time",
    "memory",
    "weightwatcher: layers",
    "time",
    "memory",
    "or why none",
]
LAST = """
import json, resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([*found, time.perf_counter() - begin, peak]))
"""
OPNORM = """
import sys, time
begin = time.perf_counter()
from opnorm.auditing.audits import audit
rows = audit(sys.argv[1], jobs=2).rows
found = [len(rows), sum(row.status == "bounded" for row in rows)]
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
found = [len(table)]
"""


def run(program: str, path: Path) -> list[float] | str:
    """Return what a program prints at its end, or the last line of its error."""
    done = subprocess.run([sys.executable, "-c", program + LAST, str(path)], capture_output=True, text=True)
    if done.returncode:
        return next(reversed(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(path: Path) -> list[str]:
    ours, theirs = run(OPNORM, path), run(WEIGHTWATCHER, path)
    if isinstance(ours, str):
        raise RuntimeError(ours)
    tensors, bounded, seconds, peak = ours
    cells = [path.name, f"{tensors:.0f}", f"{bounded:.0f}", f"{seconds:.1f} s", f"{peak:.0f} MiB"]
    if isinstance(theirs, str):
        return [*cells, "", "", "", re.sub(r"/\S+/", "", theirs)[:100]]
    return [*cells, f"{theirs[0]:.0f}", f"{theirs[1]:.1f} s", f"{theirs[2]:.0f} MiB", ""]


def main() -> None:
    rows = []
    for path in real():
        rows.append(row(path))
        print(rows[-1], flush=True)
    write_table("audit-peers", HEADER, rows)


if __name__ == "__main__":
    main()
