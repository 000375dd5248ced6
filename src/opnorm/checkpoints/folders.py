"""Folders of models: which of their files hold the weights, which of them are shards, and what is not read."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.checkpoints.config import beside
from opnorm.checkpoints.files import JSON_BYTES, is_plain, parse_json, require

_PIPELINE, _MODULES = "model_index.json", "modules.json"  # of diffusers and of sentence-transformers
_STEMS = (  # of files that hold a whole model, the first that is there
    "model", "diffusion_pytorch_model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model", "tf_model",
    "flax_model", "adapter_model", "pytorch_lora_weights",
)  # fmt: skip
_FORMS = [  # of what follows, the first that is there; a variant is "fp16"
    re.compile(rf"({'|'.join(_STEMS)}){form}")
    for form in (
        r"\.safetensors", r"\.safetensors\.index\.json", r"\.[\w-]+\.safetensors",
        r"\.safetensors\.index\.[\w-]+\.json", r"\.[\w-]+\.safetensors\.index\.json",
        r"\.bin", r"\.bin\.index\.json", r"\.[\w-]+\.bin", r"\.bin\.index\.[\w-]+\.json", r"\.h5", r"\.msgpack",
    )
]  # fmt: skip
_SHARD = re.compile(r"(?P<of>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<ending>\.\w+)")
_KERAS_SHARD = re.compile(r".+_\d{5}\.weights\.h5")
_LONE = (".weights.json", ".safetensors")  # what is read under any name where it is the only one
_ENTRIES = 20_000  # of a folder that are looked at
_FOLDERS = 100  # in a folder that are looked into
_SHOWN = 5  # names in a message

Readable = Callable[[str], str]  # the ending by which a reader knows a file of that name, or ""


class Model(NamedTuple):
    """A model of a folder."""

    files: tuple[Path, ...]  # one, or all shards of one that has no index
    prefix: str  # before the names of its tensors
    notes: tuple[str, ...]


def models_in(folder: Path, readable: Readable) -> list[Model]:
    """Return the models in a folder, none where its files are of no model: one, or the parts of a pipeline.

    Of several files of one model that is read which its library would read: safetensors before pickles, one file before
    shards. A note names the others.

    Raises:
        CheckpointError: When its list of parts is broken, or shards are missing.
    """
    folder = beside(folder)
    parts = [(name, folder / name) for name in _parts(folder)]
    found = (_model(place, f"{name}." if name else "", readable) for name, place in [("", folder), *parts])
    return [model for model in found if model is not None]


def folders_in(folder: Path, readable: Readable) -> list[str]:
    """Return the names of the folders in a folder that hold files with weights, `checkpoint-2` before `checkpoint-10`.

    Of a training's many checkpoints none is chosen: which one is wanted is not said.
    """
    names = sorted((entry.name for entry in _entries(folder) if _holds(entry.is_dir)), key=_natural)
    return [name for name in names[:_FOLDERS] if any(map(readable, _names(folder / name)))]


def shown(names: Sequence[str]) -> str:
    """Return a few of the names for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _model(folder: Path, prefix: str, readable: Readable) -> Model | None:
    names = _names(folder)
    chosen = _chosen([name for name in names if readable(name) or name.endswith(".json")])
    if not chosen:
        return None
    others = [name for name in names if readable(name) and name not in chosen and not _belongs(name)]
    where = f"the folder {prefix[:-1]!r}" if prefix else "the folder"
    notes = [f"{chosen[0]!r} is read; of what else {where} holds nothing is: {shown(others)}"] if others else []
    return Model(tuple(folder / name for name in chosen), prefix, tuple(notes))


def _chosen(names: Sequence[str]) -> list[str]:
    """Return the file that holds the model, or its shards; nothing where there is none, or more than one."""
    whole = [name for name in names if not _SHARD.fullmatch(name)]
    matches = [(form, pattern.fullmatch(name)) for form, pattern in enumerate(_FORMS) for name in whole]
    ranked = [(form, _STEMS.index(match[1]), match[0]) for form, match in matches if match]
    if ranked:
        return [min(ranked)[-1]]
    shards = _shards(names)
    for ending in [] if shards else _LONE:
        lone = [name for name in whole if name.endswith(ending)]
        if len(lone) == 1:
            return lone
    return shards


def _shards(names: Sequence[str]) -> list[str]:
    """Return the shards of the only model that has some, without an index."""
    matches = [match for match in map(_SHARD.fullmatch, names) if match]
    sets = {(match["of"], match["count"], match["ending"]) for match in matches}
    if len(sets) != 1:
        return []
    ((stem, count, _),) = sets
    numbers = sorted(int(match["number"][:9]) for match in matches)
    whole = numbers == list(range(1, len(numbers) + 1)) and len(numbers) == int(count[:9])
    require(whole, f"of the {count[:9]} shards of {stem!r} some are missing")
    return sorted(match[0] for match in matches)


def _belongs(name: str) -> bool:
    """Return whether a file is a shard, which its index stands for."""
    return bool(_SHARD.fullmatch(name) or _KERAS_SHARD.fullmatch(name))


def _parts(folder: Path) -> list[str]:
    """Return the folders in a folder that a pipeline is made of."""
    pipeline, modules = _table(folder / _PIPELINE), _table(folder / _MODULES)
    names = [name for name, value in pipeline.items() if isinstance(value, list)] if isinstance(pipeline, dict) else []
    if isinstance(modules, list):
        names += [str(one.get("path", "")) for one in modules if isinstance(one, dict)]
    plain = [name for name in dict.fromkeys(names) if name not in ("", ".") and is_plain(name)]
    return [name for name in plain[:_FOLDERS] if (folder / name).is_dir()]


def _table(file: Path) -> Any:
    if not file.is_file():
        return None
    require(file.stat().st_size <= JSON_BYTES, f"{file.name} is larger than {JSON_BYTES >> 20} MiB")
    return parse_json(file.read_bytes(), file.name)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if _holds(entry.is_file))


def lost_links(folder: Path) -> list[str]:
    """Return the names in a folder that are links to nothing, as an unfinished download leaves them."""
    links = [entry.name for entry in _entries(beside(folder)) if entry.is_symlink()]
    return sorted(name for name in links if not (beside(folder) / name).exists())


def _holds(test: Callable[[], bool]) -> bool:
    """Return what a test of an entry says; no for a link that leads round in a circle."""
    with suppress(OSError):
        return test()
    return False


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    """Return what is in a folder; nothing of one that may not be read."""
    with suppress(OSError), os.scandir(folder) as found:
        return list(islice(found, _ENTRIES))
    return []


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts numbers in names by their size."""
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece[:20]) if place % 2 else -1, piece) for place, piece in enumerate(pieces)]
