"""What Keras noted of its layers in a SavedModel folder: configs, by the attributes that lead to each layer.

Keras 2.5 and later wrote them to a file of their own, tf.keras before that into the graph of objects; Keras 3 writes
none.

Reference:
    tf_keras, `protobuf/saved_metadata.proto`; TensorFlow, `core/protobuf/saved_object_graph.proto`.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.checkpoints.files import JSON_BYTES, check_count, parse_json, require
from opnorm.checkpoints.keras_layers import Layer, serialized_layer
from opnorm.checkpoints.keras_versions import Version, of_version
from opnorm.checkpoints.wire import Window, fields, message, number, places, text

Attributes = tuple[str, ...]  # from the model downwards

_KERAS: Version = (2, 3)
_METRIC = b"_tf_keras_metric"
_LAYERS = b"_tf_keras"  # how the identifiers of Keras's objects begin
_META_GRAPH, _OBJECTS = 2, 7  # of a SavedModel, and of a MetaGraphDef


class _Object(NamedTuple):
    """An object of the program that was saved."""

    children: Mapping[str, int]
    identifier: bytes
    metadata: bytes  # JSON


def noted_layers(folder: Path) -> dict[Attributes, Layer]:
    """Return the layers that Keras noted; none where it noted nothing."""
    notes, graph = folder / "keras_metadata.pb", _objects(folder / "saved_model.pb")
    found = _in_file(notes) if notes.is_file() else _in_graph(graph)
    layers = {}
    for path, identifier, metadata in found:
        entry = parse_json(metadata, "what Keras noted of a layer") if metadata and identifier != _METRIC else None
        layer = serialized_layer(of_version(_plain(entry), _KERAS))
        if layer is not None:
            layers[path] = layer
    return layers


def _in_file(file: Path) -> Iterator[tuple[Attributes, bytes, bytes]]:
    """Yield the path, the identifier and the metadata of each object in a file of notes."""
    require(file.stat().st_size <= JSON_BYTES, f"its {file.name} is larger than {JSON_BYTES >> 20} MiB")
    for key, value in fields(file.read_bytes()):
        if key == 1:
            entry = dict(fields(message(value)))
            path = tuple(text(entry.get(3, b"")).split(".")[1:])
            yield path, message(entry.get(4, b"")), message(entry.get(5, b""))


def _in_graph(objects: list[_Object]) -> Iterator[tuple[Attributes, bytes, bytes]]:
    """Yield the same of each object that Keras noted in the graph, by the shortest path to it."""
    paths: dict[int, Attributes] = {0: ()}
    waiting = deque([0] if objects else [])
    while waiting:
        at = waiting.popleft()
        if objects[at].identifier.startswith(_LAYERS):
            yield paths[at], objects[at].identifier, objects[at].metadata
        for name, child in objects[at].children.items():
            if 0 <= child < len(objects) and child not in paths:
                paths[child] = (*paths[at], name)
                waiting.append(child)


def _objects(file: Path) -> list[_Object]:
    """Return the objects of the first graph in a `saved_model.pb` that has some, the model first."""
    require(file.is_file() and file.stat().st_size > 0, f"its {file.name} is missing or empty")
    with file.open("rb") as opened:
        data = Window(opened, file.stat().st_size)
        for graph in [one for one in places(data, 0, data.size) if one.number == _META_GRAPH and one.wire == 2]:
            for part in places(data, graph.start, graph.end):
                if part.number == _OBJECTS and part.end > part.start:
                    require(
                        part.end - part.start <= JSON_BYTES, f"its graph of objects takes {part.end - part.start} bytes"
                    )
                    return _read_objects(data.read(part.start, part.end))
    return []


def _read_objects(graph: bytes) -> list[_Object]:
    found = [_object(message(value)) for key, value in fields(graph) if key == 1]
    check_count(len(found) // 16)  # with functions and lists a model has far more objects than tensors
    return found


def _object(data: bytes) -> _Object:
    children, user = {}, dict[int, Any]()
    for key, value in fields(data):
        if key == 1:
            child = dict(fields(message(value)))
            children[text(child.get(2, b""))] = number(child.get(1, 0))
        elif key == 4:
            user = dict(fields(message(value)))
    return _Object(children, message(user.get(1, b"")), message(user.get(3, b"")))


def _plain(value: Any) -> Any:
    """Return a config with its tuples, which stand in it as records, as lists."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__" and isinstance(value.get("items"), list):
        return _plain(value["items"])
    return {key: _plain(one) for key, one in value.items()}
