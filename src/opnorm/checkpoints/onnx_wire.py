"""An ONNX file without its numbers: the message is copied, and each large tensor becomes a note of where it lies."""

from pathlib import Path

from opnorm.checkpoints.files import DEPTH, require
from opnorm.checkpoints.wire import LARGEST, Window, header, varint

SELF = ""  # the `location` of a tensor that lies in the model's own file

_LARGE = 1024  # bytes; smaller numbers stay where they are
_MODEL, _TRAINING, _FUNCTION, _GRAPH, _NODE, _ATTRIBUTE, _SPARSE, _TENSOR = range(8)
_FIELDS = {  # of onnx.proto: which fields lead to tensors, by number
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
_NUMBERS = {4, 9, 10}  # float_data, raw_data, double_data: little-endian numbers, one after another
_EXTERNAL, _LOCATION = 13, 14  # TensorProto.external_data, and whether it is used


def skeleton(path: Path) -> bytes:
    """Return the model's message with every tensor of more than 1 KiB as "external data" in `SELF`."""
    with path.open("rb") as file:
        data = Window(file, path.stat().st_size)
        return bytes(_message(data, 0, data.size, _MODEL, 0))


def _message(data: Window, at: int, end: int, kind: int, depth: int) -> bytearray:
    require(depth < DEPTH, "its graphs are nested too deeply")
    if kind == _TENSOR:
        return _tensor(data, at, end)
    result, fields = bytearray(), _FIELDS[kind]
    while at < end:
        start = at
        field, wire, at, size = header(data, at, end)
        if wire == 2 and field in fields:
            result += _field(field, _message(data, at, at + size, fields[field], depth + 1))
        else:
            result += data.read(start, at + size)
        at += size
        require(len(result) <= LARGEST, "it holds more than numbers alone explain")
    return result


def _tensor(data: Window, at: int, end: int) -> bytearray:
    """Return a tensor's message; where its numbers are large a note of their place, which is its last word."""
    result, places, notes, external = bytearray(), bytearray(), bytearray(), 0
    while at < end:
        start = at
        field, wire, at, size = header(data, at, end)
        if wire == 2 and field in _NUMBERS and size > _LARGE:
            notes += _note(at, size)
        elif field in (_EXTERNAL, _LOCATION):
            places += data.read(start, at + size)
            external = varint(data, at, end)[0] if field == _LOCATION and wire == 0 else external
        else:
            result += data.read(start, at + size)
        at += size
    return result + (places if external == 1 or not notes else notes)  # numbers beside external data do not count


def _encoded(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def _field(number: int, content: bytes | bytearray) -> bytes:
    return _encoded(number << 3 | 2) + _encoded(len(content)) + content


def _note(offset: int, size: int) -> bytes:
    entries = {"location": SELF, "offset": str(offset), "length": str(size)}
    pairs = [_field(1, key.encode()) + _field(2, value.encode()) for key, value in entries.items()]
    return b"".join(_field(_EXTERNAL, pair) for pair in pairs) + _encoded(_LOCATION << 3) + b"\1"
