"""The graph of a Sequential or Functional model, from its config alone: one node for each call of a layer."""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from opnorm.checkpoints.files import require
from opnorm.checkpoints.keras_layers import Layer, serialized_layer, sublayers
from opnorm.checkpoints.keras_results import picked_shape, result_node
from opnorm.checkpoints.keras_shapes import Shape, input_shape, output_shape
from opnorm.checkpoints.records import CheckpointError, Graph, Node, Weight

Weights = Sequence[tuple[tuple[str, ...], Mapping[str, Weight]]]  # by the path of their layer
_MODELS = ("Functional", "Model")
_NEEDED = {  # roles that the rule of a kind takes for granted
    "BatchNormalization": ("gamma", "moving_variance"),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), ("depthwise_kernel", "pointwise_kernel")),
}


class _Reference(NamedTuple):
    """One result of a call."""

    layer: str
    number: int
    result: int = 0

    @property
    def call(self) -> tuple[str, int]:
        """The call: layer name, index."""
        return self.layer, self.number


class _Call(NamedTuple):
    """One call of a layer inside one model."""

    layer: Layer
    number: int  # by which other layers refer to this call
    tensors: tuple["_Reference", ...]
    arguments: Mapping[str, Any]  # what else it was called with
    repeats: int = 0  # how many calls of the layer came before


class _NoGraphError(Exception):
    """The config does not say how the layers are joined."""


def keras_graph(model: Layer, weights: Weights) -> Graph | None:
    """Return the graph of `model`, or None when its config does not hold one (a subclassed model).

    Models inside the model are dissolved: their nodes have the path of names from the outermost model downwards.

    Raises:
        CheckpointError: When the layers are joined in a circle.
    """
    try:
        nodes, inputs, outputs = _Builder(weights).model(model, (), None)
        ordered = _ordered(nodes)
    except _NoGraphError:
        return None
    except CycleError as error:
        raise CheckpointError(f"its layers are joined in a circle: {error.args[1][:3]}") from error
    return Graph(tuple(ordered), tuple(inputs), tuple(name for names in outputs.values() for name in names))


def _ordered(nodes: Sequence[Node]) -> list[Node]:
    by_name = {node.name: node for node in nodes}
    require(len(by_name) == len(nodes), "two of its layers share a name")
    order = TopologicalSorter({node.name: [n for n in node.inputs if n in by_name] for node in nodes}).static_order()
    return [by_name[name] for name in order]


Results = Mapping[int, list[str]]  # the names of each result that is read; 0: of all that are not told apart
Part = tuple[list[Node], list[str], Results]  # nodes, names of inputs


class _Builder:
    """Collects nodes; a nested model is entered once for each call."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.shapes: dict[str, Shape | None] = {}  # of values, by the name of the node or input

    def model(self, model: Layer, path: tuple[str, ...], given: Sequence[str] | None, call: str = "") -> Part:
        """Return a model's nodes; `given` names what it is called with, None for the outermost."""
        if model.kind == "Sequential":
            return self.sequential(model, path, given, call)
        if model.kind in _MODELS and isinstance(model.config.get("input_layers"), list | dict):
            return self.functional(model, path, given, call)
        raise _NoGraphError

    def sequential(self, model: Layer, path: tuple[str, ...], given: Sequence[str] | None, call: str) -> Part:
        layers = list(sublayers({"layers": model.config.get("layers")}))
        fed = input_shape(layers[0]) if layers else None
        if layers and layers[0].kind == "InputLayer":
            first, *layers = layers
            given = self.fed("/".join((*path, first.name)), fed) if given is None else given
        inputs = list(given) if given is not None else self.fed("input", fed)
        nodes: list[Node] = []
        current = inputs
        for layer in layers:
            more, results = self.call(_Call(layer, 0, (), {}), path, current, call)
            nodes, current = nodes + more, [name for names in results.values() for name in names]
        return nodes, inputs, {0: current}

    def functional(self, model: Layer, path: tuple[str, ...], given: Sequence[str] | None, call: str) -> Part:
        calls = list(_calls(model.config))
        require(len({(one.layer.name, one.number) for one in calls}) == len(calls), "two of its layers share a name")
        entries = _references(model.config["input_layers"])
        names = ["/".join((*path, name)) for name, *_ in entries] if given is None else list(given)
        if given is None:
            fed = {layer.name: input_shape(layer) for layer in sublayers({"layers": model.config.get("layers")})}
            self.shapes.update(zip(names, (fed.get(name) for name, *_ in entries), strict=True))
        if len(names) != len(entries):
            raise _NoGraphError
        results: dict[tuple[str, int], Results] = {
            entry.call: {0: [name]} for entry, name in zip(entries, names, strict=True)
        }
        ends = _references(model.config.get("output_layers"))
        read = {(end.call, end.result) for end in (*ends, *(tensor for one in calls for tensor in one.tensors))}
        nodes: list[Node] = []
        for one in _by_inputs(calls, results):
            feeds = [name for tensor in one.tensors for name in _result(results, tensor)]
            key = one.layer.name, one.number
            further = sorted(result for call_, result in read if call_ == key and result)
            more, results[key] = self.call(one, path, feeds, call, further)
            nodes += more
        found = [_result(results, end) for end in ends]
        is_listed = isinstance(model.config.get("output_layers"), list)  # results of a table have an order of their own
        outputs = dict(enumerate(found)) if is_listed else {0: [name for one in found for name in one]}
        return nodes, names, outputs

    def call(
        self, one: _Call, path: tuple[str, ...], feeds: Sequence[str], call: str, further: Sequence[int] = ()
    ) -> tuple[list[Node], Results]:
        """Return the nodes of one call, and the names of its results: of the first, and of `further` ones."""
        inner = (*path, one.layer.name)
        mark = f"{call}#{one.repeats}" if one.repeats else call
        if one.layer.kind in ("Sequential", *_MODELS):
            nodes, _, results = self.model(one.layer, inner, feeds, mark)
            return nodes, results
        name = "/".join(inner) + mark
        options = {**one.layer.config, **({"arguments": one.arguments} if one.arguments else {})}
        shapes = [self.shapes.get(feed) for feed in feeds]
        options["input_shapes"] = tuple(shapes)
        weights = self.roles(inner)
        node = Node(name, _understood(one.layer, weights), tuple(feeds), options, weights)
        nodes = [result_node(node, result) for result in (0, *further)]
        self.shapes.update({found.name: picked_shape(found) or output_shape(one.layer, shapes) for found in nodes[:1]})
        self.shapes.update({found.name: picked_shape(found) for found in nodes[1:]})
        return nodes, {result: [found.name] for result, found in zip((0, *further), nodes, strict=True)}

    def fed(self, name: str, shape: Shape | None) -> list[str]:
        """Return the name of the one input of a model, whose shape is noted."""
        self.shapes[name] = shape
        return [name]

    def roles(self, path: tuple[str, ...]) -> dict[str, Weight]:
        """Return the weights of a layer and of the layers inside it, by role."""
        found = {}
        for place, by_role in self.weights:
            if place[: len(path)] == path:
                found.update({"/".join((*place[len(path) :], role)): weight for role, weight in by_role.items()})
        return found


def _understood(layer: Layer, weights: Mapping[str, Weight]) -> str:
    """Return the kind of a layer, and behind it what keeps a rule for the kind from holding."""
    missing = [role for role in _NEEDED.get(layer.kind, ()) if role not in weights and _has(layer, role)]
    if missing:
        return f"{layer.kind} without its {' and its '.join(missing)}"
    if layer.config.get("kernel_layout", "channels_last") != "channels_last":
        return f"{layer.kind} of Keras 1 with kernels in Theano's layout"
    mode = layer.config.get("mode", 0) if layer.kind == "BatchNormalization" else 0
    return f"{layer.kind} of mode {mode!r}" if mode != 0 else layer.kind


def _has(layer: Layer, role: str) -> bool:
    return role != "gamma" or layer.config.get("scale", True) is not False


def _result(results: Mapping[tuple[str, int], Results], end: _Reference) -> list[str]:
    if end.call not in results:
        raise _NoGraphError
    found = results[end.call]
    return found.get(end.result, found[0])


def _by_inputs(calls: Sequence[_Call], known: Mapping[tuple[str, int], Any]) -> Iterator[_Call]:
    """Yield calls, each after those whose results it takes."""
    by_key = {(one.layer.name, one.number): one for one in calls}
    links = {key: [tensor.call for tensor in one.tensors] for key, one in by_key.items() if key not in known}
    for key in TopologicalSorter(links).static_order():
        if key not in known:
            yield _result_call(by_key, key)


def _result_call(calls: Mapping[tuple[str, int], _Call], key: tuple[str, int]) -> _Call:
    if key not in calls:
        raise _NoGraphError
    return calls[key]


def _calls(config: Mapping[str, Any]) -> Iterator[_Call]:
    for entry in config.get("layers") or []:
        layer = serialized_layer(entry)
        if layer is None:
            raise _NoGraphError
        layer = layer._replace(name=str(entry.get("name", layer.name)))
        if layer.kind != "InputLayer":
            for index, node in enumerate(entry.get("inbound_nodes") or []):
                number = index + (isinstance(node, list) and _has_input(layer))
                yield _Call(layer, number, tuple(_tensors(node)), _arguments(node), index)


def _has_input(layer: Layer) -> bool:
    """Return whether a layer is a model with inputs of its own: Keras 2 counts their making as its first call."""
    inner = next(sublayers({"layers": layer.config.get("layers")}), None)
    return layer.kind in ("Sequential", *_MODELS) and inner is not None and inner.kind == "InputLayer"


def _tensors(node: Any) -> Iterator[_Reference]:
    """Yield the calls whose results a call takes, in Keras 3's notation or that of Keras 1 and 2."""
    if isinstance(node, Mapping):
        history = node.get("config", {}).get("keras_history") if node.get("class_name") == "__keras_tensor__" else None
        if history:
            yield _reference(history)
        else:
            yield from (found for value in node.values() for found in _tensors(value))
    elif isinstance(node, list):
        if _is_reference(node):
            yield _reference(node)
            yield from _tensors(node[3] if len(node) > 3 else [])
        else:
            yield from (found for value in node for found in _tensors(value))


def _is_reference(node: Any) -> bool:
    return isinstance(node, list) and len(node) in (3, 4) and isinstance(node[0], str) and type(node[1]) is int


def _reference(node: Any) -> _Reference:
    if not _is_reference(node) or type(node[2]) is not int or node[2] < 0:
        raise _NoGraphError
    return _Reference(*node[:3])


def _references(value: Any) -> list[_Reference]:
    """Return the references of a model's ends: one alone, a list or a table of them."""
    return list(_tensors(value))


def _arguments(node: Any) -> dict[str, Any]:
    """Return what a call was given besides tensors: constants of an operation, flags."""
    if isinstance(node, Mapping):
        plain = [value for value in node.get("args") or [] if not list(_tensors(value))]
        named = {k: v for k, v in (node.get("kwargs") or {}).items() if v is not None and not list(_tensors(v))}
        return {**({"args": plain} if plain else {}), **named}
    last = node[-1] if isinstance(node, list) and node else None
    while isinstance(last, list) and last:
        last = last[-1]
    return {k: v for k, v in last.items() if v is not None and not list(_tensors(v))} if isinstance(last, dict) else {}
