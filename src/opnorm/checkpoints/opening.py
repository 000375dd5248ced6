"""`open_checkpoint(path)`: the reader that a file's first bytes and its name ask for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from opnorm.checkpoints.arrays import read_npy, read_npz
from opnorm.checkpoints.files import border, require
from opnorm.checkpoints.frozen_graph import read_frozen
from opnorm.checkpoints.gguf_file import read_gguf
from opnorm.checkpoints.keras_archive import read_keras, read_weight_shards
from opnorm.checkpoints.legacy_h5 import read_h5
from opnorm.checkpoints.mistakes import mistaken
from opnorm.checkpoints.msgpack_file import read_msgpack
from opnorm.checkpoints.onnx_file import read_onnx
from opnorm.checkpoints.orbax import MARKERS, read_orbax
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.safetensors import read_safetensors, read_shards
from opnorm.checkpoints.saved_model import read_saved_model
from opnorm.checkpoints.tf_checkpoint import index_of, is_shard, read_checkpoint, read_newest, read_shard
from opnorm.checkpoints.tf_first import read_first
from opnorm.checkpoints.tf_table import is_table
from opnorm.checkpoints.tflite_file import read_tflite
from opnorm.checkpoints.torch_distributed import read_distributed
from opnorm.checkpoints.torch_file import read_old_torch, read_torch

_START = 256  # bytes that tell what a file is
_SHOWN = 5  # names of a folder's files in an error
_ELSE = "something else"
_CODE = ("which would run code", "which was not run")  # the readers of pickles say so
_STATE = "If it is a whole module, save its state_dict: torch.save(model.state_dict(), path)"
Readers = Mapping[str, Callable[[Path], Checkpoint]]  # by what the file holds

_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"PK\3\4": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x80": "a pickle",
    b"GGUF": "GGUF",
}
_TORCH: Readers = {"a zip archive": read_torch, "a pickle": read_old_torch}
_READERS: dict[str, Readers] = {  # by ending, the longest first
    ".safetensors.index.json": {"JSON": read_shards},
    ".safetensors": {"safetensors": read_safetensors},
    ".weights.json": {"JSON": read_weight_shards},
    ".msgpack": {_ELSE: read_msgpack, "a pickle": read_msgpack},  # a small table begins as a pickle does
    ".keras": {"a zip archive": read_keras},
    "saved_model.pb": {_ELSE: read_saved_model},
    ".metadata": {"a pickle": read_distributed},
    ".index": {_ELSE: read_checkpoint},
    ".pb": {_ELSE: read_frozen},
    ".tflite": {"a TensorFlow Lite model": read_tflite},
    ".onnx": {_ELSE: read_onnx},
    ".gguf": {"GGUF": read_gguf},
    ".hdf5": {"HDF5": read_h5},
    ".npz": {"a zip archive": read_npz},
    ".npy": {"a NumPy array": read_npy},
    ".pth.tar": _TORCH,  # no archive of tar's: a habit of PyTorch's examples
    ".ckpt": _TORCH,
    ".pth": _TORCH,
    ".bin": _TORCH,
    ".jit": _TORCH,
    ".pt": _TORCH,
    ".h5": {"HDF5": read_h5},
}

_FOLDERS: dict[str, Callable[[Path], Checkpoint]] = {  # by a glob of names in it; the first that is there
    "saved_model.pb": read_saved_model,
    "*.data-*-of-*": read_newest,
    ".metadata": read_distributed,
    **dict.fromkeys(MARKERS, read_orbax),
}

_KNOWN = f"What can be read: {' '.join(_READERS)}"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the table of contents of a checkpoint; tensors are read on demand, and nothing in the file is executed.

    Args:
        path: A file `.keras`, `.weights.h5`, `.h5`, `.safetensors`, `.onnx`, `.tflite`, `.gguf`, `.npz`, `.npy`,
            PyTorch's `.pt`, `.pth`, `.bin`, `.ckpt`, flax's `.msgpack`, a frozen graph `.pb`, or the index of shards:
            `.safetensors.index.json`, `.weights.json`; a checkpoint of TensorFlow's by its prefix, its `.index`, or its
            folder; a folder of a SavedModel, of Orbax's, or of PyTorch's distributed checkpoints.

    Raises:
        CheckpointError: When the file cannot be read as what its name says. Nothing else is raised, here or when a
            tensor is read.
    """
    path = Path(path)  # as typed, in every message
    with border(path):
        index = None if path.exists() else index_of(path)
        if index:
            return read_checkpoint(index, path)
        require(path.exists(), "there is no such file")
        if path.is_dir():
            return _folder_reader(path)(path)
        require(path.is_file(), "it is no file")
        with path.open("rb") as file:
            start = file.read(_START)
        require(bool(start), "it is empty")
        remedy = mistaken(start)
        require(not remedy, remedy)
        if is_shard(path.name):
            return read_shard(path)
        if path.suffix != ".index" and is_table(path):
            return read_first(path)
        return _with_remedy(_reader(path, _content(start)), _beside_its_data(path))


def _beside_its_data(path: Path) -> Path:
    """Return where a link leads, since other files lie beside the target; the link where only it has an ending."""
    target = path.resolve()
    return target if path.is_symlink() and _ending(target.name) == _ending(path.name) else path


def _with_remedy(reader: Callable[[Path], Checkpoint], path: Path) -> Checkpoint:
    """Return what the reader reads; where it would have to run code, the error says how to save without."""
    try:
        return reader(path)
    except CheckpointError as error:
        if any(words in str(error) for words in _CODE):
            raise CheckpointError(f"{error}. {_STATE}") from error
        raise


def _reader(path: Path, content: str) -> Callable[[Path], Checkpoint]:
    """Return the reader that name and content agree on."""
    ending = _ending(path.name)
    if ending:
        readers = _READERS[ending]
        expected = " or ".join(readers)
        require(content in readers, f"a file {ending!r} is {expected}, but it holds {content}{_belongs(content)}")
        return readers[content]
    name = repr(path.suffix) if path.suffix else "a name without ending"
    raise CheckpointError(f"there is no reader for {name}, and it holds {content}{_belongs(content)}. {_KNOWN}")


def _ending(name: str) -> str:
    return next((ending for ending in _READERS if name.lower().endswith(ending)), "")


def _belongs(content: str) -> str:
    """Return by which endings files of that content are known."""
    endings = [ending for ending, readers in _READERS.items() if content in readers]
    return f", which has the ending {' or '.join(endings)}" if endings and content != _ELSE else ""


def _folder_reader(path: Path) -> Callable[[Path], Checkpoint]:
    """Return the reader that a file in a folder asks for."""
    for pattern, reader in _FOLDERS.items():
        if any(path.glob(pattern)):
            return reader
    raise CheckpointError(_in_folder(path))


def _in_folder(path: Path) -> str:
    """Return that a folder is none to be read, and which files in it are."""
    inside = sorted(one.name for one in path.iterdir() if _ending(one.name) and one.is_file())
    index = [name for name in inside if name.endswith(".json")] or inside
    shown = ", ".join(map(repr, index[:_SHOWN])) + (f" and {len(index) - _SHOWN} more" if len(index) > _SHOWN else "")
    return f"it is a folder, no file; name one in it: {shown}" if index else f"it is a folder, no file. {_KNOWN}"


def _content(start: bytes) -> str:
    """Return what a file holds, by its first bytes."""
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**40:
        return "safetensors"  # first: the length it begins with may begin as a pickle does
    for magic, content in _MAGIC.items():
        if start.startswith(magic):
            return content
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    return "JSON" if start.lstrip()[:1] == b"{" else _ELSE
