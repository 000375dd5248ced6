"""`.h5` files of Keras 1 and 2 (and Keras 3 writing as they did): whole models, weights by layer names, plain files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import parse_json
from opnorm.checkpoints.hdf5 import Group, Tensor, read_file
from opnorm.checkpoints.hdf5_attributes import attribute_texts, opened
from opnorm.checkpoints.keras_archive import all_layers, keras_checkpoint, model_checkpoint
from opnorm.checkpoints.keras_layers import Layer, guessed_layer, serialized_layer, sublayer, sublayers
from opnorm.checkpoints.keras_names import by_role
from opnorm.checkpoints.keras_tree import Place, plain_places, training_places
from opnorm.checkpoints.keras_versions import UNKNOWN, Version, of_version, version_of
from opnorm.checkpoints.records import Checkpoint

_WRAPPERS = ("TimeDistributed", "SpectralNormalization", "opnorm>SpectralNormalization")
_STATE = ("vector_u", "sn_u")  # a wrapper's own; every other weight under its name is the wrapped layer's
_NOTHING = Group("", {}, {})


def read_h5(path: Path) -> Checkpoint:
    """Return the checkpoint of an HDF5 file, by whichever Keras it was written, or by none."""
    tree = read_file(path)
    with opened(lambda: path.open("rb")) as file:
        config = attribute_texts(file, "model_config")
        weights = file["model_weights"] if "model_weights" in tree.groups else file
        order = attribute_texts(weights, "layer_names")
        version = _version(file, weights)
    if order is None and config is None and "model_weights" not in tree.groups and _holds_vars(tree):
        return keras_checkpoint("h5", tree, None)
    model = serialized_layer(of_version(parse_json(config[0], "model_config"), version)) if config else None
    plain = version[0] < 2 if order or config else True
    return model_checkpoint("h5", model, list(_places(tree, model, order or (), plain)))


def _version(*groups: Any) -> Version:
    """Return the version of Keras that wrote a file, unknown where its attributes contradict each other."""
    found = {version_of("".join(attribute_texts(group, "keras_version") or [])) for group in groups} - {UNKNOWN}
    return found.pop() if len(found) == 1 else UNKNOWN


def _holds_vars(group: Group) -> bool:
    """Return whether Keras 3 wrote the file: it keeps the variables of a layer in a group of this name."""
    return "vars" in group.groups or any(map(_holds_vars, group.groups.values()))


def _places(tree: Group, model: Layer | None, order: Sequence[str], plain: bool) -> Iterator[Place]:
    """Yield the places of a file, layers in their `order`; `plain`: without a layer, nothing tells a layout."""
    weights = tree.groups.get("model_weights", tree)
    rest = {key: group for key, group in tree.groups.items() if weights is not tree and key != "model_weights"}
    rank = {name: i for i, name in enumerate(order)}
    for name in sorted(weights.groups, key=lambda name: rank.get(name, len(rank))):
        if weights is not tree or name != "optimizer_weights":
            yield from _layer_places(name, weights.groups[name], _layer(model, name), plain)
    yield from plain_places(Group("", weights.tensors, {}), ())
    if weights is not tree:
        rest.pop("optimizer_weights", None)
        yield from plain_places(Group("", tree.tensors, rest), ())
    yield from training_places(tree.groups.get("optimizer_weights", _NOTHING), ("optimizer",), g.OPTIMIZER)


def _layer(model: Layer | None, name: str) -> Layer | None:
    found = _named(model, name) if model else None
    return found or guessed_layer(name, "")


def _layer_places(name: str, group: Group, layer: Layer | None, plain: bool) -> Iterator[Place]:
    """Yield the places of one layer's group; inside it stand the weights' names, which are paths once more."""
    for path, tensors in _tensors(group, ()):
        inner = path[1:] if path[:1] == (name,) else path
        owner = _owner(layer, inner) if layer else None
        own = {role: tensor for role, tensor in tensors.items() if role in _STATE}
        rest = {role: tensor for role, tensor in tensors.items() if role not in _STATE}
        if own:
            yield Place((name, *inner), owner, own)
        if rest:
            yield _named_place((name, *inner), _unwrapped(owner), rest, plain)


def _named_place(path: tuple[str, ...], owner: Layer | None, tensors: Mapping[str, Tensor], plain: bool) -> Place:
    names = by_role(tensors, owner, path)
    by_name = {role: tensors[name] for role, name in names.items()}
    return Place(path, owner, by_name, plain=plain and owner is None, names=names)


def _tensors(group: Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield the groups that hold tensors, with their paths; TensorFlow's ":0" is no part of a name."""
    if group.tensors:
        in_order = sorted(group.tensors, key=lambda key: key.startswith(("bias", "beta")))  # as Keras 3 has them
        short = {key: key.removesuffix(":0") for key in in_order}
        yield (
            path,
            {
                short[key] if short[key] == key or short[key] not in short else key: group.tensors[key]
                for key in in_order
            },
        )
    for key, child in group.groups.items():
        yield from _tensors(child, (*path, key))


def _owner(layer: Layer, path: Sequence[str]) -> Layer:
    """Return the layer that a path of names leads to from `layer`; a name that leads nowhere is skipped."""
    for name in path:
        layer = _step(layer, name) or layer
    return layer


def _step(layer: Layer, name: str) -> Layer | None:
    if layer.kind == "Bidirectional" and not layer.assumed:
        return sublayer(layer, "backward_layer" if name.startswith("backward_") else "forward_layer")
    projection = {"attention_output": "output_dense"}.get(name, f"{name}_dense")
    found = _named(layer, name) or (sublayer(layer, projection) if projection in _PROJECTIONS else None)
    return found or (guessed_layer(name, "") if layer.assumed else None)


_PROJECTIONS = ("query_dense", "key_dense", "value_dense", "output_dense", "gate_dense")


def _named(layer: Layer, name: str) -> Layer | None:
    """Return the layer of that name inside `layer`, the nearest first; None when several share it."""
    direct = [found for found in sublayers(layer.config) if found.name == name]
    found = direct or [inner for inner in all_layers(layer) if inner.name == name and inner is not layer]
    return found[0] if len(found) == 1 else None


def _unwrapped(layer: Layer | None) -> Layer | None:
    while layer is not None and layer.kind in _WRAPPERS:
        layer = sublayer(layer, "layer")
    return layer
