"""What Keras noted of its layers in a SavedModel folder: configs, by the attributes that lead to each layer.

Keras 2.5 and later wrote them to a file of their own, tf.keras before that into the graph of objects; Keras 3 writes
none.

Reference:
    tf_keras, `protobuf/saved_metadata.proto`; TensorFlow, `core/protobuf/saved_object_graph.proto`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opnorm.checkpoints.files import JSON_BYTES, parse_json, require
from opnorm.checkpoints.keras_layers import Layer, serialized_layer
from opnorm.checkpoints.keras_versions import Version, of_version
from opnorm.checkpoints.saved_objects import Attributes, Object, paths_of
from opnorm.checkpoints.wire import fields, message, text

_KERAS: Version = (2, 3)
_METRIC = b"_tf_keras_metric"
_LAYERS = b"_tf_keras"  # how the identifiers of Keras's objects begin


def noted_layers(folder: Path, objects: Sequence[Object]) -> dict[Attributes, Layer]:
    """Return the layers that Keras noted, in its file or in the graph of objects; none where it noted nothing."""
    notes = folder / "keras_metadata.pb"
    found = _in_file(notes) if notes.is_file() else _in_graph(objects)
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


def _in_graph(objects: Sequence[Object]) -> Iterator[tuple[Attributes, bytes, bytes]]:
    """Yield the same of each object that Keras noted in the graph."""
    for at, path in paths_of(objects).items():
        if objects[at].identifier.startswith(_LAYERS):
            yield path, objects[at].identifier, objects[at].metadata


def _plain(value: Any) -> Any:
    """Return a config with its tuples, which stand in it as records, as lists."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__" and isinstance(value.get("items"), list):
        return _plain(value["items"])
    return {key: _plain(one) for key, one in value.items()}
