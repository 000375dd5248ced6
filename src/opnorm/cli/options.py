"""The options that the commands on checkpoints share: each list stands here once, as a record."""

import os
import re
import sys
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from opnorm.auditing.ordering import DiffSort, Sort

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def to_bytes(text: str) -> int:
    """Return the bytes that `text` says: a number, with or without one of K, M, G, T."""
    match = re.fullmatch(r"(\d{1,18})\s*([kmgt]?)i?b?", text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no size: 500M or 8G")
    return int(match[1]) * _UNITS[match[2]]


File = Annotated[
    str, typer.Argument(help="A checkpoint: .keras .safetensors .onnx .pt ..., or a folder.", metavar="PATH")
]
Include = Annotated[list[str] | None, typer.Option(help="Only tensors whose name matches this glob; repeatable.")]
Exclude = Annotated[list[str] | None, typer.Option(help="No tensor whose name matches this glob; repeatable.")]
Json = Annotated[str | None, typer.Option("--json", help='Write JSON to this file; "-" is stdout.', metavar="OUT")]
Jobs = Annotated[int, typer.Option(min=1, help="Tensors measured at the same time; memory grows with it.")]
Limit = Annotated[float | None, typer.Option(min=0, help="Seconds a tensor, after which its bracket stays wider.")]
Memory = Annotated[
    int | None,
    typer.Option(parser=to_bytes, metavar="SIZE", help="What tensors may take, 8G say. Default: half of what is free."),
]
All = Annotated[bool, typer.Option("--all", help="Show what has no norm too, a line a tensor.")]
Top = Annotated[int | None, typer.Option(min=1, help="Show so many lines: the largest, or the first by --sort.")]
Tolerance = Annotated[float | None, typer.Option(help="Aim for upper / lower - 1. Default: 1e-6, convolutions 1e-2.")]
Sandbox = Annotated[
    bool | None,
    typer.Option(
        "--sandbox/--no-sandbox",
        help="Read in a process of its own, with limits. Default: where C++ reads, .h5 .keras .onnx.",
        show_default=False,
    ),
]


Cluster = Annotated[
    str | None,
    typer.Option(
        help='Measure on a dask.distributed scheduler\'s workers; "local": one a processor.', metavar="ADDRESS"
    ),
]


class Measuring(NamedTuple):
    """Which tensors are measured, and how."""

    include: Include = None
    exclude: Exclude = None
    time_limit: Limit = None
    memory_limit: Memory = None
    tolerance: Tolerance = None


class Showing(NamedTuple):
    """What of a report is shown, and in which order."""

    all_rows: All = False
    sort: Annotated[Sort | None, typer.Option(help="Order of the lines. Default: the file's, 2 before 10.")] = None
    top: Top = None


class ShowingDiff(NamedTuple):
    """What of a comparison is shown, and in which order."""

    all_rows: All = False
    sort: Annotated[DiffSort | None, typer.Option(help="Order of the lines. Default: the base's, 2 before 10.")] = None
    top: Top = None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with the fields of each of its arguments that is a record of options as options of its own."""
    own = signature(command, eval_str=True).parameters
    records = {name: one.annotation for name, one in own.items() if hasattr(one.annotation, "_fields")}

    def spread_out(**given: Any) -> None:
        made = {name: kind(**{key: given.pop(key) for key in kind._fields}) for name, kind in records.items()}
        command(**given, **made)

    listed = [one for name, one in own.items() if name not in records]
    listed += [option for kind in records.values() for option in _options(kind)]
    spread_out.__signature__ = Signature(listed)  # type: ignore[attr-defined]  # what typer reads
    spread_out.__annotations__ = {one.name: one.annotation for one in listed}
    spread_out.__doc__ = command.__doc__
    return spread_out


def _options(record: Any) -> list[Parameter]:
    """Return the fields of a record as parameters."""
    hints = get_type_hints(record, include_extras=True)
    defaults = record._field_defaults
    return [Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hints[name]) for name in hints]


def reads_apart(sandbox: bool | None, *files: str) -> bool:
    """Return whether files are read in a process of their own: as asked for, else where C++ reads one of them."""
    if sandbox is not None:
        return sandbox
    from opnorm.auditing.sandbox import is_native

    return os.name == "posix" and bool(sys.executable) and any(is_native(file) for file in files)
