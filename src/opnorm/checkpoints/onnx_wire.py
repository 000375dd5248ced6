"""An ONNX file without its numbers: the message is copied, and each large tensor becomes a note of where it lies."""

import mmap
from pathlib import Path
from typing import BinaryIO

from opnorm.checkpoints.files import DEPTH, require

SELF = ""  # the `location` of a tensor that lies in the model's own file

_LARGE = 1024  # bytes; smaller numbers stay where they are
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR = "model", "graph", "node", "attribute", "tensor"
_FIELDS = {  # of onnx.proto: which fields lead to tensors, by number
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH},
    _TENSOR: {},
}
_NUMBERS = {4, 9, 10}  # float_data, raw_data, double_data: little-endian numbers, one after another
_EXTERNAL, _LOCATION = 13, 14  # TensorProto.external_data, and whether it is used


def skeleton(path: Path) -> bytes:
    """Return the model's message with every tensor of more than 1 KiB as "external data" in `SELF`."""
    with path.open("rb") as file, _mapped(file) as data:
        return bytes(_message(data, 0, len(data), _MODEL, 0))


def _mapped(file: BinaryIO) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _message(data: mmap.mmap, at: int, end: int, kind: str, depth: int) -> bytearray:
    require(depth < DEPTH, "its graphs are nested too deeply")
    result, fields = bytearray(), _FIELDS[kind]
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        field, size, at = tag >> 3, *_size(data, at, end, tag & 7)
        if kind == _TENSOR and tag & 7 == 2 and field in _NUMBERS and size > _LARGE:
            result += _note(at, size)
        elif tag & 7 == 2 and field in fields:
            inner = _message(data, at, at + size, fields[field], depth + 1)
            result += _field(field, inner)
        else:
            result += data[start : at + size]
        at += size
    return result


def _size(data: mmap.mmap, at: int, end: int, wire: int) -> tuple[int, int]:
    """Return how many bytes a field's value takes, and where it begins."""
    require(wire in (0, 1, 2, 5), "it is no protocol buffer")
    size = {1: 8, 5: 4}.get(wire, 0)
    if wire == 0:
        size = _varint(data, at, end)[1] - at
    elif wire == 2:
        size, at = _varint(data, at, end)
    require(at + size <= end, "a field of it reaches beyond its end")
    return size, at


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        require(at < end and shift < 70, "it is no protocol buffer, or cut off")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


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
