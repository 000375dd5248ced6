"""What the readers of checkpoints make of damaged files.

    python benchmarks/fuzz_readers.py [--count 10000] [--format a.onnx] [--records FOLDER]

Small good files of every format are damaged by seeded mutations: every other one in its bytes (changed, copied, cut
out, repeated, the end cut off), every other one in its structure (a field of a header or of a protocol buffer, an
operation of a pickle, a value of JSON, a member of an archive: `mutations.py`). Each is audited, network and all, in a
process of its own for each format, which a crash of a C library ends, or a file that takes a minute: the next process
goes on behind it. Anything but a result or a `CheckpointError` of one line counts as escaped. The table goes between
the markers of `benchmarks/README.md`; `--records` keeps result, seconds and peak memory of each file.
"""

import argparse
import csv
import faulthandler
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

from mutations import restructured, scrambled
from tables import write_table

HEADER = ("file", "inputs", "read", "refused", "escaped", "slowest", "peak memory")
PATIENCE = 60  # seconds for one file, after which its process is ended


def damaged(name, good, seed):
    """Return one of the files `good` of a format with a mutation."""
    chance = random.Random(f"{name} {seed}")
    data = good[seed // 2 % len(good)]
    return restructured(name, data, chance) if seed % 2 else scrambled(data, chance)


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


def reset_peak():
    """Forget the largest memory so far; where Linux does not let it, peaks are those of all files up to then."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory():
    """Return the largest memory since the last reset, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(paths, seeds, records):
    """Append to the file `records`, for each seed: the seed, what came out, seconds, MiB."""
    name, good = paths[0].name, [path.read_bytes() for path in paths]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, records.open("a", newline="") as file:
        path, table = Path(folder) / name, csv.writer(file)
        for seed in seeds:
            path.write_bytes(damaged(name, good, seed))
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            reset_peak()
            begin = time.perf_counter()
            result = outcome(path)
            table.writerow([seed, result, f"{time.perf_counter() - begin:.4f}", f"{peak_memory():.0f}"])
            file.flush()


def in_own_processes(paths, count, records):
    """Measure one format; behind a file that ends its process, a new one goes on."""
    records.unlink(missing_ok=True)
    first = 0
    while first < count:
        command = [sys.executable, __file__, "--records", records, "--seeds", str(first), str(count)]
        status = subprocess.run([*command, "--good", *paths]).returncode
        with records.open("a+", newline="") as file:
            file.seek(0)
            done = [int(row[0]) for row in csv.reader(file)]
            first = done[-1] + 1 if done else 0
            if status and first < count:
                csv.writer(file).writerow([first, f"died: {status}", PATIENCE, 0])
                first += 1


def row(name, records):
    """Return the table's row for one format."""
    with records.open(newline="") as file:
        found = [
            (int(seed), result, float(seconds), float(memory)) for seed, result, seconds, memory in csv.reader(file)
        ]
    counts = Counter(result for _, result, _, _ in found)
    escaped = {result: number for result, number in counts.items() if result not in ("read", "refused")}
    slowest, largest = max(seconds for *_, seconds, _ in found), max(memory for *_, memory in found)
    texts = [str(number) for number in (len(found), counts["read"], counts["refused"], escaped or 0)]
    return [name, *texts, f"{slowest:.2f} s", f"{largest:.0f} MiB"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="damaged files of each format")
    parser.add_argument("--format", action="append", help="a sample's name; default: all")
    parser.add_argument("--records", type=Path, help="a folder to keep what was measured of each file in")
    parser.add_argument("--seeds", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--good", type=Path, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.seeds:
        return measure(arguments.good, range(*arguments.seeds), arguments.records)
    from fuzz_samples import FILES, good_files  # which import PyTorch: not in the processes that are measured

    with tempfile.TemporaryDirectory() as temporary:
        folder, rows = arguments.records or Path(temporary), []
        folder.mkdir(exist_ok=True)
        for name in arguments.format or FILES:
            records = folder / f"{name}.csv"
            in_own_processes(good_files(name, Path(temporary) / "good" / name), arguments.count, records)
            rows.append(row(name, records))
            print(*rows[-1], file=sys.stderr, flush=True)
    return write_table("fuzz", HEADER, rows)


if __name__ == "__main__":
    main()
