"""TensorFlow's checkpoints as weights: opened by the index, by a file of numbers, by the prefix, or by the folder."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import JSON_BYTES, require
from opnorm.checkpoints.flat import Entry
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.records import Checkpoint, Geometry, Weight
from opnorm.checkpoints.saved_objects import read_meta
from opnorm.checkpoints.tf_bundle import Bundle, read_bundle
from opnorm.checkpoints.tf_guesses import File, guess_variable
from opnorm.checkpoints.tf_objects import GRAPH, Node, full_names, objects, optimizer_keys
from opnorm.checkpoints.tf_uses import Use, uses

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # how the keys of variables end
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")
_NEWEST = re.compile(r'^\s*model_checkpoint_path:\s*"([^"\n]*)"', re.MULTILINE)  # of the text file `checkpoint`
_SHOWN = 5  # names in an error


def read_checkpoint(index: Path, opened: Path | None = None) -> Checkpoint:
    """Return the checkpoint of an `.index` file, which may have been opened by another path."""
    bundle = read_bundle(index, opened or index)
    nodes = objects(bundle)
    weights = variables(bundle, nodes)
    graph = index.with_name(
        index.name.removesuffix(".index") + ".meta"
    )  # of operations: TensorFlow 1 writes it beside the index
    notes = () if nodes or not graph.is_file() else follow(graph, weights)
    return Checkpoint("tensorflow", tuple(weights.values()), None, notes)


def follow(graph: Path, weights: dict[str, Weight]) -> tuple[str, ...]:
    """Give kernels the geometry that a file of operations tells; the numbers do not depend on it."""
    try:
        apply_uses(weights, uses(read_meta(graph).bodies, {}))
    except ValueError as error:  # a CheckpointError too
        return (f"the operations in {graph.name!r} are not understood: {error}",)
    return (f"the operations in {graph.name!r} were looked at, and not run",)


def variables(bundle: Bundle, nodes: Sequence[Node]) -> dict[str, Weight]:
    """Return the weights of a checkpoint by their keys; `nodes` are the objects that it was made of."""
    labels = _labels(bundle, full_names(nodes))
    return guessed({key: bundle.entry(key, label) for key, label in labels.items()}, optimizer_keys(nodes))


def guessed(entries: Mapping[str, Entry], state: Collection[str]) -> dict[str, Weight]:
    """Return the weights of tensors by their keys, of which an optimizer keeps those in `state`."""
    file = File.of({one.named.name: one.named for one in entries.values() if not one.reason})
    weights = {}
    for key, (tensor, reason) in entries.items():
        if key in state:
            geometry = g.nothing("unknown", g.OPTIMIZER)
        else:
            geometry = _unread(tensor.dtype, reason) if reason else guess_variable(tensor, file)
        weights[key] = Weight(*tensor, geometry)
    return weights


def apply_uses(weights: dict[str, Weight], known: Mapping[str, Sequence[Use]]) -> None:
    """Give kernels, by their keys, the geometry of all operations that read them, where it is known."""
    for key, several in known.items():
        weight = weights.get(key)
        if weight is not None and weight.geometry.operator is not None:
            found = [use(weight.shape) for use in several]
            maps = [one for one in found if one is not None and one.operator is not None]
            if len(maps) == len(found):
                weights[key] = weight._replace(geometry=joined_uses(maps))


def joined_uses(found: Sequence[Geometry]) -> Geometry:
    """Return what a variable does in all of its uses."""
    unknown = [one for one in found if one.unknown]
    maps = [one for one in found if one.operator]
    if unknown or not maps:
        return (unknown or list(found))[0]
    first, *rest = maps
    others = [one for one in rest if one.text != first.text]
    readings = (*first.readings, *(reading for one in others for reading in (one, *one.readings)))
    return first._replace(readings=readings, assumed=first.assumed or bool(others))


def _unread(dtype: str, reason: str) -> Geometry:
    """Return what a tensor is that is not read: a text is no kernel, and anything else may be one."""
    return g.nothing("unknown", reason) if dtype == "string" else g.unknown("unknown", reason)


def _labels(bundle: Bundle, names: Mapping[str, str]) -> dict[str, str]:
    """Return what to call each tensor: by its full name where only it has that, else by its key."""
    count, taken = Counter(names.values()), set[str]()
    found = {}
    for key in bundle.names():
        if key != GRAPH:
            short, full = key.removesuffix(_VALUE), names.get(key, "")
            stem, _, last = short.rpartition("/")
            alone = count[full] == 1 and "/" in full
            label = full if alone else f"{stem}/{full}" if full and last.isdigit() else short
            found[key] = unique(label, taken)
    return found


def read_shard(path: Path) -> Checkpoint:
    """Return the checkpoint that a `.data-NNNNN-of-NNNNN` file belongs to."""
    index = path.with_name(_SHARD.sub("", path.name) + ".index")
    require(index.is_file(), f"it holds numbers alone, and {index.name!r}, which says whose, is not beside it")
    return read_checkpoint(index, path)


def is_shard(name: str) -> bool:
    """Return whether a file is called as those are that hold a checkpoint's numbers."""
    return _SHARD.search(name) is not None


def index_of(prefix: Path) -> Path | None:
    """Return the index of the checkpoint that is called `prefix`, None where there is none."""
    index = prefix.with_name(f"{prefix.name}.index")
    return index if prefix.name and index.is_file() else None


def read_newest(folder: Path) -> Checkpoint:
    """Return the checkpoint that the folder's text file `checkpoint` names, or the only one in it."""
    found = sorted(one.name for one in folder.glob("*.index"))
    beside = folder / "checkpoint"
    named = _named(beside) if beside.is_file() else ""
    index = f"{named}.index"
    if index not in found:
        require(bool(found), "it has no `.index`")
        shown = ", ".join(map(repr, found[-_SHOWN:]))
        missing = f"its `checkpoint` names {named!r}, which is not there" if named else "it has no file `checkpoint`"
        require(len(found) == 1, f"it holds {len(found)} checkpoints and {missing}; name one: {shown}")
        index = found[0]
    return read_checkpoint(folder / index, folder)


def _named(file: Path) -> str:
    """Return the name of the newest checkpoint, which once lay wherever the text says."""
    require(file.stat().st_size <= JSON_BYTES, "its `checkpoint` is no list of names")
    found = _NEWEST.search(file.read_text("utf-8", "replace"))
    return found[1].replace("\\", "/").rpartition("/")[2] if found else ""
