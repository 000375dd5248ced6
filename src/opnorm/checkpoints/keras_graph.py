"""The graph of a Sequential or Functional model, from its config alone: one node for each call of a layer."""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from opnorm.checkpoints.files import require
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.keras_arguments import NoGraphError, Reference
from opnorm.checkpoints.keras_calls import FUNCTIONAL, Call, fitting, model_calls, model_ends, references
from opnorm.checkpoints.keras_integers import is_whole, without_wrapping
from opnorm.checkpoints.keras_layers import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED, Layer, sublayers
from opnorm.checkpoints.keras_results import picked_shape, result_node
from opnorm.checkpoints.keras_shapes import Shape, input_shape, output_shape
from opnorm.checkpoints.records import CheckpointError, Graph, Node, Weight

Weights = Sequence[tuple[tuple[str, ...], Mapping[str, Weight]]]  # by the path of their layer
_SAME_IN_TRAINING = CONVOLUTIONS | DEPTHWISE | TRANSPOSED | SEPARABLE | {
    "Activation", "Add", "Average", "Concatenate", "Dense", "ELU", "EinsumDense", "Embedding", "Flatten", "LeakyReLU",
    "LayerNormalization", "Maximum", "Minimum", "Multiply", "PReLU", "Permute", "ReLU", "Reshape", "Softmax",
    "Subtract",
}  # fmt: skip
_NEEDED = {  # roles that the rule of a kind takes for granted
    "BatchNormalization": ("gamma", "moving_variance"),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), ("depthwise_kernel", "pointwise_kernel")),
}


def keras_graph(model: Layer, weights: Weights) -> Graph | None:
    """Return the graph of `model`, or None when its config does not hold one (a subclassed model).

    Models inside the model are dissolved: their nodes have the path of names from the outermost model downwards.

    Raises:
        CheckpointError: When the layers are joined in a circle.
    """
    try:
        builder = _Builder(weights, _paths(model, ()))
        nodes, inputs, outputs = builder.model(model, (), None)
        ordered = without_wrapping(_ordered(nodes), builder.whole)
    except NoGraphError:
        return None
    except CycleError as error:
        raise CheckpointError(f"its layers are joined in a circle: {error.args[1][:3]}") from error
    return Graph(tuple(ordered), tuple(inputs), tuple(outputs.values()))


def _ordered(nodes: Sequence[Node]) -> list[Node]:
    by_name = {node.name: node for node in nodes}
    order = TopologicalSorter({node.name: [n for n in node.inputs if n in by_name] for node in nodes}).static_order()
    return [by_name[name] for name in order]


Results = Mapping[int, str]  # the name of each result that is read
Part = tuple[list[Node], list[str], Results]  # nodes, names of inputs


def _paths(model: Layer, path: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of a model's layers, also of those in models inside it, as its nodes have them."""
    for layer in sublayers({"layers": model.config.get("layers")}):
        yield "/".join((*path, layer.name))
        if layer.kind in ("Sequential", *FUNCTIONAL):
            yield from _paths(layer, (*path, layer.name))


class _Builder:
    """Collects nodes; a nested model is entered once for each call.

    Args:
        weights: Of all layers.
        names: Of all layers: what a node is called that has not its layer's own name is none of them.
    """

    def __init__(self, weights: Weights, names: Iterator[str]):
        self.weights = weights
        self.taken = set(names)
        self.free = set(self.taken)  # of no node yet
        self.shapes: dict[str, Shape | None] = {}  # of values, by the name of the node or input
        self.whole: set[str] = set()  # inputs that are integers

    def model(self, model: Layer, path: tuple[str, ...], given: Sequence[str] | None, call: str = "") -> Part:
        """Return a model's nodes; `given` names what it is called with, None for the outermost."""
        if model.kind == "Sequential":
            return self.sequential(model, path, given, call)
        if model.kind in FUNCTIONAL and isinstance(model.config.get("input_layers"), list | dict):
            return self.functional(model, path, given, call)
        raise NoGraphError

    def sequential(self, model: Layer, path: tuple[str, ...], given: Sequence[str] | None, call: str) -> Part:
        layers = list(sublayers({"layers": model.config.get("layers")}))
        fed = input_shape(layers[0]) if layers else None
        if layers and layers[0].kind == "InputLayer":
            first, *layers = layers
            if given is None:
                given = self.fed(self.named("/".join((*path, first.name))), fed)
                self.whole.update(given if is_whole(first) else ())
        inputs = list(given) if given is not None else self.fed(unique("input", self.taken), fed)
        nodes: list[Node] = []
        results: Results = dict(enumerate(inputs))
        for layer in layers:
            more, results = self.call(Call(layer, 0, (), {}), path, [*results.values()], call)
            nodes += more
        return nodes, inputs, results

    def functional(self, model: Layer, path: tuple[str, ...], given: Sequence[str] | None, call: str) -> Part:
        calls = list(model_calls(model.config))
        require(len({(one.layer.name, one.number) for one in calls}) == len(calls), "two of its layers share a name")
        entries = references(model.config["input_layers"])
        names = [self.named("/".join((*path, name))) for name, *_ in entries] if given is None else list(given)
        if given is None:
            layers = list(sublayers({"layers": model.config.get("layers")}))
            fed = {layer.name: input_shape(layer) for layer in layers}
            integers = {layer.name for layer in layers if layer.kind == "InputLayer" and is_whole(layer)}
            self.whole.update(name for name, (entry, *_) in zip(names, entries, strict=True) if entry in integers)
            self.shapes.update(zip(names, (fed.get(name) for name, *_ in entries), strict=True))
        if len(names) != len(entries):
            raise NoGraphError
        results: dict[tuple[str, int], Results] = {
            entry.call: {0: name} for entry, name in zip(entries, names, strict=True)
        }
        ends = model_ends(model.config)
        read = {(end.call, end.result) for end in (*ends, *(tensor for one in calls for tensor in one.tensors))}
        nodes: list[Node] = []
        for one in _by_inputs(calls, results):
            feeds = [_result(results, tensor) for tensor in one.tensors]
            key = one.layer.name, one.number
            further = sorted(result for call_, result in read if call_ == key and result)
            more, results[key] = self.call(one, path, feeds, call, further)
            nodes += more
        return nodes, names, dict(enumerate(_result(results, end) for end in ends))

    def call(
        self, one: Call, path: tuple[str, ...], feeds: Sequence[str], call: str, further: Sequence[int] = ()
    ) -> tuple[list[Node], Results]:
        """Return the nodes of one call, and the names of its results: of the first, and of `further` ones."""
        inner = (*path, one.layer.name)
        mark = f"{call}#{one.repeats}" if one.repeats else call
        if one.layer.kind in ("Sequential", *FUNCTIONAL):
            nodes, _, results = self.model(one.layer, inner, fitting(one, feeds), mark)
            return [_told(node, one.arguments) for node in nodes], results
        name = self.named("/".join(inner), mark)
        options = {**one.layer.config, **({"arguments": one.arguments} if one.arguments else {})}
        shapes = [self.shapes.get(feed) for feed in feeds]
        options["input_shapes"] = tuple(shapes)
        weights, is_clear = self.roles(inner)
        kind = _understood(one.layer, weights) if is_clear else f"{one.layer.kind} beside another of its name"
        node = Node(name, kind, tuple(feeds), options, weights)
        nodes = [result_node(node, 0), *(self.apart(result_node(node, result)) for result in further)]
        self.shapes.update({found.name: picked_shape(found) or output_shape(one.layer, shapes) for found in nodes[:1]})
        self.shapes.update({found.name: picked_shape(found) for found in nodes[1:]})
        return nodes, {result: found.name for result, found in zip((0, *further), nodes, strict=True)}

    def named(self, own: str, mark: str = "") -> str:
        """Return the name of a node: its layer's own, or that with the mark of a later call."""
        if mark or own not in self.free:
            return unique(own + mark, self.taken)
        self.free.remove(own)
        return own

    def apart(self, node: Node) -> Node:
        return node._replace(name=unique(node.name, self.taken))

    def fed(self, name: str, shape: Shape | None) -> list[str]:
        """Return the name of the one input of a model, whose shape is noted."""
        self.shapes[name] = shape
        return [name]

    def roles(self, path: tuple[str, ...]) -> tuple[dict[str, Weight], bool]:
        """Return the weights of a layer and of the layers inside it, by role, and whether no two have the same."""
        pairs = [
            ("/".join((*place[len(path) :], role)), weight)
            for place, by_role in self.weights
            if place[: len(path)] == path
            for role, weight in by_role.items()
        ]
        found = dict(pairs)
        return found, all(found[role].name == weight.name for role, weight in pairs)


def _told(node: Node, arguments: Mapping[str, Any]) -> Node:
    """Return a node of a model that was called with these: a model in training mode hands that on to its layers.

    It does so whatever they were called with themselves: Keras stores `training=False` where nothing was said.
    """
    if not arguments.get("training") or node.kind in _SAME_IN_TRAINING or node.kind.startswith("keras.ops."):
        return node
    return node._replace(options={**node.options, "arguments": {**node.options.get("arguments", {}), "training": True}})


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


def _result(results: Mapping[tuple[str, int], Results], end: Reference) -> str:
    found = results.get(end.call, {})
    if end.result not in found:
        raise NoGraphError
    return found[end.result]


def _by_inputs(calls: Sequence[Call], known: Mapping[tuple[str, int], Any]) -> Iterator[Call]:
    """Yield calls, each after those whose results it takes."""
    by_key = {(one.layer.name, one.number): one for one in calls}
    links = {key: [tensor.call for tensor in one.tensors] for key, one in by_key.items() if key not in known}
    for key in TopologicalSorter(links).static_order():
        if key not in known:
            yield _result_call(by_key, key)


def _result_call(calls: Mapping[tuple[str, int], Call], key: tuple[str, int]) -> Call:
    if key not in calls:
        raise NoGraphError
    return calls[key]
