"""`open_checkpoint(path)`: the reader that a file's first bytes and its name ask for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from opnorm.checkpoints.arrays import read_npy, read_npz
from opnorm.checkpoints.files import border, require
from opnorm.checkpoints.keras_archive import read_keras, read_weight_shards
from opnorm.checkpoints.legacy_h5 import read_h5
from opnorm.checkpoints.onnx_file import read_onnx
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.safetensors import read_safetensors, read_shards
from opnorm.checkpoints.torch_file import read_old_torch, read_torch

Readers = Mapping[str, Callable[[Path], Checkpoint]]  # by what the file holds

_MAGIC = {b"\x89HDF\r\n\x1a\n": "HDF5", b"PK\3\4": "a zip archive", b"\x93NUMPY": "a NumPy array", b"\x80": "a pickle"}
_TORCH: Readers = {"a zip archive": read_torch, "a pickle": read_old_torch}
_READERS: dict[str, Readers] = {  # by ending, the longest first
    ".safetensors.index.json": {"JSON": read_shards},
    ".safetensors": {"safetensors": read_safetensors},
    ".weights.json": {"JSON": read_weight_shards},
    ".keras": {"a zip archive": read_keras},
    ".onnx": {"something else": read_onnx},
    ".hdf5": {"HDF5": read_h5},
    ".npz": {"a zip archive": read_npz},
    ".npy": {"a NumPy array": read_npy},
    ".ckpt": _TORCH,
    ".pth": _TORCH,
    ".bin": _TORCH,
    ".jit": _TORCH,
    ".pt": _TORCH,
    ".h5": {"HDF5": read_h5},
}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the table of contents of a checkpoint; tensors are read on demand, and nothing in the file is executed.

    Args:
        path: A file `.keras`, `.weights.h5`, `.h5`, `.safetensors`, `.onnx`, `.npz`, `.npy`, PyTorch's `.pt`, `.pth`,
            `.bin`, `.ckpt`, or the index of shards: `.safetensors.index.json`, `.weights.json`.

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


def _reader(path: Path, content: str) -> Callable[[Path], Checkpoint]:
    """Return the reader that name and content agree on."""
    for ending, readers in _READERS.items():
        if path.name.lower().endswith(ending):
            expected = " or ".join(readers)
            require(content in readers, f"a file {ending!r} is {expected}, but it holds {content}")
            return readers[content]
    raise CheckpointError(f"no reader for {path.suffix or 'a name without ending'!r} that holds {content}")


def _content(start: bytes) -> str:
    """Return what a file holds, by its first bytes."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        return "safetensors"  # first: the length it begins with may begin as a pickle does
    for magic, content in _MAGIC.items():
        if start.startswith(magic):
            return content
    return "JSON" if start.lstrip()[:1] == b"{" else "something else"
