"""The options that the commands on checkpoints share."""

import os
import re
import sys
from typing import Annotated

import typer

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def to_bytes(text: str) -> int:
    """Return the bytes that `text` says: a number, with or without one of K, M, G, T."""
    match = re.fullmatch(r"(\d{1,18})\s*([kmgt]?)i?b?", text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no size: 500M or 8G")
    return int(match[1]) * _UNITS[match[2]]


File = Annotated[str, typer.Argument(help="A checkpoint: .keras .h5 .safetensors .onnx .npz .pt ...", metavar="FILE")]
Include = Annotated[list[str] | None, typer.Option(help="Only tensors whose name matches this glob; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="No tensor whose name matches this glob; repeatable.")]
Json = Annotated[str | None, typer.Option("--json", help='Write JSON to this file; "-" is stdout.', metavar="OUT")]
Jobs = Annotated[int, typer.Option(min=1, help="Tensors measured at the same time; memory grows with it.")]
Limit = Annotated[float | None, typer.Option(min=0, help="Seconds a tensor, after which its bracket stays wider.")]
Memory = Annotated[
    int | None,
    typer.Option(parser=to_bytes, metavar="SIZE", help="What tensors may take, 8G say.  [what the machine has free]"),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help='Measure on a dask.distributed scheduler\'s workers; "local": one a processor.', metavar="ADDRESS"
    ),
]
All = Annotated[bool, typer.Option("--all", help="Show optimizer state too, a line a tensor.")]
Tolerance = Annotated[float | None, typer.Option(help="Aim for upper / lower - 1.  [1e-6, convolutions 1e-2]")]
Sandbox = Annotated[
    bool | None,
    typer.Option(
        "--sandbox/--no-sandbox",
        help="Read in a process of its own, with limits.  [where C++ reads: .h5 .keras .onnx]",
        show_default=False,
    ),
]


def reads_apart(sandbox: bool | None, *files: str) -> bool:
    """Return whether files are read in a process of their own: as asked for, else where C++ reads one of them."""
    if sandbox is not None:
        return sandbox
    from opnorm.auditing.sandbox import is_native

    return os.name == "posix" and bool(sys.executable) and any(is_native(file) for file in files)
