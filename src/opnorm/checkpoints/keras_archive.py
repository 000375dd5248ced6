"""`.keras` archives: weights, and from the config what each of them does and how the layers are joined."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any
from zipfile import ZipInfo

from opnorm.checkpoints.archives import members, read_member, searchable
from opnorm.checkpoints.files import JSON_BYTES, inside, parse_json, require
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.hdf5 import Group, read_file, read_tree
from opnorm.checkpoints.keras_graph import Weights, keras_graph
from opnorm.checkpoints.keras_layers import Layer, serialized_layer, sublayers
from opnorm.checkpoints.keras_maps import KNOWN
from opnorm.checkpoints.keras_tree import Place, place_weights, places
from opnorm.checkpoints.keras_versions import UNKNOWN, Version, of_version, version_of
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Graph, Weight


def read_keras(path: Path) -> Checkpoint:
    """Return the checkpoint of a `.keras` archive."""
    found = members(path)
    require("config.json" in found, "the archive holds no config.json")
    require("model.weights.h5" in found, "the archive holds no model.weights.h5")
    config = parse_json(read_member(path, found["config.json"], JSON_BYTES), "config.json")
    layer = serialized_layer(of_version(config, _version(path, found.get("metadata.json"))))
    require(layer is not None, "config.json describes no layer")
    tree = read_tree(path, searchable(path, found["model.weights.h5"]))
    checkpoint = keras_checkpoint("keras", tree, layer)
    others = sorted(set(found) - {"config.json", "metadata.json", "model.weights.h5"})
    notes = [f"{len(others)} more files of the archive are not read: {', '.join(others[:3])}"] if others else []
    return checkpoint._replace(notes=(*checkpoint.notes, *notes))


def _version(path: Path, member: ZipInfo | None) -> Version:
    """Return the version of Keras that an archive names."""
    try:
        metadata = parse_json(read_member(path, member, JSON_BYTES), "metadata.json") if member else None
    except CheckpointError:  # nothing of the model depends on it but the version
        return UNKNOWN
    return version_of(metadata.get("keras_version")) if isinstance(metadata, Mapping) else UNKNOWN


def read_weight_shards(path: Path) -> Checkpoint:
    """Return the checkpoint of the `.weights.h5` shards that a `.weights.json` names, all in its own folder."""
    require(path.stat().st_size <= JSON_BYTES, f"it is larger than {JSON_BYTES >> 20} MiB")
    index = parse_json(path.read_bytes(), "it")
    require(isinstance(index, Mapping) and isinstance(index.get("weight_map"), Mapping), "it has no `weight_map`")
    places = index["weight_map"].values()
    names = sorted({str(name) for place in places for name in (place if isinstance(place, list) else [place])})
    require(bool(names), "its `weight_map` is empty")
    shards = [inside(path.parent, name) for name in names]
    return keras_checkpoint("h5", reduce(_merged, map(read_file, shards)), None)


def _merged(one: Group, other: Group) -> Group:
    """Return the tree of two shards: Keras splits a file between any two variables."""
    taken = set(one.tensors)
    tensors = {**one.tensors, **{unique(key, taken): tensor for key, tensor in other.tensors.items()}}
    groups = {**one.groups, **other.groups}
    both = {key: _merged(one.groups[key], other.groups[key]) for key in one.groups if key in other.groups}
    return Group(one.name or other.name, tensors, {**groups, **both})


def keras_checkpoint(form: str, tree: Group, model: Layer | None) -> Checkpoint:
    """Return the checkpoint of a tree of weights and the config, if any, of its model."""
    return model_checkpoint(form, model, list(places(tree, model)))


def model_checkpoint(form: str, model: Layer | None, found: Sequence[Place]) -> Checkpoint:
    """Return the checkpoint of places that hold weights; without a config what a weight does is assumed."""
    taken: set[str] = set()
    weights = [(place, place_weights(place, taken)) for place in found]
    used = [(place.path, by_role) for place, by_role in weights if not place.beside]
    graph, notes = graph_of(model, used) if model else (None, ())
    every: dict[int, Weight] = {}  # a live layer may stand in several models
    for weight in (weight for _, by_role in weights for weight in by_role.values()):
        every.setdefault(id(weight.read), weight)
    return Checkpoint(form, tuple(every.values()), graph, (*(notes_of(model) if model else ()), *notes))


def graph_of(model: Layer, weights: Weights) -> tuple[Graph | None, tuple[str, ...]]:
    """Return the graph, or why there is none where its config makes no sense."""
    try:
        return keras_graph(model, weights), ()
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # configs come from files
        return None, (f"how its layers are joined is not understood: {type(error).__name__}: {error}",)


def notes_of(model: Layer) -> Iterator[str]:
    """Yield a line for each layer of the config whose code would be needed to know what it does."""
    for layer in all_layers(model):
        if layer.kind == "Lambda":
            yield f"Lambda layer {layer.name!r} is named, not run"
        elif ">" in layer.kind and layer.kind not in KNOWN:
            name = f" {layer.name!r}" if layer.name else ""
            yield f"{layer.kind}{name} is not a layer of Keras's: it is named, not run"


def all_layers(layer: Layer) -> Iterator[Layer]:
    """Yield a layer and all that its config holds."""
    yield layer
    for inner in sublayers(_without_settings(layer.config)):
        yield from all_layers(inner)


def _without_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config without what looks like a layer and is none: initializers, constraints, policies, ..."""
    endings = ("_initializer", "_regularizer", "_constraint", "_config", "activation", "dtype", "optimizer")
    return {key: value for key, value in config.items() if not key.endswith(endings)}
