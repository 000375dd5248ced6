"""`.onnx` files: initializers and constants of all graphs, what the operators do with them, and the outermost graph."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import DEPTH, extra, require
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.onnx_geometry import Use, dequantized, rank, role, use_geometry
from opnorm.checkpoints.onnx_shapes import Shape, value_shapes
from opnorm.checkpoints.onnx_tensors import onnx_tensor
from opnorm.checkpoints.onnx_wire import skeleton
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Geometry, Graph, Node, Weight

_PASSES = {"Identity", "Cast", "DequantizeLinear"}  # of a constant: still that constant
_LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FOLLOWED = 8  # operators between a constant and the one that uses it: more is no weight

Scope = Mapping[str, str]  # the names of a graph's constants, with the file's unique names


def read_onnx(path: Path) -> Checkpoint:
    """Return the checkpoint of an ONNX model; external data is read on demand, from the model's folder only."""
    onnx = extra("onnx")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(skeleton(path))
    except extra("google.protobuf.message").DecodeError as error:
        raise CheckpointError(f"it is no ONNX model ({error})") from error
    require(bool(model.graph.node or model.graph.initializer), "it holds no graph")
    reader = _Reader(path)
    reader.enter(model.graph, {}, "", 0)
    weights = {name: reader.weight(name) for name in reader.tensors}
    graph = _graph(reader, model.graph, weights, value_shapes(model))
    return Checkpoint("onnx", tuple(weights.values()), graph, tuple(_notes(reader, model)))


def _notes(reader: "_Reader", model: Any) -> Iterator[str]:
    if model.functions:
        yield f"{len(model.functions)} functions of the model are named, not opened"
    if reader.sparse:
        yield f"{reader.sparse} sparse tensors are not read"


class _Link(NamedTuple):
    """A use, and the constant that its operator hands on when it has no other input."""

    use: Use
    result: str  # the unique name of what it hands on, or ""


class _Reader:
    """Collects the constants of a graph and of those inside it, and who uses them."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, Named] = {}
        self.links: dict[str, list[_Link]] = defaultdict(list)
        self.parents: dict[str, str] = {}  # of what is handed on: the constant it was
        self.outer: dict[str, str] = {}  # the outermost graph's scope
        self.taken: set[str] = set()
        self.sparse = 0

    def enter(self, graph: Any, outer: Scope, prefix: str, depth: int) -> None:
        """Read a graph, and the graphs of its control flow, which see its constants."""
        require(depth < DEPTH, "its graphs are nested too deeply")
        require(all(isinstance(text, str) for text in _texts(graph)), "a name in it is not UTF-8")
        scope = {**outer, **self.constants(graph, prefix)}
        for node in graph.node:
            self.handed_on(node, scope)
        for node in graph.node:
            self.uses(node, scope)
            for attribute in node.attribute:
                for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    label = node.name or (node.output[0] if node.output else node.op_type)
                    self.enter(inner, scope, f"{prefix}{label}.{attribute.name}.", depth + 1)
        self.outer = scope

    def constants(self, graph: Any, prefix: str) -> dict[str, str]:
        self.sparse += len(graph.sparse_initializer)
        found = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            values = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
            if node.op_type == "Constant" and values and node.output:
                found.append((node.output[0], values[0]))
        scope = {}
        for name, proto in found:
            scope[name] = unique(prefix + name, self.taken)
            self.tensors[scope[name]] = onnx_tensor(self.path, scope[name], proto)
        return scope

    def handed_on(self, node: Any, scope: dict[str, str]) -> None:
        """Give what an operator makes of constants alone a name of its own: it is still that constant."""
        if node.op_type in _PASSES and node.output and all(name in scope for name in node.input if name):
            scope[node.output[0]] = f"\0{len(self.links)}\0{node.output[0]}"
            self.links[scope[node.output[0]]] = []

    def uses(self, node: Any, scope: Scope) -> None:
        constants = {i: self.tensors[scope[n]] for i, n in enumerate(node.input) if scope.get(n) in self.tensors}
        options = attributes(node)
        for position, name in enumerate(node.input):
            if name in scope:
                result = scope.get(node.output[0], "") if node.op_type in _PASSES and node.output else ""
                self.links[scope[name]].append(_Link(Use(kind(node), position, options, constants), result))
                if result and position == 0:
                    self.parents[result] = scope[name]

    def weight(self, name: str) -> Weight:
        """Return a constant with the most telling of its uses."""
        tensor = self.tensors[name]
        if 0 in tensor.shape:
            return Weight(*tensor, g.nothing("unknown", "an empty tensor"))
        found = list(self.geometries(name, tensor, 0)) or [g.nothing("unused", "no operator of the file uses it")]
        return Weight(*tensor, max(found, key=rank))

    def geometries(self, name: str, tensor: Named, depth: int) -> Iterator[Geometry]:
        """Yield what becomes of a constant, through the operators that hand it on."""
        for use, result in self.links.get(name, ()):
            if result and use.position == 0 and depth < _FOLLOWED:
                as_number = tensor._replace(dtype="float32") if use.kind == "DequantizeLinear" else tensor
                for found in self.geometries(result, as_number, depth + 1):
                    yield dequantized(use, found) if use.kind == "DequantizeLinear" else found
            elif use.kind == "DequantizeLinear":
                yield dequantized(use, g.nothing(use.kind, g.QUANTIZED))
            else:
                yield use_geometry(use, tensor)

    def origin(self, name: str) -> str | None:
        """Return the constant of the outermost graph behind a name, through the operators that hand it on."""
        while name in self.parents:
            name = self.parents[name]
        return name if name in self.tensors else None


def _texts(graph: Any) -> Iterator[Any]:
    """Yield every name in a graph; protocol buffers give those that are not UTF-8 as bytes."""
    for named in (*graph.initializer, *graph.input, *graph.output):
        yield named.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def kind(node: Any) -> str:
    """Return the operator's name, with its domain unless that is ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def attributes(node: Any) -> dict[str, Any]:
    """Return an operator's attributes but for graphs and tensors."""
    onnx = extra("onnx")
    plain = [a for a in node.attribute if not (a.HasField("g") or a.HasField("t") or a.graphs or a.tensors)]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in plain}
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _graph(reader: _Reader, graph: Any, weights: Mapping[str, Weight], shapes: Mapping[str, Shape]) -> Graph:
    """Return the outermost graph; operators on constants alone are no nodes, their results are weights."""
    scope, taken = reader.outer, {value.name for value in graph.input}
    origins = {name: reader.origin(inner) for name, inner in scope.items()}
    makers = {value.name: value.name for value in graph.input if value.name not in scope}
    calls = [node for node in graph.node if not (node.output and node.output[0] in scope)]
    names = []
    for node in calls:
        names.append(unique(node.name or next(iter(node.output), node.op_type), taken))
        makers.update(dict.fromkeys((output for output in node.output if output), names[-1]))
    pairs = zip(names, calls, strict=True)
    nodes = {
        name: _with_shapes(_node(name, node, makers, origins, weights), node, makers, shapes) for name, node in pairs
    }
    try:
        links = {name: [n for n in node.inputs if n in nodes] for name, node in nodes.items()}
        order = list(TopologicalSorter(links).static_order())
    except CycleError as error:
        raise CheckpointError(f"its operators are joined in a circle: {error.args[1][:3]}") from error
    inputs = tuple(value.name for value in graph.input if value.name not in scope)
    outputs = tuple(makers[value.name] for value in graph.output if value.name in makers)
    return Graph(tuple(nodes[name] for name in order), inputs, outputs)


def _node(
    name: str, node: Any, makers: Mapping[str, str], origins: Mapping[str, str | None], weights: Mapping[str, Weight]
) -> Node:
    held = {i: origins[value] for i, value in enumerate(node.input) if origins.get(value)}
    uses = {i: Use(kind(node), i, attributes(node), {}) for i in held}
    by_role = {role(kind(node), i): _as_used(weights[origin], uses[i]) for i, origin in held.items() if origin}
    inputs = tuple(makers[value] for value in node.input if value in makers)
    return Node(name, kind(node), inputs, attributes(node), by_role)


def _as_used(weight: Weight, use: Use) -> Weight:
    """Return the weight with what this use does with it: a constant may have several, with other strides, say."""
    own = use_geometry(use, Named(weight.name, weight.shape, weight.dtype, weight.read))
    if use.kind not in _LINEAR or weight.geometry.text.startswith(own.text):  # quantized: the same text, and more
        return weight
    plain = weight.dtype in ("float16", "bfloat16", "float32", "float64")
    return weight._replace(geometry=own if plain else g.nothing(use.kind, "quantized, and used in several ways"))


def _with_shapes(node: Node, call: Any, makers: Mapping[str, str], shapes: Mapping[str, Shape]) -> Node:
    """Return the node with the shapes of its inputs among its options, when all are known."""
    found = [shapes.get(value) for value in call.input if value in makers]
    known = tuple(shape for shape in found if shape is not None)
    return node._replace(options={**node.options, "input_shapes": known}) if len(known) == len(found) else node
