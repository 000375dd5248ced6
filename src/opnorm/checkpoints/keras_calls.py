"""How a Keras config says that layers are called: what with, and which results of which calls a model has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from opnorm.checkpoints.keras_layers import Layer, serialized_layer, sublayers

_QUOTIENTS = ("keras.ops.TrueDivide", "keras.ops.Divide")
FUNCTIONAL = ("Functional", "Model")


class Reference(NamedTuple):
    """One result of a call."""

    layer: str
    number: int
    result: int = 0

    @property
    def call(self) -> tuple[str, int]:
        """The call: layer name, index."""
        return self.layer, self.number


class Call(NamedTuple):
    """One call of a layer inside one model."""

    layer: Layer
    number: int  # by which other layers refer to this call
    tensors: tuple["Reference", ...]
    arguments: Mapping[str, Any]  # what else it was called with
    repeats: int = 0  # how many calls of the layer came before
    keys: tuple[str, ...] = ()  # of the table that it was called with, in the order of its tensors


class NoGraphError(Exception):
    """The config does not say how the layers are joined."""


def model_calls(config: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the calls of all layers of a Functional model."""
    for entry in config.get("layers") or []:
        layer = serialized_layer(entry)
        if layer is None:
            raise NoGraphError
        layer = layer._replace(name=str(entry.get("name", layer.name)))
        if layer.kind != "InputLayer":
            for index, node in enumerate(entry.get("inbound_nodes") or []):
                number = index + (not _is_new(node) and _has_input(layer))
                yield Call(
                    _told_apart(layer, node), number, tuple(_tensors(node)), _arguments(node), index, _keys(node)
                )


def _told_apart(layer: Layer, node: Any) -> Layer:
    """Return a layer, of a quotient another one where a number divides: it may be what is divided."""
    by_number = layer.kind in _QUOTIENTS and _is_new(node) and len(node["args"]) == 2 and not node.get("kwargs")
    fits = by_number and _is_tensor(node["args"][0]) and type(node["args"][1]) in (int, float)
    return layer._replace(kind="keras.ops.Quotient") if fits else layer


def _keys(node: Any) -> tuple[str, ...]:
    """Return the keys of the one table of tensors that a call was given; of what else has tables, no key."""
    given = [value for value in node["args"] if list(_tensors(value))] if _is_new(node) else [node]
    table = given[0] if given and isinstance(given[0], Mapping) and "class_name" not in given[0] else {}
    is_all = len(list(_tensors(node))) == len(table) and all(_is_tensor(value) for value in table.values())
    return tuple(sorted(table)) if is_all or not table else ("",)


def _is_tensor(value: Any) -> bool:
    return _is_reference(value) or (isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__")


def _has_input(layer: Layer) -> bool:
    """Return whether a layer is a model with inputs of its own: Keras 2 counts their making as its first call."""
    inner = next(sublayers({"layers": layer.config.get("layers")}), None)
    return layer.kind in ("Sequential", *FUNCTIONAL) and inner is not None and inner.kind == "InputLayer"


def _tensors(node: Any) -> Iterator[Reference]:
    """Yield the calls whose results a call takes, in Keras 3's notation or that of Keras 1 and 2.

    Of a table in the order of its keys, in which Keras takes it, whatever the order that it was written in.
    """
    if isinstance(node, Mapping):
        history = node.get("config", {}).get("keras_history") if node.get("class_name") == "__keras_tensor__" else None
        if history:
            yield _reference(history)
        else:
            yield from (found for key in sorted(node) for found in _tensors(node[key]))
    elif isinstance(node, list):
        if _is_reference(node):
            yield _reference(node)
            yield from _tensors(node[3] if len(node) > 3 else [])
        else:
            yield from (found for value in node for found in _tensors(value))


def _is_reference(node: Any) -> bool:
    return isinstance(node, list) and len(node) in (3, 4) and isinstance(node[0], str) and type(node[1]) is int


def _reference(node: Any) -> Reference:
    if not _is_reference(node) or type(node[2]) is not int or node[2] < 0:
        raise NoGraphError
    return Reference(*node[:3])


def references(value: Any) -> list[Reference]:
    """Return the references of a model's ends: one alone, a list or a table of them."""
    return list(_tensors(value))


def _arguments(node: Any) -> dict[str, Any]:
    """Return what a call was given besides tensors: constants of an operation, flags."""
    if _is_new(node):
        plain = [value for value in node.get("args") or [] if not list(_tensors(value))]
        named = {k: v for k, v in (node.get("kwargs") or {}).items() if v is not None and not list(_tensors(v))}
        return {**({"args": plain} if plain else {}), **named}
    last = node[-1] if isinstance(node, list) and node else None
    while isinstance(last, list) and last:
        last = last[-1]
    return {k: v for k, v in last.items() if v is not None and not list(_tensors(v))} if isinstance(last, dict) else {}


def model_ends(config: Mapping[str, Any]) -> list[Reference]:
    """Return the references to a model's outputs, with numbers of calls as its layers refer to them.

    Keras 3 counts the making of a Functional model as its first call here, and not where layers refer to it.
    """
    entries = [entry for entry in config.get("layers") or [] if _counts_making(entry)]
    names = {entry.get("name") for entry in entries}
    ends = references(config.get("output_layers"))
    return [end._replace(number=end.number - 1) if end.layer in names else end for end in ends]


def _counts_making(entry: Mapping[str, Any]) -> bool:
    is_new = any(_is_new(node) for node in entry.get("inbound_nodes") or [])
    return is_new and isinstance((entry.get("config") or {}).get("input_layers"), list | dict)


def _is_new(node: Any) -> bool:
    """Return whether a call is written as Keras 3 does."""
    return isinstance(node, Mapping) and "args" in node and set(node) <= {"args", "kwargs"}


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
