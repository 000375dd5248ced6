"""What a `saved_model.pb` or a `.meta` file holds beside numbers: objects of the program, and operations as tables.

Reference:
    TensorFlow, `core/protobuf/meta_graph.proto`, `saved_object_graph.proto`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.checkpoints.files import DEPTH, JSON_BYTES, check_count, require
from opnorm.checkpoints.tf_graph import Body, bodies, numbers
from opnorm.checkpoints.wire import BYTES, Field, Window, fields, message, number, places, text

_META_GRAPH, _GRAPH, _OBJECTS = 2, 2, 7  # of a SavedModel; of a MetaGraphDef
_CONSTANT = 9  # of an object

Attributes = tuple[str, ...]  # from the model downwards


class Object(NamedTuple):
    """An object of the program that was saved."""

    children: Mapping[str, int]
    identifier: bytes
    metadata: bytes  # JSON
    constant: str = ""  # the operation of the graph that it is, of a constant


class Saved(NamedTuple):
    """A graph, and the objects it was made of."""

    objects: Sequence[Object]  # the model first
    captured: Mapping[str, tuple[int, ...]]  # objects that the last arguments of a function are
    bodies: Mapping[str, Body]


def read_saved(file: Path) -> Saved:
    """Return the first graph in a `saved_model.pb`; all of them have the same variables."""
    require(file.is_file() and file.stat().st_size > 0, f"its {file.name} is missing or empty")
    with file.open("rb") as opened:
        data = Window(opened, file.stat().st_size)
        graphs = [one for one in places(data, 0, data.size) if (one.number, one.wire) == (_META_GRAPH, BYTES)]
        require(bool(graphs), f"its {file.name} holds no graph")
        return _meta_graph(data, graphs[0])


def read_meta(file: Path) -> Saved:
    """Return the graph in a `.meta` file."""
    with file.open("rb") as opened:
        data = Window(opened, file.stat().st_size)
        return _meta_graph(data, Field(0, BYTES, 0, data.size))


def graph_in(data: Window) -> list[Field]:
    """Return the parts of the first graph of operations in a SavedModel."""
    found = (one for one in places(data, 0, data.size) if (one.number, one.wire) == (_META_GRAPH, BYTES))
    first = next(found, Field(0, BYTES, 0, 0))
    graphs = (one for one in places(data, first.start, first.end) if (one.number, one.wire) == (_GRAPH, BYTES))
    return [part for graph in graphs for part in places(data, graph.start, graph.end)]


def _meta_graph(data: Window, graph: Field) -> Saved:
    objects: list[Object] = []
    captured: dict[str, tuple[int, ...]] = {}
    found: Mapping[str, Body] = {}
    for part in places(data, graph.start, graph.end):
        if (part.number, part.wire) == (_GRAPH, BYTES):
            found = bodies(data, part)
        elif (part.number, part.wire) == (_OBJECTS, BYTES):
            size = part.end - part.start
            require(size <= JSON_BYTES, f"its graph of objects takes {size} bytes")
            objects, captured = _objects(data.read(part.start, part.end))
    return Saved(objects, captured, found)


def _objects(graph: bytes) -> tuple[list[Object], dict[str, tuple[int, ...]]]:
    objects, captured = [], {}
    for key, value in fields(graph):
        if key == 1:
            objects.append(_object(message(value)))
        elif key == 2:
            entry = dict(fields(message(value)))
            bound = (one for part, one in fields(message(entry.get(2, b""))) if part == 2)
            captured[text(entry.get(1, b""))] = tuple(at for one in bound for at in numbers(one))
    check_count(len(objects) // 4)  # with functions and lists a model has far more objects than tensors
    return objects, captured


def _object(data: bytes) -> Object:
    children, user, constant = {}, dict[int, Any](), ""
    for key, value in fields(data):
        if key == 1:
            child = dict(fields(message(value)))
            children[text(child.get(2, b""))] = number(child.get(1, 0))
        elif key == 4:
            user = dict(fields(message(value)))
        elif key == _CONSTANT:
            constant = text(dict(fields(message(value))).get(1, b""))
    return Object(children, message(user.get(1, b"")), message(user.get(3, b"")), constant)


def paths_of(objects: Sequence[Object]) -> dict[int, Attributes]:
    """Return the shortest path of attributes to each object that is not nested too deeply."""
    paths: dict[int, Attributes] = {0: ()} if objects else {}
    waiting = deque(paths)
    while waiting:
        at = waiting.popleft()
        for name, child in objects[at].children.items():
            if 0 <= child < len(objects) and child not in paths and len(paths[at]) < DEPTH:
                paths[child] = (*paths[at], name)
                waiting.append(child)
    return paths
