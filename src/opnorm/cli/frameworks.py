"""Choose a Keras backend that is installed, before Keras is imported."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


class MissingError(Exception):
    """Something that the user asked for is not there; the message is one line that says what to do."""


def require(modules: Sequence[str], extra: str) -> None:
    """Return if every one of `modules` is installed.

    Raises:
        MissingError: naming the modules that are not, and the `extra` that brings them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingError(f"not installed: {', '.join(missing)}. {_remedy(extra)}")


def choose(requested: str | None = None) -> str:
    """Return the name of an installed backend: the `requested` one, else Keras's own setting, else the first found.

    Raises:
        MissingError: the backend is unknown, not installed, or not the one Keras already runs on.
    """
    name = requested or os.environ.get("KERAS_BACKEND") or _configured() or _first_installed()
    if name not in BACKENDS:
        raise MissingError(f"unknown backend: choose one of {', '.join(BACKENDS)}. Received: backend={name}")
    require([name], extra=name)
    _agree_with_keras(name)
    return name


def activate(name: str) -> None:
    """Make Keras run on the backend `name`, and import it without TensorFlow's C++ chatter."""
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _standard_error_held_back():
        import_module("keras")
        if find_spec("tensorflow"):
            import_module("tensorflow")  # on every backend `fit` would import it, for its data sets


def _configured() -> str | None:
    """Return the backend that Keras's configuration file names, if that one is installed."""
    path = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        name = json.loads(path.read_text()).get("backend")
    except (OSError, ValueError):
        return None
    # Keras writes "tensorflow" there on its first import, whatever is installed.
    return name if name in BACKENDS and find_spec(name) else None


def _first_installed() -> str:
    for name in BACKENDS:
        if find_spec(name):
            return name
    raise MissingError(f"no Keras backend is installed. {_remedy('demo,torch')} ({BACKENDS[0]} and jax serve as well)")


def _remedy(extra: str) -> str:
    # Of an installed opnorm pip adds the extra's packages without looking for opnorm anywhere.
    return f'Run: pip install "opnorm[{extra}]", which adds to the opnorm installed here'


def _agree_with_keras(name: str) -> None:
    keras = sys.modules.get("keras")
    running = keras.backend.backend() if keras else name
    if running != name:
        raise MissingError(f"Keras already runs on {running} in this process. Received: backend={name}")


@contextmanager
def _standard_error_held_back() -> Iterator[None]:
    """Keep what C++ code prints to file descriptor 2; show it only if the block fails.

    TensorFlow prints a few lines at import, before it reads TF_CPP_MIN_LOG_LEVEL.
    """
    screen = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(screen, held.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
