"""How a Keras config says that layers are called: what with, and which results of which calls a model has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from opnorm.checkpoints.keras_arguments import Given, NoGraphError, Reference, given, is_new, is_tensor, tensors_in
from opnorm.checkpoints.keras_layers import Layer, serialized_layer, sublayers

_QUOTIENTS = ("keras.ops.TrueDivide", "keras.ops.Divide")
_LIMITS = ("x_min", "x_max")
FUNCTIONAL = ("Functional", "Model")


class Call(NamedTuple):
    """One call of a layer inside one model."""

    layer: Layer
    number: int  # by which other layers refer to this call
    tensors: tuple[Reference, ...]
    arguments: Mapping[str, Any]  # what else it was called with
    repeats: int = 0  # how many calls of the layer came before
    keys: tuple[str, ...] = ()  # of the table that it was called with, in the order of its tensors


def model_calls(config: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the calls of all layers of a Functional model.

    Raises:
        NoGraphError: When what stands among the layers is none, or a call no call.
    """
    for entry in config.get("layers") or []:
        layer = serialized_layer(entry)
        if layer is None:
            raise NoGraphError
        layer = layer._replace(name=str(entry.get("name", layer.name)))
        if layer.kind != "InputLayer":
            for index, node in enumerate(entry.get("inbound_nodes") or []):
                number = index + (not is_new(node) and _has_input(layer))
                found = given(node, layer.kind)
                told = _told_apart(layer, node, found)
                yield Call(told, number, found.tensors, found.arguments, index, found.keys)


def _told_apart(layer: Layer, node: Any, found: Given) -> Layer:
    """Return a layer, as one of another kind where no rule for its own holds, or another one."""
    if found.unclear:
        return layer._replace(kind=f"{layer.kind} {found.unclear}")
    if layer.kind in _QUOTIENTS and _is_by_number(node):  # a number may also be what is divided
        return layer._replace(kind="keras.ops.Quotient")
    if layer.kind in ("keras.ops.Max", "keras.ops.Min") and layer.config.get("initial") is not None:
        return layer._replace(kind=f"{layer.kind} from an initial value on")
    limits = [layer.config.get(name) for name in _LIMITS] if layer.kind == "keras.ops.Clip" else []
    repeats = any(limit is not None and type(limit) not in (int, float) for limit in limits)
    return layer._replace(kind=f"{layer.kind} with limits that may repeat its input") if repeats else layer


def _is_by_number(node: Any) -> bool:
    told = is_new(node) and len(node["args"]) == 2 and not node.get("kwargs")
    return told and is_tensor(node["args"][0]) and type(node["args"][1]) in (int, float)


def _has_input(layer: Layer) -> bool:
    """Return whether a layer is a model with inputs of its own: Keras 2 counts their making as its first call."""
    inner = next(sublayers({"layers": layer.config.get("layers")}), None)
    return layer.kind in ("Sequential", *FUNCTIONAL) and inner is not None and inner.kind == "InputLayer"


def references(value: Any) -> list[Reference]:
    """Return the references of a model's ends: one alone, a list or a table of them."""
    return list(tensors_in(value))


def model_ends(config: Mapping[str, Any]) -> list[Reference]:
    """Return the references to a model's outputs, with numbers of calls as its layers refer to them.

    Keras 3 counts the making of a Functional model as its first call here, and not where layers refer to it.
    """
    entries = [entry for entry in config.get("layers") or [] if _counts_making(entry)]
    names = {entry.get("name") for entry in entries}
    ends = references(config.get("output_layers"))
    return [end._replace(number=end.number - 1) if end.layer in names else end for end in ends]


def _counts_making(entry: Mapping[str, Any]) -> bool:
    is_written_new = any(is_new(node) for node in entry.get("inbound_nodes") or [])
    return is_written_new and isinstance((entry.get("config") or {}).get("input_layers"), list | dict)


def fitting(one: Call, feeds: Sequence[str]) -> Sequence[str]:
    """Return what a model is called with in the order of its inputs: of a table by their names, if they are a list.

    Tables on both sides are in the order of their keys.
    """
    inputs = one.layer.config.get("input_layers")
    if not one.keys or isinstance(inputs, Mapping):
        return feeds
    table = dict(zip(one.keys, feeds, strict=False))
    names = [name for name, *_ in references(inputs)]
    if not set(names) <= set(table):
        raise NoGraphError
    return [table[name] for name in names]
