"""A live Keras model as a checkpoint: the same tree of variables that Keras would write, read from memory."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from opnorm.checkpoints.files import border, guarded, require
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.hdf5 import Group, Tensor
from opnorm.checkpoints.keras_archive import keras_checkpoint
from opnorm.checkpoints.keras_layers import Layer, serialized_layer
from opnorm.checkpoints.keras_maps import KNOWN
from opnorm.checkpoints.keras_versions import of_version, version_of
from opnorm.checkpoints.records import Checkpoint, Geometry, Weight
from opnorm.keras.composites import own_maps
from opnorm.keras.geometry import kernels
from opnorm.keras.replaced import told
from opnorm.operators.linear import linear_operator, linear_operators

_PARTS = (  # under which Keras's layers keep others, some of them with an underscore, in the order of its files
    "layer", "forward_layer", "backward_layer", "cell", "query_dense", "key_dense", "value_dense", "gate_dense",
    "output_dense",
)  # fmt: skip
_LISTS = ("layers", "cells")


def read_model(model: Any) -> Checkpoint:
    """Return the checkpoint of a built `keras.Model` or `keras.Layer`; its optimizer is left out.

    A layer that is none of Keras's is read by its `opnorm.linear_operators`, where one is registered.

    Raises:
        CheckpointError: When the model is not built.
    """
    with border(Path(str(getattr(model, "name", "model")))):
        require(
            bool(getattr(model, "built", False)) or _is_empty(model),
            "the model is not built: call it, or `model.build(input_shape)`",
        )
        found = keras_checkpoint("model", _group(model, set(), {}), _config(model))
        if any(_has_own_order(struct) for struct in _structures(model)):
            note = "how its layers are joined is not known: a table of values has another order than its keys"
            found = found._replace(graph=None, notes=(*found.notes, note))
        own = dict(_registered(model, ()))
        return found._replace(weights=tuple(_with_own(weight, own) for weight in found.weights))


def _is_empty(model: Any) -> bool:
    """Return whether a model is a chain of nothing but an input, which Keras never calls built."""
    import keras

    return isinstance(model, keras.Sequential) and not model.layers and bool(model.get_config().get("layers"))


def _structures(model: Any) -> Iterator[Any]:
    """Yield what a model and those inside it take, give, and are called with."""
    yield from (getattr(model, name, None) for name in ("_inputs_struct", "_outputs_struct"))
    yield from (node.arguments.args for node in getattr(model, "_inbound_nodes", ()))
    for _, part in _parts(model):
        yield from _structures(part)


def _has_own_order(value: Any) -> bool:
    """Return whether a structure holds an ordered table whose keys are not sorted: Keras takes its values in order.

    It sorts those of plain tables, and writes both down alike.
    """
    if isinstance(value, OrderedDict) and list(value) != sorted(value, key=str):
        return True
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(map(_has_own_order, inner))


def _config(model: Any) -> Layer | None:
    import keras

    entry = json.loads(json.dumps(_entry(model), default=str))
    entry = told(entry, _all_layers(model))
    return serialized_layer(of_version(entry, version_of(keras.__version__)))


def _all_layers(model: Any) -> Iterator[Any]:
    """Yield a model, the layers in it, also those that are no part of its files, and the operations between them."""
    found: dict[int, Any] = {}
    todo = [model]
    while todo:
        layer = todo.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            modules = layer.children() if hasattr(layer, "children") else ()  # where PyTorch keeps a layer's layers
            todo += [part for part in (*vars(layer).values(), *modules) if hasattr(part, "built")]
            todo += [part for _, part in _parts(layer)] if hasattr(layer, "built") else []
            todo += getattr(layer, "operations", ())
    yield from found.values()


def _entry(layer: Any) -> Mapping[str, Any]:
    """Return a layer's config; of one that is none of Keras's a table of the layers it keeps."""
    import keras

    try:
        entry: Mapping[str, Any] = keras.saving.serialize_keras_object(layer)
        found = serialized_layer(entry)
        known = found is not None and (found.kind in KNOWN or ">" not in found.kind)
    except Exception:  # a custom layer's get_config may raise anything
        known = False
    if known:
        return entry
    inner = [_entry(part) for _, part in _parts(layer)]
    module, name = type(layer).__module__, type(layer).__name__
    return {"class_name": name, "module": f"custom.{module}", "config": {"name": layer.name, "layers": inner}}


def _parts(layer: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the layers that a layer keeps, with the path of its group in Keras's files."""
    seen: set[int] = set()
    if _joins_layers(layer):
        yield from ((("layers", str(i)), part) for i, part in enumerate(layer.layers))
        seen.update(map(id, layer.layers))
    found = {name: getattr(layer, name, None) or getattr(layer, f"_{name}", None) for name in _PARTS}
    own = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "optimizer"}
    for name, part in {**found, **own}.items():
        if hasattr(part, "variables") and hasattr(part, "built") and hasattr(part, "name") and id(part) not in seen:
            seen.add(id(part))
            yield (name,), part
    for name in _LISTS:
        parts = [part for part in getattr(layer, name, None) or () if id(part) not in seen]
        yield from (((name, str(i)), part) for i, part in enumerate(parts))


def _joins_layers(layer: Any) -> bool:
    """Return whether a model joins its `layers` as its config says, whatever else is an attribute of it."""
    return hasattr(layer, "_functional") or hasattr(type(layer), "operations")


def _group(layer: Any, seen: set[int], tensors: dict[int, Tensor]) -> Group:
    """Return a layer's group: its own variables under `vars`, and the groups of the layers it keeps.

    Args:
        layer: A layer or model.
        seen: What has a group already: no attribute has another, the layers of each model that joins them have.
        tensors: The variables that were met, by their identity.
    """
    seen.add(id(layer))
    groups: dict[str, Group] = {}
    lists: dict[str, dict[str, Group]] = {}
    taken: set[int] = set()
    joins = _joins_layers(layer)
    for (name, *rest), part in _parts(layer):
        taken |= {id(variable) for variable in part.variables}
        if id(part) not in seen or (joins and rest):
            (lists.setdefault(name, {}) if rest else groups)[rest[0] if rest else name] = _group(part, seen, tensors)
    hidden = [variable for variable in layer.variables if id(variable) not in taken]  # of layers it hides, too
    names: set[str] = set()
    own = {
        unique(str(variable.name), names): tensors.setdefault(id(variable), _tensor(variable)) for variable in hidden
    }
    members = {name: Group("", {}, inner) for name, inner in lists.items()}
    return Group("", {}, {"vars": Group(str(layer.name), own, {}), **groups, **members})


def _tensor(variable: Any) -> Tensor:
    read = guarded(Path(str(variable.path)), _values, variable)
    return Tensor(tuple(variable.shape), str(variable.dtype), read)


def _values(variable: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable))


def _registered(layer: Any, path: tuple[str, ...]) -> Iterator[tuple[str, LinearOperator]]:
    """Yield the operators that `opnorm.linear_operators` knows of layers that are not Keras's, by weight name."""
    inner = [part for (name, *_), part in _parts(layer) if name == "layers"]
    for part in inner:
        yield from _registered(part, (*path, str(part.name)))
    if not inner and _speaks_for_itself(type(layer)):
        try:
            found = own_maps(layer)
        except ValueError:
            return
        yield from (("/".join((*path, name)), operator) for name, operator in found.items())


def _speaks_for_itself(kind: type) -> bool:
    """Return whether something is registered for a class that is not Keras's: what is for its base says nothing."""
    own = {one for one in kind.__mro__[:-1] if one.__module__.split(".")[0] not in ("keras", "tf_keras")}
    return any(own & set(table.registry) for table in (linear_operator, linear_operators, kernels))


def _with_own(weight: Weight, own: Mapping[str, LinearOperator]) -> Weight:
    """Return a weight with the operator that was registered for its layer, if there is one."""
    operator = own.get(weight.name)
    if operator is None:
        return weight
    return weight._replace(geometry=Geometry(weight.geometry.kind, "as registered", lambda _: operator))
