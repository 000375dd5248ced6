"""SavedModel folders: variables as in any checkpoint of TensorFlow's, and what Keras noted of its layers.

Nothing is run: of `saved_model.pb` the graphs of objects and of operations are read as tables.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from opnorm.checkpoints.files import require
from opnorm.checkpoints.hdf5 import Tensor
from opnorm.checkpoints.keras_archive import graph_of, notes_of
from opnorm.checkpoints.keras_layers import MODELS, VARIABLES, Layer, normalization
from opnorm.checkpoints.keras_tree import Place, place_weights
from opnorm.checkpoints.records import Checkpoint, Weight
from opnorm.checkpoints.saved_constants import constant_weights
from opnorm.checkpoints.saved_notes import noted_layers
from opnorm.checkpoints.saved_objects import Attributes, Saved, paths_of, read_saved
from opnorm.checkpoints.tf_bundle import read_bundle
from opnorm.checkpoints.tf_checkpoint import apply_uses, joined_uses, variables
from opnorm.checkpoints.tf_objects import Node, objects
from opnorm.checkpoints.tf_uses import uses

_LAYER = re.compile(r"layer(_with_weights)?-\d+$")  # as Keras calls the layers of a model in a checkpoint
_NOTE = "its graph of operations was not run"


class _Met(NamedTuple):
    """A layer, where it stands in the model, and its own variables."""

    names: tuple[str, ...]  # of the layers from the model downwards
    layer: Layer
    keys: Mapping[str, str]  # of its variables, by their roles
    joined: bool  # no model above it merely has it, or what it stands in, as an attribute


def read_saved_model(path: Path) -> Checkpoint:
    """Return the checkpoint of a SavedModel, by its folder or its `saved_model.pb`."""
    folder = path if path.is_dir() else path.parent
    index = folder / "variables" / "variables.index"
    require(index.is_file(), "it is a SavedModel without variables/variables.index: its weights stand in its graph")
    bundle = read_bundle(index, path)
    nodes = objects(bundle)
    weights = variables(bundle, nodes)
    saved = read_saved(folder / "saved_model.pb")
    captured = _captured(saved, nodes)
    apply_uses(weights, uses(saved.bodies, captured))
    noted = noted_layers(folder, saved.objects)
    met = list(_met(noted, nodes, weights))
    _place(met, weights)
    model = noted.get(())
    by_layer = [(one.names, {role: weights[key] for role, key in one.keys.items()}) for one in met if one.joined]
    graph, notes = graph_of(model, by_layer) if model else (None, ())
    notes = (*(notes_of(model) if model else ()), *notes)
    names = [weight.name for weight in weights.values()]
    more = constant_weights(folder / "saved_model.pb", saved, captured, names)
    return Checkpoint("savedmodel", (*weights.values(), *more), graph, (_NOTE, *notes))


def _captured(saved: Saved, nodes: Sequence[Node]) -> dict[str, tuple[str, ...]]:
    """Return the keys of the variables and constants that are the last arguments of functions, "" for what is none."""
    paths = paths_of(saved.objects)

    def key(at: int) -> str:
        node = _node(paths[at], nodes) if at in paths else None
        constant = saved.objects[at].constant if 0 <= at < len(saved.objects) else ""
        return node.variables[0].key if node and node.variables else constant

    return {name: tuple(map(key, bound)) for name, bound in saved.captured.items()}


def _met(noted: Mapping[Attributes, Layer], nodes: Sequence[Node], weights: Mapping[str, Weight]) -> Iterator[_Met]:
    """Yield the layers that have variables of their own."""
    for path, layer in noted.items():
        node = _node(path, nodes)
        keys = _keys(layer, node, nodes, weights) if node else {}
        if keys:
            above = [noted[path[:i]] for i in range(1, len(path)) if path[:i] in noted]
            changes = [change for one in above if (change := normalization(one)) is not None]
            inner = layer._replace(config={**layer.config, "normalized": changes[-1]}) if changes else layer
            names = (*(one.name for one in above), layer.name) if path else ()
            yield _Met(names, inner, keys, _is_joined(path, noted, nodes))


def _is_joined(path: Attributes, noted: Mapping[Attributes, Layer], nodes: Sequence[Node]) -> bool:
    """Return whether each model on the way to a layer counts what leads on to it among its layers."""
    for i in range(len(path)):
        model, part = _node(path[:i], nodes), _node(path[: i + 1], nodes)
        if path[:i] in noted and noted[path[:i]].kind in MODELS and model and part:
            layers = [at for name, at in model.children.items() if _LAYER.match(name)]
            if not any(nodes[at] is part for at in layers if 0 <= at < len(nodes)):
                return False
    return True


def _node(path: Attributes, nodes: Sequence[Node]) -> Node | None:
    """Return the object that attributes lead to."""
    at = 0
    for name in path:
        at = nodes[at].children.get(name, -1) if 0 <= at < len(nodes) else -1
    return nodes[at] if 0 <= at < len(nodes) else None


def _keys(layer: Layer, node: Node, nodes: Sequence[Node], weights: Mapping[str, Weight]) -> dict[str, str]:
    """Return the keys of an object's own variables by role, each once: by the name that its class gives it."""
    own = VARIABLES.get(layer.kind, "").split()
    roles = sorted(node.children, key=lambda role: role not in own)
    found: dict[str, str] = {}
    for role in roles:
        at = node.children[role]
        for variable in nodes[at].variables if 0 <= at < len(nodes) else ():
            if variable.key in weights and variable.key not in found.values():
                found[role] = variable.key
    return found


def _place(met: Sequence[_Met], weights: dict[str, Weight]) -> None:
    """Give variables the geometry that their layers tell; of several layers that share one, all are readings."""
    found: dict[str, list[Weight]] = {}
    for one in met:
        tensors = {role: Tensor(*weights[key][1:4]) for role, key in one.keys.items()}
        for role, weight in place_weights(Place(one.names, one.layer, tensors), set()).items():
            found.setdefault(one.keys[role], []).append(weight)
    for key, several in found.items():
        constraint = next((one.constraint for one in several if one.constraint), None)
        geometry = joined_uses([one.geometry for one in several])
        weights[key] = weights[key]._replace(geometry=geometry, constraint=constraint)
