"""The shapes of an ONNX graph's values, as far as its inputs and ONNX's own inference tell them."""

from collections.abc import Iterator, Mapping
from typing import Any

from opnorm.checkpoints.files import extra

Shape = tuple[int | str, ...]


def value_shapes(model: Any) -> Mapping[str, Shape]:
    """Return the shape of each value whose number of axes is known; numbers are inferred from shapes, never computed.

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
    try:
        # The inference is C++ that ends the process at a negative size, and else raises what it likes.
        graph = extra("onnx.shape_inference").infer_shapes(model).graph if _is_sound(graphs) else model.graph
    except Exception:
        graph = model.graph
    return dict(_known(graph))


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
