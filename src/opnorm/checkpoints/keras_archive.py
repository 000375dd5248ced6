"""`.keras` archives and `.weights.h5` files of Keras 3: weights, and from the config what each of them does."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opnorm.checkpoints.archives import members, read_member, searchable
from opnorm.checkpoints.files import JSON_BYTES, parse_json, require
from opnorm.checkpoints.hdf5 import Group, read_tree
from opnorm.checkpoints.keras_layers import KNOWN, Layer, serialized_layer, sublayers
from opnorm.checkpoints.keras_tree import place_weights, places
from opnorm.checkpoints.records import Checkpoint, Weight


def read_keras(path: Path) -> Checkpoint:
    """Return the checkpoint of a `.keras` archive."""
    found = members(path)
    require("config.json" in found, "the archive holds no config.json")
    require("model.weights.h5" in found, "the archive holds no model.weights.h5")
    config = parse_json(read_member(path, found["config.json"], JSON_BYTES), "config.json")
    layer = serialized_layer(config)
    require(layer is not None, "config.json describes no layer")
    tree = read_tree(path, searchable(path, found["model.weights.h5"]))
    return keras_checkpoint("keras", tree, layer)


def read_weights(path: Path) -> Checkpoint:
    """Return the checkpoint of a `.weights.h5` file: it holds no config, so what a weight does is assumed."""
    return keras_checkpoint("h5", read_tree(path, lambda: path.open("rb")), None)


def keras_checkpoint(form: str, tree: Group, model: Layer | None) -> Checkpoint:
    """Return the checkpoint of a tree of weights and the config, if any, of its model."""
    taken: set[str] = set()
    weights: list[Weight] = []
    for place in places(tree, model):
        weights += place_weights(place, taken).values()
    return Checkpoint(form, tuple(weights), None, tuple(notes(model)) if model else ())


def notes(model: Layer) -> Iterator[str]:
    """Yield a line for each layer of the config whose code would be needed to know what it does."""
    for layer in _all_layers(model):
        if layer.kind == "Lambda":
            yield f"Lambda layer {layer.name!r} is named, not run"
        elif ">" in layer.kind and layer.kind not in KNOWN:
            yield f"{layer.kind} {layer.name!r} is not a layer of Keras's: it is named, not run"


def _all_layers(layer: Layer) -> Iterator[Layer]:
    yield layer
    for inner in sublayers(_without_settings(layer.config)):
        yield from _all_layers(inner)


def _without_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config without what looks like a layer and is none: initializers, constraints, policies, ..."""
    endings = ("_initializer", "_regularizer", "_constraint", "_config", "activation", "dtype", "optimizer")
    return {key: value for key, value in config.items() if not key.endswith(endings)}
