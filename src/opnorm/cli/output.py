"""What the commands share: failure in one line, files that are whole or not there, progress on stderr."""

import codecs
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from opnorm.cli.frameworks import MissingError

BAD_INPUT = 2  # Click's own exit status for it
STDOUT = "-"
_DEVICES = ("/dev/", "/proc/")  # names of what is open already, and of no file that could be replaced
_INDEXES = (".index.json", ".weights.json")  # endings of text that belongs to a checkpoint
_READ_TOO = ("config.json", "adapter_config.json", "model_index.json", "modules.json")  # beside a file, in a folder


def fail(message: object) -> NoReturn:
    """Say why on stderr, in one line, and exit."""
    typer.echo(f"opnorm: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(BAD_INPUT)


@contextmanager
def one_line_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn what a user can mend, and `more`, into one line on stderr, and the exit status of what could not be done."""
    errors: tuple[type[Exception], ...] = (MissingError, OSError, *more)
    try:
        yield
    except (BrokenPipeError, typer.Exit, typer.Abort):
        raise  # Click's: whoever read us has seen enough
    except errors as error:
        fail(_told(error))


def _told(error: Exception) -> str:
    """Return what an error says; of one that says nothing of itself its type too."""
    if isinstance(error, MissingError | OSError | ValueError):
        return str(error)
    if isinstance(error, MemoryError):
        return str(error) or "there is not enough memory"
    return f"{type(error).__name__}: {error}"


def check_outputs(outputs: Sequence[str | None], inputs: Sequence[str]) -> None:
    """Fail before anything is read when an output would replace an input or another output, or has no folder."""
    files = [Path(output) for output in outputs if output is not None and output != STDOUT and not is_special(output)]
    beside = [str(Path(name).parent / other) for name in inputs for other in _READ_TOO]
    read = [Path(name) for name in (*inputs, *beside)]
    for place, output in enumerate(files):
        if not output.resolve().parent.is_dir():
            fail(f"no such folder: {output.resolve().parent}")
        in_folder = output.name in _READ_TOO and any(_is_in(output, name) for name in inputs)
        if in_folder or any(_is_one_file(output, other) for other in read):
            fail(f"the output {str(output)!r} is a file that is read; it would be lost")
        if any(_is_one_file(output, other) for other in files[:place]):
            fail(f"two outputs have one name: {str(output)!r}")
        if _is_precious(output):
            fail(f"the output {str(output)!r} would replace a file that is no report; choose another name")


def _is_precious(path: Path) -> bool:
    """Return whether a file that is there already is no text, or an index of shards: no report of before."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return path.name.lower().endswith(_INDEXES) or b"\0" in start or not _is_utf8(start)


def _is_utf8(start: bytes) -> bool:
    """Return whether bytes are text as far as they go: the last letter may be cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def _is_in(output: Path, folder: str) -> bool:
    """Return whether a file lies in a folder, or would."""
    return Path(folder).is_dir() and output.resolve().is_relative_to(Path(folder).resolve())


def _is_one_file(one: Path, other: Path) -> bool:
    """Return whether two names mean one file, by whatever links; a file need not be there yet."""
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()


def is_special(output: str) -> bool:
    """Return whether an output is a device, a pipe, or something else that is written to and cannot be replaced."""
    try:
        mode = os.stat(output).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or os.path.abspath(output).startswith(_DEVICES)


def emit(text: str, output: str) -> None:
    """Write `text` to the file `output`, which is whole or as it was; to a device or a pipe as it is; "-" is stdout.

    Raises:
        OSError: when it cannot be written.
    """
    if output == STDOUT:
        require_stdout()
        typer.echo(text, nl=not text.endswith("\n"))
    elif is_special(output):
        with open(output, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    else:
        _replace(text, Path(output).resolve())


def require_stdout() -> None:
    """Raise an `OSError` where stdout is closed, as `>&-` leaves it."""
    if sys.stdout is None:
        raise OSError("stdout is closed; nothing can be written to it")


def _replace(text: str, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what to call with the number done and of all; None where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show(plain: Callable[[], str], drawn: Callable[[], object]) -> None:
    """Print `drawn` on a terminal, `plain` text into a pipe."""
    require_stdout()
    if not sys.stdout.isatty():
        typer.echo(plain(), nl=False)
        return
    from rich.console import Console

    Console().print(drawn())
