"""Weights in several files: the tensors of all shards together, as an index or their names tell."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from opnorm.checkpoints import safetensors, torch_file
from opnorm.checkpoints.contents import PICKLE, START, ZIP, content
from opnorm.checkpoints.files import JSON_BYTES, inside, parse_json, require
from opnorm.checkpoints.flat import Entry, flat_weights
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.keras_archive import read_weight_shards
from opnorm.checkpoints.records import Checkpoint

_IN_ALL = 2**18  # tensors of all shards: Kimi K2 has 140,000, with their scales

Tensors = Mapping[str, Entry]


def read_index(path: Path) -> Checkpoint:
    """Return the checkpoint of the shards that an index names; each must lie in the index's folder.

    What a shard holds and the index does not name has its row too, and a note.
    """
    places = index_of(path)
    if any(str(shard).rstrip("']").endswith(".h5") for shard in places.values()):  # Keras's may be lists of shards
        return read_weight_shards(path)
    names = {name: str(shard) for name, shard in places.items()}
    files = {name: inside(path.parent, name) for name in sorted(set(names.values()))}
    require(bool(files), "its `weight_map` is empty")
    shards = _opened(files)
    for name, shard in names.items():
        require(name in shards[shard], f"the tensor {name!r} is not in {shard!r}")
    others = [(n, entry) for shard, held in shards.items() for n, entry in held.items() if names.get(n) != shard]
    notes = (f"{len(others)} tensors of the shards are not named in the index",) if others else ()
    entries = [shards[shard][name] for name, shard in names.items()]
    return _joined(path, next(iter(files.values())), entries, others, notes)


def read_together(files: Sequence[Path]) -> Checkpoint:
    """Return the checkpoint of files that are the shards of one, without an index."""
    shards = _opened({file.name: file for file in files})
    notes = (f"the {len(files)} shards have no index: read by their names",)
    every = [pair for held in shards.values() for pair in held.items()]
    return _joined(files[0], files[0], [], every, notes)


def index_of(path: Path) -> Mapping[str, Any]:
    """Return the `weight_map` of an index: by the name of each tensor its shard."""
    index = parse_json(path.read_bytes() if path.stat().st_size <= JSON_BYTES else b"", "the index")
    require(isinstance(index, Mapping) and isinstance(index.get("weight_map"), Mapping), "it has no `weight_map`")
    found: Mapping[str, Any] = index["weight_map"]
    return found


def _opened(files: Mapping[str, Path]) -> dict[str, Tensors]:
    """Return the tensors of each shard, by the shard's name."""
    shards = {name: _reader(file).tensors_of(file) for name, file in files.items()}
    count = sum(map(len, shards.values()))
    require(count <= _IN_ALL, f"its shards have {count} tensors, more than {_IN_ALL}")
    return shards


def _reader(path: Path) -> ModuleType:
    """Return what reads a shard, by its content: PyTorch's are zip archives or pickles."""
    with path.open("rb") as file:
        return torch_file if content(file.read(START)) in (ZIP, PICKLE) else safetensors


def _joined(
    path: Path, shard: Path, named: list[Entry], others: Iterable[tuple[str, Entry]], notes: tuple[str, ...]
) -> Checkpoint:
    """Return the checkpoint of the entries of an index and of others, whose names may be taken."""
    taken = {entry.named.name for entry in named}
    unnamed = [entry._replace(named=entry.named._replace(name=unique(name, taken))) for name, entry in others]
    return Checkpoint(_reader(shard).FORMAT, flat_weights(path, named + unnamed), None, notes)
