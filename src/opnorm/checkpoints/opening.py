"""`open_checkpoint(path)`: the reader that a file's first bytes and its name ask for."""

from collections.abc import Callable
from pathlib import Path

from opnorm.checkpoints.arrays import read_npy, read_npz
from opnorm.checkpoints.files import border, require
from opnorm.checkpoints.keras_archive import read_keras, read_weights
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.safetensors import read_safetensors, read_shards

Reader = Callable[[Path], Checkpoint]

_READERS: dict[str, tuple[str, Reader]] = {  # by ending, the longest first: what its content must be, and the reader
    ".safetensors.index.json": ("JSON", read_shards),
    ".weights.h5": ("HDF5", read_weights),
    ".safetensors": ("safetensors", read_safetensors),
    ".keras": ("a zip archive", read_keras),
    ".hdf5": ("HDF5", read_weights),
    ".npz": ("a zip archive", read_npz),
    ".npy": ("a NumPy array", read_npy),
    ".h5": ("HDF5", read_weights),
}
_MAGIC = {b"\x89HDF\r\n\x1a\n": "HDF5", b"PK\3\4": "a zip archive", b"\x93NUMPY": "a NumPy array"}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the table of contents of a checkpoint; tensors are read on demand, and nothing in the file is executed.

    Args:
        path: A file `.keras`, `.weights.h5`, `.h5`, `.safetensors` (or the index of its shards), `.npz`, `.npy`.

    Raises:
        CheckpointError: When the file cannot be read as what its name says. Nothing else is raised, here or when a
            tensor is read.
    """
    with border(Path(path)):
        path = Path(path).resolve()
        require(path.exists(), "there is no such file")
        require(path.is_file(), "it is no file")
        with path.open("rb") as file:
            start = file.read(16)
        require(bool(start), "it is empty")
        return _reader(path, _content(start))(path)


def _reader(path: Path, content: str) -> Reader:
    """Return the reader that name and content agree on."""
    for ending, (expected, reader) in _READERS.items():
        if path.name.endswith(ending):
            require(content == expected, f"its name ends in {ending!r}, which is {expected}, but it holds {content}")
            return reader
    raise CheckpointError(f"no reader for {path.suffix or 'a name without ending'!r} that holds {content}")


def _content(start: bytes) -> str:
    """Return what a file holds, by its first bytes."""
    for magic, content in _MAGIC.items():
        if start.startswith(magic):
            return content
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        return "safetensors"
    return "JSON" if start.lstrip()[:1] == b"{" else "something else"
