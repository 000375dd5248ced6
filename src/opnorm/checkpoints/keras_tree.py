"""The groups of a Keras 3 weights file, matched with the layers of its config: places of the file that hold weights."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import Named, guess, unique
from opnorm.checkpoints.hdf5 import Group, Tensor
from opnorm.checkpoints.hdf5_guesses import CODES, as_kernel, beside_codes, careful, plain_guess
from opnorm.checkpoints.keras_layers import (
    MODELS,
    Layer,
    declared_constraint,
    guessed_layer,
    roles,
    snake,
    sublayer,
    sublayers,
)
from opnorm.checkpoints.keras_maps import KNOWN, layer_geometry
from opnorm.checkpoints.records import Geometry, Weight

_TRAINING = {"optimizer": g.OPTIMIZER, "metrics": g.STATE}
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies", "cells")  # Keras 2.12 wrote the second


class Place(NamedTuple):
    """A layer's own variables in a file."""

    path: tuple[str, ...]  # names of the layers from the model downwards
    layer: Layer | None
    tensors: Mapping[str, Tensor]  # by role: "kernel", "bias"; by number where nothing tells
    reason: str = ""  # why nothing here is a map, when that is known for the whole place
    plain: bool = False  # nothing tells that Keras wrote them
    names: Mapping[str, str] = MappingProxyType({})  # in the file, of roles that have another name there
    beside: bool = False  # an attribute of a layer or model of Keras's, which itself does not use it, whatever its name


def places(group: Group, layer: Layer | None, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield every place of a group that holds tensors, with the layer it belongs to as far as anything tells.

    Args:
        group: A group of the file, or the file's root.
        layer: The layer it belongs to.
        path: The names of the layers above, and its own.
    """
    yield from _own_places(group, layer, path)
    for key, child in group.groups.items():
        if key in _CONTAINERS and "vars" not in child.groups:
            yield from _own_places(child, None, (*path, key))
            for name, found in _members(child, layer):
                inner = places(child.groups[name], found, (*path, _label(child.groups[name], found, name)))
                yield from _marked(inner, key == "cells" and _is_model(layer))
        elif key in _TRAINING and not path:
            yield from training_places(child, (key,), _TRAINING[key])
        elif key != "vars":
            found = _child(child, layer, key)
            yield from _marked(places(child, found, (*path, _label(child, found, key))), _is_beside(layer, key))


def _marked(found: Iterator[Place], beside: bool) -> Iterator[Place]:
    return (place._replace(beside=place.beside or beside) for place in found)


def _is_model(layer: Layer | None) -> bool:
    return layer is not None and layer.kind in MODELS


def _is_beside(layer: Layer | None, key: str) -> bool:
    """Return whether a layer of Keras's has nothing under that attribute: its user put something there.

    A model's layers stand in a container, from which alone Keras loads them.
    """
    known = layer is not None and layer.kind in KNOWN and not layer.assumed
    return known and layer is not None and (_is_model(layer) or sublayer(layer, key) is None)


def _own_places(group: Group, layer: Layer | None, path: tuple[str, ...]) -> Iterator[Place]:
    """Yield the places of a group itself: its `vars`, and what stands where Keras puts nothing."""
    own = group.groups.get("vars")
    if own is not None:
        yield Place(path, layer, _by_role(layer, own.tensors))
        yield from plain_places(own._replace(tensors={}), (*path, "vars"))
    if group.tensors:
        yield Place(path, None, group.tensors, plain=True)


def _by_role(layer: Layer | None, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return variables by their roles; Keras's files number them, in an order that the class fixes."""
    if not all(key.isdigit() for key in tensors):
        return tensors
    return dict(zip(roles(layer, len(tensors)), tensors.values(), strict=True))


def plain_places(group: Group, path: tuple[str, ...]) -> Iterator[Place]:
    """Yield the places of a group of which nothing is known."""
    if group.tensors:
        yield Place(path, None, group.tensors, plain=True)
    for key, child in group.groups.items():
        yield from plain_places(child, (*path, key))


def training_places(group: Group, path: tuple[str, ...], reason: str) -> Iterator[Place]:
    """Yield the places of a group of which nothing is part of the network."""
    if group.tensors:
        yield Place(path, None, group.tensors, reason)
    for key, child in group.groups.items():
        yield from training_places(child, path if key == "vars" else (*path, key), reason)


def _own_name(group: Group) -> str:
    own = group.groups.get("vars")
    return own.name if own is not None else ""


def _label(group: Group, layer: Layer | None, key: str) -> str:
    return _own_name(group) or (layer.name if layer else "") or key


def _child(group: Group, layer: Layer | None, key: str) -> Layer | None:
    """Return the layer behind an attribute: its config in the parent's, or a guess from its names."""
    known = sublayer(layer, key) if layer else None
    if known is not None:
        return known
    named = [found for found in sublayers(layer.config) if found.name == _own_name(group)] if layer else []
    return named[0] if len(named) == 1 else guessed_layer(key, _own_name(group))


def _members(container: Group, layer: Layer | None) -> Iterator[tuple[str, Layer | None]]:
    """Yield the keys of a container's groups, each with its layer: by name, else by class and order."""
    listed = [found for found in sublayers(layer.config) if not found.kind.startswith("keras.ops.")] if layer else []
    counted = _counted(listed)
    members: list[tuple[str, Layer | None]] = []
    for key, child in container.groups.items():
        name = _own_name(child)
        by_name = [found for found in listed if found.name == name] if name else []
        members.append((key, by_name[0] if len(by_name) == 1 else counted.get(key) or guessed_layer(key, name)))
    order = {id(found): i for i, found in enumerate(listed)}
    yield from sorted(members, key=lambda member: order.get(id(member[1]), len(listed)))


def _counted(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Return layers by the keys that Keras makes for a list of them: dense, dense_1, ..."""
    found: dict[str, Layer] = {}
    seen: Counter[str] = Counter()
    for layer in layers:
        key = snake(layer.kind)
        found[f"{key}_{seen[key]}" if seen[key] else key] = layer
        seen[key] += 1
    return found


def place_weights(place: Place, taken: set[str]) -> dict[str, Weight]:
    """Return the weights of a place by role; `taken` holds the names in use and is added to."""
    weights = {}
    own = {role: Named("/".join((*place.path, role)), *tensor[:3]) for role, tensor in place.tensors.items()}
    others = {named.name: named for named in own.values()}
    for role, tensor in place.tensors.items():
        name = unique("/".join((*place.path, place.names.get(role, role))), taken)
        constraint = declared_constraint(place.layer, role)
        try:
            geometry = _geometry(place, role, own[role], others)
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # settings come from files
            geometry = g.unknown("unknown", f"the settings of its layer make no sense: {error}")
        weights[role] = Weight(name, tensor.shape, tensor.dtype, tensor.read, geometry, constraint)
    return weights


def _geometry(place: Place, role: str, tensor: Named, others: Mapping[str, Named]) -> Geometry:
    kind = place.layer.kind if place.layer else "unknown"
    typed = place.tensors[role].geometry
    if place.reason or 0 in tensor.shape:
        return g.nothing(kind, place.reason or "an empty tensor")
    if typed is not None:
        return typed._replace(kind=kind)
    known = layer_geometry(place.layer, role, place.tensors) if place.layer else None
    if known is not None:
        return known
    if "seed_generator" in place.path and "int" in tensor.dtype:
        return g.nothing(kind, g.STATE)
    return _guessed(place, tensor, others) if place.layer is None else _of_class(kind, place, tensor, others)


def _of_class(kind: str, place: Place, tensor: Named, others: Mapping[str, Named]) -> Geometry:
    """Return what a layer may do with a variable of which only its class is known."""
    if kind == "BatchNormalization":
        return g.unknown(kind, "its variables are not those that the class has")
    if kind in KNOWN:
        return _guessed(place, tensor, others)
    counts = "int" in tensor.dtype and (tensor.dtype not in CODES or len(tensor.shape) < 2)
    if ">" in kind:
        reason = f"{kind} is not a layer of Keras's: its code, which is not run, may change it in each call"
        return g.nothing(kind, g.STATE) if counts else g.unknown(kind, reason)
    reason = f"a variable of {kind}, of which no linear map is known"
    return g.nothing(kind, reason) if counts or not tensor.shape else g.unknown(kind, reason)


def _guessed(place: Place, tensor: Named, others: Mapping[str, Named]) -> Geometry:
    if place.plain:
        return plain_guess(tensor, others)
    if beside_codes(tensor, others):
        return g.unknown("unknown", g.QUANTIZED)
    return careful(guess(as_kernel(tensor), {}), tensor)
