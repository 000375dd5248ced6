"""What the commands share: failure in one line, files that are whole or not there, progress on stderr."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from opnorm.cli.frameworks import MissingError

BAD_INPUT = 2  # Click's own exit status for it
STDOUT = "-"


def fail(message: object) -> NoReturn:
    """Say why on stderr, in one line, and exit."""
    typer.echo(f"opnorm: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(BAD_INPUT)


@contextmanager
def one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn what a user can mend, and `more`, into one line on stderr."""
    errors: tuple[type[Exception], ...] = (MissingError, OSError, *more)
    try:
        yield
    except BrokenPipeError:
        raise  # Click's: whoever read us has seen enough
    except errors as error:
        fail(error)


def require_folder(output: str | None) -> None:
    """Fail before the work, not after it, when the folder of an output file is not there."""
    if output is not None and output != STDOUT and not Path(output).resolve().parent.is_dir():
        fail(f"no such folder: {Path(output).resolve().parent}")


def emit(text: str, output: str) -> None:
    """Write `text` to the file `output`, which is whole or as it was; "-" is stdout.

    Raises:
        OSError: when the file cannot be written.
    """
    if output == STDOUT:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    path = Path(output).resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what to call with the number done and of all; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show(plain: Callable[[], str], drawn: Callable[[], object]) -> None:
    """Print `drawn` on a terminal, `plain` text into a pipe."""
    if not sys.stdout.isatty():
        typer.echo(plain(), nl=False)
        return
    from rich.console import Console

    Console().print(drawn())
