"""The shapes of an ONNX graph's values, as far as its inputs and ONNX's own inference tell them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from opnorm.checkpoints.files import extra
from opnorm.checkpoints.onnx_numbers import Numbers, Place, settled_numbers

Shape = tuple[int | str, ...]
_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")  # of an Einsum's equation
_COUNTING = ("Einsum", "Scan", "Split")  # operators whose inference counts on an attribute
_ROUNDS, _MOST = 8, 96  # of inference: operators Slice one after another; more where the graph is small
_NODES = 2**16  # that are inferred in all rounds: a second or two


class Told(NamedTuple):
    """What is known of a graph's values without running it."""

    shapes: Mapping[str, Shape]
    steering: Mapping[Place, Numbers]  # integers that steer, where shapes tell them
    types: Mapping[str, int]  # ONNX's numbers of them


def value_shapes(model: Any) -> Told:
    """Return the shape of each value whose number of axes is known, and what else shapes and types tell.

    Of what the file says only the shapes of its inputs count, which are what may be fed: what it says of other values
    is nothing that a runtime would hold it to, and is forgotten. A size that the file leaves open is its name there, or
    a name that no other value has: two sizes that compare equal are equal in every run.
    """
    graphs = [graph for holder in (model.graph, *model.functions) for graph in _graphs(holder)]
    for graph in graphs:
        del graph.value_info[:]
    for value in (
        value for graph in graphs if hasattr(graph, "initializer") for value in (*graph.input, *graph.output)
    ):
        _forget_negative(value.type.tensor_type)
    for value in model.graph.output:
        value.ClearField("type")
    _set_apart(graphs)
    try:
        if not _is_sound(graphs):
            return Told(dict(_known(model.graph)), {}, dict(_types(model.graph)))
        unknown = max((f.name for f in model.functions), key=len, default="") + "Later"  # no function has that name
        for node in (node for graph in graphs for node in graph.node if not _ends(node)):
            node.op_type = unknown
        return _inferred(model, graphs, unknown)
    except Exception:  # the inference is C++ that raises what it likes; without it, there are the inputs' shapes
        return Told(dict(_known(model.graph)), {}, dict(_types(model.graph)))


def _set_apart(graphs: Sequence[Any]) -> None:
    """Give sizes that a file names like nothing in a program other names: those that are made here look like that.

    And forget the shapes of what graphs of control flow give, which are no inputs.
    """
    for graph in (graph for graph in graphs if hasattr(graph, "initializer")):
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        for size in (size for value in graph.input for size in value.type.tensor_type.shape.dim):
            if size.dim_param and not size.dim_param.isidentifier():
                size.dim_param = repr(size.dim_param)


def _types(graph: Any) -> Iterator[tuple[str, int]]:
    """Yield the types of values."""
    for value in (*graph.input, *graph.value_info, *graph.initializer):
        kind = value.data_type if hasattr(value, "data_type") else value.type.tensor_type.elem_type
        if kind:
            yield value.name, int(kind)


def _ends(node: Any) -> bool:
    """Return whether the inference of an operator is known to end: it has what it may count on."""
    given = {attribute.name: attribute for attribute in node.attribute}
    open_counts = any(attribute.ref_attr_name for attribute in node.attribute)  # which a function's call gives
    if node.op_type in _COUNTING and (open_counts or len(given) < len(node.attribute)):
        return False
    if node.op_type == "Einsum":
        equation = given["equation"].s.decode("utf-8", "replace") if "equation" in given else ""
        return is_equation(equation, len(node.input))
    if node.op_type == "Split":  # it goes through this many results
        return "num_outputs" not in given or given["num_outputs"].i == len(node.output)
    if node.op_type == "Scan":  # it takes this many from the number of its inputs
        return "num_scan_inputs" in given and 0 < given["num_scan_inputs"].i <= len(node.input)
    return True


def is_equation(text: str, count: int) -> bool:
    """Return whether an Einsum's equation has a term of letters, with one ellipsis at most, for each input."""
    terms, _, result = text.replace(" ", "").partition("->")
    named = terms.split(",")
    if len(named) != count or not all(_TERM.fullmatch(term) for term in (*named, result)):
        return False
    letters = result.replace("...", "")
    return len(set(letters)) == len(letters) and set(letters) <= set(terms) and ("..." in terms or "..." not in result)


def _inferred(model: Any, graphs: list[Any], unknown: str) -> Told:
    """Return what onnx infers; it ends the process where Slice cuts a negative size, so that is met last.

    A Slice takes part once the shape of its input is known to have no negative size, and will have none: where sizes
    are open, nothing before it is told more from then on.
    """
    infer, rounds = extra("onnx.shape_inference").infer_shapes, 0
    hidden: list[Any] = []
    most = max(_ROUNDS, min(_MOST, _NODES // max(1, sum(len(graph.node) for graph in graphs))))
    for node in (node for graph in graphs for node in graph.node if node.op_type == "Slice"):
        node.op_type = unknown
        hidden.append(node)
    own, named = _Upstream(model.graph), {size for shape in dict(_known(model.graph)).values() for size in shape}
    shapes = dict(_known(model.graph)) | _sizes_of(model.graph)
    numbers: dict[Place, Numbers] = {}
    types = dict(_types(model.graph))
    while rounds < most:
        inferred = infer(model).graph
        shapes |= dict(_known(inferred))
        types |= dict(_types(inferred))
        safe = set(shapes) - _negative(inferred)
        left = [node for node in own.slices(hidden) if node.op_type != "Slice" and node.input and node.input[0] in safe]
        settled = settled_numbers(model.graph, shapes, own.kept)
        numbers |= settled
        shown = [node for node in left if all(type(size) is int or size in named for size in shapes[node.input[0]])]
        if not shown and not settled:
            shown = own.keep(left, unknown)
        for node in shown:
            node.op_type = "Slice"
        rounds = rounds + 1 if shown or settled else most
    return Told(shapes, numbers, types)


class _Upstream:
    """What a graph's values are computed from, and which of them are to stay as they are.

    Args:
        graph: Of a model, with those of control flow in it.
    """

    def __init__(self, graph: Any):
        self.nodes = [node for inner in _graphs(graph) for node in inner.node]
        self.makers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for value in node.output:
                self.makers[value].append(node)
        self.kept: set[str] = set()

    def slices(self, hidden: Sequence[Any]) -> list[Any]:
        """Return those of some nodes that are the graph's, and whose values may change."""
        own = {id(node) for node in self.nodes}
        return [node for node in hidden if id(node) in own and self.kept.isdisjoint(node.output)]

    def keep(self, slices: Sequence[Any], unknown: str) -> list[Any]:
        """Return those Slices that nothing hidden stands before, and keep what they are computed from."""
        tainted: set[str] = set()
        for node in self.nodes:
            if node.op_type == unknown or not tainted.isdisjoint(_reads(node)):
                tainted.update(node.output)
        found = [node for node in slices if node.input[0] not in tainted]
        left = [node.input[0] for node in found]
        while left:
            value = left.pop()
            if value not in self.kept:
                self.kept.add(value)
                left += [read for node in self.makers.get(value, ()) for read in _reads(node)]
        return found


def _reads(node: Any) -> list[str]:
    """Return what an operator reads, also in the graphs of its control flow."""
    graphs = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    inner = [other for graph in graphs for other in graph.node]
    return [*node.input, *(value for other in inner for value in (*_reads(other), *other.output))]


def _sizes_of(graph: Any) -> dict[str, Shape]:
    """Return the shapes of the graph's tensors."""
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _negative(graph: Any) -> set[str]:
    """Return the values to which the inference gave a negative size."""
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name for value in values if any(size.dim_value < 0 for size in value.type.tensor_type.shape.dim)}


def _graphs(holder: Any) -> Iterator[Any]:
    """Yield a graph or function, and the graphs of control flow in it."""
    yield holder
    for attribute in _attributes(holder):
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graphs(graph)


def _attributes(holder: Any) -> Iterator[Any]:
    yield from getattr(holder, "attribute_proto", ())  # a function's defaults
    for node in holder.node:
        yield from node.attribute


def _forget_negative(tensor: Any) -> None:
    for size in tensor.shape.dim:
        if size.dim_value < 0:
            size.ClearField("dim_value")


def _is_sound(graphs: list[Any]) -> bool:
    """Return whether no tensor has a negative size, and no attribute is a type, which could have one."""
    attributes = [attribute for graph in graphs for attribute in _attributes(graph)]
    tensors = [tensor for graph in graphs for tensor in getattr(graph, "initializer", ())]
    sparse = [tensor for graph in graphs for tensor in getattr(graph, "sparse_initializer", ())]
    for attribute in attributes:
        if attribute.HasField("tp") or attribute.type_protos:
            return False
        tensors += [attribute.t] if attribute.HasField("t") else []
        sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    return not any(size < 0 for tensor in (*tensors, *sparse) for size in tensor.dims)


def _known(graph: Any) -> Iterator[tuple[str, Shape]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            yield value.name, tuple(_size(value.name, i, size) for i, size in enumerate(tensor.shape.dim))


def _size(name: str, axis: int, size: Any) -> int | str:
    if size.HasField("dim_value") and size.dim_value >= 0:
        return int(size.dim_value)
    return size.dim_param or f"axis {axis} of {name}"
