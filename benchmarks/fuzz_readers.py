"""What the readers of checkpoints make of damaged files.

    python benchmarks/fuzz_readers.py [--inputs 10000] [--format a.onnx]

Small good files of every format (those of the tests) are damaged by seeded mutations: bytes changed, runs of bytes
copied, cut out or repeated, the end cut off. Each is audited, network and all, in a process of its own for each format,
which a crash of a C library would end. Anything but a result or a `CheckpointError` counts as escaped. The
table goes between the markers of `benchmarks/README.md`.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tables import read_rows, write_rows, write_table

ROOT = Path(__file__).parents[1]
HEADER = ("file", "inputs", "read", "refused", "escaped", "slowest", "peak memory")


def samples():
    sys.path.insert(0, str(ROOT / "tests" / "checkpoints"))
    from samples import FILES

    return FILES


def damaged(data, seed):
    """Return a mutation of `data`."""
    chance, broken = random.Random(seed), bytearray(data)
    for _ in range(chance.choice([1, 2, 8, 30])):
        first, size = chance.randrange(len(broken)), chance.choice([1, 1, 1, 4, 16])
        kind = chance.random()
        if kind < 0.7:
            broken[first : first + size] = chance.randbytes(len(broken[first : first + size]))
        elif kind < 0.8:
            del broken[first : first + size]
        elif kind < 0.9:
            broken[first:first] = broken[first : first + size]
        else:
            other = chance.randrange(len(broken))
            broken[first : first + size] = broken[other : other + size]
        broken = broken or bytearray(b"x")
    return bytes(broken[: chance.randrange(1, len(broken) + 1)] if chance.random() < 0.1 else broken)


def outcome(path):
    """Return "read", "refused", or the name of whatever else came out."""
    from opnorm.auditing.audits import audit
    from opnorm.checkpoints.records import CheckpointError

    try:
        report = audit(path, time_limit=0.1)
        report.to_json(), report.to_csv(), report.to_text()
    except CheckpointError as error:
        return "refused" if "\n" not in str(error) else "an error of several lines"
    except BaseException as error:
        return type(error).__name__
    return "read"


def measure(name, inputs):
    """Return the table's row for one format."""
    counts, slowest = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        data = samples()[name](path).read_bytes()
        for seed in range(inputs):
            path.write_bytes(damaged(data, seed))
            begin = time.perf_counter()
            result = outcome(path)
            slowest = max(slowest, time.perf_counter() - begin)
            counts[result] = counts.get(result, 0) + 1
    escaped = {kind: count for kind, count in counts.items() if kind not in ("read", "refused")}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    texts = [str(inputs), str(counts.get("read", 0)), str(counts.get("refused", 0)), str(escaped or 0)]
    return [name, *texts, f"{slowest:.2f} s", f"{memory:.0f} MiB"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="damaged files of each format")
    parser.add_argument("--format", action="append", help="a sample's name; default: all")
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rows:
        return write_rows(arguments.rows, [measure(arguments.format[0], arguments.inputs)])
    rows = [in_own_process(name, arguments.inputs) for name in arguments.format or samples()]
    return write_table("fuzz", HEADER, rows)


def in_own_process(name, inputs):
    """Return the row of one format; of a process that died, how it did."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--format", name, "--inputs", str(inputs), "--rows", str(rows)]
        status = subprocess.run(command).returncode
        row = read_rows(rows)[0] if rows.exists() else [name, str(inputs), "", "", f"DIED: {status}", "", ""]
    print(*row, file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
