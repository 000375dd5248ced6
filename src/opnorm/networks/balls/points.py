"""The centre of a ball, as the inputs of a network's graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from opnorm.checkpoints.records import Graph
from opnorm.checks import Array, real_array

Shape = tuple[int | str, ...]


def points_of(graph: Graph, centre: Any) -> list[Array]:
    """Return for each input of a network a batch of one.

    Args:
        graph: The network.
        centre: One example, its batch axis of one left out or not; for a network with several inputs a list of them, or
            a table by the names of the inputs.

    Raises:
        ValueError: When they do not fit the network's inputs.
    """
    if isinstance(centre, Mapping):
        centre = _by_name(graph, centre)
    several = isinstance(centre, list | tuple) and len(graph.inputs) > 1
    parts = list(centre) if several else [centre]
    if len(parts) != len(graph.inputs):
        must = f"must be a list of {len(graph.inputs)} examples, one for each input"
        raise ValueError(f"Argument `around` {must}. Received: {len(parts)}")
    return [
        _batched(real_array(part, "around"), input_shape(graph, name))
        for part, name in zip(parts, graph.inputs, strict=True)
    ]


def _by_name(graph: Graph, centre: Mapping[str, Any]) -> list[Any]:
    if set(centre) != set(graph.inputs):
        named = ", ".join(map(repr, graph.inputs))
        raise ValueError(f"Argument `around` must have the names of the inputs, {named}. Received: {sorted(centre)}")
    parts = [centre[name] for name in graph.inputs]
    return parts if len(parts) > 1 else parts[0]


def input_shape(graph: Graph, name: str) -> Shape | None:
    """Return the shape of an input, batch first, None where no node that reads it tells."""
    for node in graph.nodes:
        shapes = node.options.get("input_shapes") or ()
        if name in node.inputs and len(shapes) == len(node.inputs) and shapes[node.inputs.index(name)] is not None:
            return tuple(shapes[node.inputs.index(name)])
    return None


def _batched(point: Array, shape: Shape | None) -> Array:
    if shape is None:  # as a module's: with an axis of one entry in front it is a batch already
        return np.ascontiguousarray(point if point.ndim > 1 and len(point) == 1 else point[None])
    candidates = (point[None], point) if point.ndim != len(shape) else (point,)
    for candidate in candidates:
        if fits_input(candidate.shape, shape):
            return np.ascontiguousarray(candidate)
    told = f"of shape {shown(shape[1:])}"
    raise ValueError(f"Argument `around` must be one example {told}. Received: shape={point.shape}")


def fits_input(given: tuple[int, ...], shape: Shape) -> bool:
    """Return whether a batch of one has the shape that the network's graph tells."""
    sizes = zip(given, shape, strict=True) if len(given) == len(shape) else ((0, 1),)
    return given[:1] == (1,) and all(isinstance(size, str) or n == size for n, size in sizes)


def shown(shape: Shape) -> str:
    """Return a shape as a text, open sizes as `any`."""
    return f"({', '.join(str(n) if isinstance(n, int) else 'any' for n in shape)}{',' if len(shape) == 1 else ''})"
