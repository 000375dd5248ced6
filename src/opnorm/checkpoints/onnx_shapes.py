"""The shapes of an ONNX graph's values, as far as the file and ONNX's own inference tell them."""

from collections.abc import Iterator, Mapping
from typing import Any

from opnorm.checkpoints.files import extra

Shape = tuple[int | str, ...]


def value_shapes(model: Any) -> Mapping[str, Shape]:
    """Return the shape of each value whose number of axes is known; numbers are inferred from shapes, never computed.

    A size that the file leaves open is its name there, or a name that no other value has: two sizes that compare equal
    are equal in every run.
    """
    try:
        graph = extra("onnx.shape_inference").infer_shapes(model).graph
    except Exception:  # the inference is C++ that raises what it likes; without it, there are the file's own shapes
        graph = model.graph
    return dict(_known(graph))


def _known(graph: Any) -> Iterator[tuple[str, Shape]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            yield value.name, tuple(_size(value.name, i, size) for i, size in enumerate(tensor.shape.dim))


def _size(name: str, axis: int, size: Any) -> int | str:
    if size.HasField("dim_value"):
        return int(size.dim_value)
    return size.dim_param or f"axis {axis} of {name}"
