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
    for value in model.graph.input:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_value < 0:
                size.ClearField("dim_value")
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.ClearField("type")
    try:
        graph = extra("onnx.shape_inference").infer_shapes(model).graph
    except Exception:  # the inference is C++ that raises what it likes; without it, there are the inputs' shapes
        graph = model.graph
    return dict(_known(graph))


def _known(graph: Any) -> Iterator[tuple[str, Shape]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            yield value.name, tuple(_size(value.name, i, size) for i, size in enumerate(tensor.shape.dim))


def _size(name: str, axis: int, size: Any) -> int | str:
    if size.HasField("dim_value") and size.dim_value >= 0:
        return int(size.dim_value)
    return size.dim_param or f"axis {axis} of {name}"
