"""Audit sharded bfloat16 checkpoints made on the spot, by threads and by a cluster of this machine: time, memory."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from audit import SIDE, write_shards
from tables import write_table

HEADER = ["file", "how", "tensors", "widest", "wall", "CPU seconds", "largest process"]
PROGRAM = """
import json, resource, sys, time
from opnorm.auditing.audits import audit
if __name__ == "__main__":
    begin = time.perf_counter()
    report = audit(sys.argv[1], **json.loads(sys.argv[2]))
    wall = time.perf_counter() - begin
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    width = max(row.upper / row.lower - 1 for row in report.rows)
    cpu, peak = sum(one.ru_utime + one.ru_stime for one in used), max(one.ru_maxrss for one in used) / 1024
    print(json.dumps([len(report.rows), width, wall, cpu, peak]))
"""


def row(gibibytes: float, index: Path, how: str, options: dict[str, object]) -> list[str]:
    """Return the row of an audit in processes of its own; those of a cluster count with it once they have ended."""
    program = index.with_name("program.py")
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(index), json.dumps(options)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count, width, wall, cpu, peak = json.loads(output)
    file = f"{gibibytes:.2g} GiB"
    return [file, how, str(count), f"{width:.1e}", f"{wall:.0f} s", f"{cpu:.0f} s", f"{peak:.0f} MiB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, nargs="+", default=[128, 512], help=f"{SIDE} x {SIDE}, 32 MiB each")
    parser.add_argument("--folder", help="for the files, which are deleted at the end")
    options = parser.parse_args()
    rows, jobs = [], os.cpu_count() or 1
    for count in options.matrices:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            index = write_shards(Path(name), count)
            size = count * SIDE**2 * 2 / 2**30
            for how, arguments in ((f"{jobs} jobs", {"jobs": jobs}), (f"{jobs} workers", {"cluster": "local"})):
                rows.append(row(size, index, how, arguments))
                print(rows[-1], flush=True)
    write_table("scale", HEADER, rows)


if __name__ == "__main__":
    main()
