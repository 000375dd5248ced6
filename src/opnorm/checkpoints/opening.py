"""`open_checkpoint(path)`: the reader that a file's first bytes and its name ask for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from opnorm.checkpoints.archives import members
from opnorm.checkpoints.arrays import read_equinox, read_npy, read_npz
from opnorm.checkpoints.config import NAME as CONFIG
from opnorm.checkpoints.config import read_config
from opnorm.checkpoints.contents import (
    ELSE,
    GGUF,
    HDF5,
    JSON,
    NUMPY,
    PICKLE,
    SAFETENSORS,
    START,
    TFLITE,
    ZIP,
    content,
    is_old_torch,
    kind_of_archive,
)
from opnorm.checkpoints.files import border, require
from opnorm.checkpoints.folders import Model, folders_in, lost_links, models_in, shown
from opnorm.checkpoints.frozen_graph import read_frozen
from opnorm.checkpoints.gguf_file import read_gguf
from opnorm.checkpoints.keras_archive import read_keras, read_weight_shards
from opnorm.checkpoints.legacy_h5 import read_h5
from opnorm.checkpoints.mistakes import mistaken
from opnorm.checkpoints.msgpack_file import read_msgpack
from opnorm.checkpoints.onnx_file import read_onnx
from opnorm.checkpoints.orbax import MARKERS, read_orbax
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.remote import located, require_whole
from opnorm.checkpoints.safetensors import read_safetensors
from opnorm.checkpoints.saved_model import read_saved_model
from opnorm.checkpoints.shards import read_index, read_together
from opnorm.checkpoints.tf_checkpoint import index_of, is_shard, read_checkpoint, read_newest, read_shard
from opnorm.checkpoints.tf_first import read_first
from opnorm.checkpoints.tf_table import is_table
from opnorm.checkpoints.tflite_file import read_tflite
from opnorm.checkpoints.torch_distributed import read_distributed
from opnorm.checkpoints.torch_file import read_old_torch, read_torch

_CODE = ("which would run code", "which was not run")  # the readers of pickles say so
_STATE = "If it is a whole module, save its state_dict: torch.save(model.state_dict(), path)"
_CONFIGURED = (SAFETENSORS, "torch")  # formats whose layers a config.json beside them describes
_INDEX = 2**16  # bytes in which an index of shards says what it is
Readers = Mapping[str, Callable[[Path], Checkpoint]]  # by what the file holds

_TORCH: Readers = {ZIP: read_torch, PICKLE: read_old_torch}
_READERS: dict[str, Readers] = {  # by ending, the longest first
    ".safetensors.index.json": {JSON: read_index},
    ".safetensors": {SAFETENSORS: read_safetensors},
    ".weights.json": {JSON: read_weight_shards},
    ".bin.index.json": {JSON: read_index},
    ".msgpack": {ELSE: read_msgpack, PICKLE: read_msgpack},  # a small table begins as a pickle does
    ".keras": {ZIP: read_keras},
    ".tflite": {TFLITE: read_tflite},
    "saved_model.pb": {ELSE: read_saved_model},
    ".metadata": {PICKLE: read_distributed},
    ".index": {ELSE: read_checkpoint},
    ".pb": {ELSE: read_frozen},
    ".onnx": {ELSE: read_onnx},
    ".gguf": {GGUF: read_gguf},
    ".hdf5": {HDF5: read_h5},
    ".npz": {ZIP: read_npz},
    ".npy": {NUMPY: read_npy},
    ".eqx": {NUMPY: read_equinox, JSON: read_equinox},
    ".pth.tar": _TORCH,  # no archive of tar's: a habit of PyTorch's examples
    ".ckpt": _TORCH,
    ".pth": _TORCH,
    ".bin": _TORCH,
    ".jit": _TORCH,
    ".pt": _TORCH,
    ".h5": {HDF5: read_h5},
}

_BY_RANGE = (
    read_safetensors,
    read_index,
    read_npz,
    read_npy,
    read_equinox,
    read_torch,
    read_old_torch,
)  # these only open and seek

_FOLDERS: dict[str, Callable[[Path], Checkpoint]] = {  # by a glob of names in it; the first that is there
    "saved_model.pb": read_saved_model,
    "*.data-*-of-*": read_newest,
    ".metadata": read_distributed,
    **dict.fromkeys(MARKERS, read_orbax),
}

_UNNAMED: Readers = {  # whose content says enough
    SAFETENSORS: read_safetensors,
    HDF5: read_h5,
    NUMPY: read_npy,
    GGUF: read_gguf,
}
_KNOWN = f"What can be read: {' '.join(_READERS)}, and folders of models"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the table of contents of a checkpoint; tensors are read on demand, and nothing in the file is executed.

    Args:
        path: A file `.keras`, `.weights.h5`, `.h5`, `.safetensors`, `.onnx`, `.tflite`, `.gguf`, `.npz`, `.npy`,
            PyTorch's `.pt`, `.pth`, `.bin`, `.ckpt`, Equinox's `.eqx`, flax's `.msgpack`, a frozen graph `.pb`, or the
            index of shards: `.safetensors.index.json`, `.bin.index.json`, `.weights.json`; a file of another name, or
            of none, whose content tells what it is; a checkpoint of TensorFlow's by its prefix, its `.index`, or its
            folder; a folder of a model, a pipeline or an adapter, of a SavedModel, of Orbax's, or of PyTorch's
            distributed checkpoints; or the URL of a file that is read in parts: safetensors, NumPy's, PyTorch's.

    Raises:
        CheckpointError: When the file cannot be read as what its name says. Nothing else is raised, here or when a
            tensor is read.
    """
    path = located(path)  # as typed, in every message
    with border(path):
        index = index_of(path) if isinstance(path, Path) and not path.exists() else None
        if index:
            return read_checkpoint(index, path)
        require(path.exists(), "there is no such file")
        return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Checkpoint:
    """Return the checkpoint of one file, or of the shards of an index."""
    with border(path):
        require(path.is_file(), "it is no file")
        with path.open("rb") as file:
            start = file.read(START)
        require(bool(start), "it is empty")
        remedy = mistaken(start)
        require(not remedy, remedy)
        reader = _of_tensorflow(path) or _reader(path, start)
        if reader not in _BY_RANGE:
            require_whole(path)
        return _configured(_with_remedy(reader, _beside_its_data(path)), path)


def _of_tensorflow(path: Path) -> Callable[[Path], Checkpoint] | None:
    """Return the reader of a part of a TensorFlow checkpoint, which no ending and no first bytes tell."""
    if is_shard(path.name):
        return read_shard
    return read_first if isinstance(path, Path) and path.suffix != ".index" and is_table(path) else None


def _configured(found: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint with a note where the configuration beside it should have told of its layers and does not."""
    trouble = read_config(path).trouble if found.format in _CONFIGURED else ""
    note = f"its configuration is not read, so layers are taken for what names and shapes suggest: {trouble}"
    return found._replace(notes=(*found.notes, note)) if trouble else found


def _folder(path: Path) -> Checkpoint:
    """Return the checkpoint of a folder: of the models in it, else of the format that a file in it speaks for."""
    models = models_in(path, _ending)
    if not models:
        return _folder_reader(path)(path)
    found = [_model(model) for model in models]
    weights = tuple(weight for one in found for weight in one.weights)
    notes = tuple(note for one in found for note in one.notes)
    graph = None if found[1:] else found[0].graph
    return Checkpoint(found[0].format, weights, graph, notes)


def _model(model: Model) -> Checkpoint:
    """Return the checkpoint of a model of a folder, its names behind those of its part of a pipeline."""
    first, *others = model.files
    found = _configured(read_together(model.files), first) if others else _file(first)
    weights = tuple(weight._replace(name=model.prefix + weight.name) for weight in found.weights)
    return found._replace(weights=weights, notes=(*found.notes, *model.notes))


def _beside_its_data(path: Path) -> Path:
    """Return where a link leads, since other files lie beside the target; the link where only it has an ending.

    A file of which only the configuration lies beside it stays the link where that lies beside the link.
    """
    target, ending = path.resolve(), _ending(path.name)
    configured = not ending.endswith((".json", ".onnx")) and (path.parent / CONFIG).is_file()
    return target if path.is_symlink() and _ending(target.name) == ending and not configured else path


def _with_remedy(reader: Callable[[Path], Checkpoint], path: Path) -> Checkpoint:
    """Return what the reader reads; where it would have to run code, the error says how to save without."""
    try:
        return reader(path)
    except CheckpointError as error:
        if any(words in str(error) for words in _CODE):
            raise CheckpointError(f"{error}. {_STATE}") from error
        raise


def _reader(path: Path, start: bytes) -> Callable[[Path], Checkpoint]:
    """Return the reader that name and content agree on, or of a name that tells nothing the content alone."""
    ending, held = _ending(path.name), content(start)
    if ending:
        readers = _READERS[ending]
        expected = " or ".join(readers)
        require(held in readers, f"a file {ending!r} is {expected}, but it holds {held}{_belongs(held)}")
        return readers[held]
    reader = _by_content(path, held, start)
    if reader is None:
        name = repr(path.suffix) if path.suffix else "a name without ending"
        raise CheckpointError(f"there is no reader for {name}, and it holds {held}{_belongs(held)}. {_KNOWN}")
    return reader


def _by_content(path: Path, held: str, start: bytes) -> Callable[[Path], Checkpoint] | None:
    """Return the reader of a file whose name tells nothing, None where its content does not either."""
    if held == ZIP:
        ending = kind_of_archive(list(members(path)))
        return _READERS[ending][ZIP] if ending else None
    if held == JSON:
        with path.open("rb") as file:
            return read_index if b'"weight_map"' in file.read(_INDEX) else None
    return read_old_torch if held == PICKLE and is_old_torch(start) else _UNNAMED.get(held)


def _ending(name: str) -> str:
    return next((ending for ending in _READERS if name.lower().endswith(ending)), "")


def _belongs(held: str) -> str:
    """Return by which endings files of that content are known."""
    endings = [ending for ending, readers in _READERS.items() if held in readers]
    return f", which has the ending {' or '.join(endings)}" if endings and held != ELSE else ""


def _folder_reader(path: Path) -> Callable[[Path], Checkpoint]:
    """Return the reader that a file in a folder asks for."""
    for pattern, reader in _FOLDERS.items():
        if any(path.glob(pattern)):
            return reader
    raise CheckpointError(_in_folder(path))


def _in_folder(path: Path) -> str:
    """Return that a folder is none to be read, and which files and folders in it are."""
    inside = sorted(one.name for one in path.iterdir() if _ending(one.name) and one.is_file())
    inside = [name for name in inside if name.endswith(".json")] or inside
    inside += folders_in(path, _ending)
    lost = [] if inside else [name for name in lost_links(path) if _ending(name)]
    if lost:
        return f"it is a folder with links to files that are missing: {shown(lost)}"
    return f"it is a folder, no file{f'; name one in it: {shown(inside)}' if inside else f'. {_KNOWN}'}"
