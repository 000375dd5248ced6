"""Protocol buffers by their bytes: the fields of a message, without a schema, each checked to lie within it."""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from opnorm.checkpoints.files import require

LARGEST = 2**30  # bytes of a message without its numbers; protocol buffers end at twice that
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is stored

_WINDOW = 2**16  # bytes read at a time
_FIELDS = 2**19  # of one message: the largest graphs have a few hundred thousand nodes


class Window:
    """A file's bytes by their place: read, not mapped, so that one that becomes shorter is an error and no signal."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.start, self.bytes = 0, b""

    def __getitem__(self, at: int) -> int:
        place = at - self.start
        if not 0 <= place < len(self.bytes):
            self.bytes = self.read(at, min(at + _WINDOW, self.size))
            self.start, place = at, 0
        return self.bytes[place]

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`."""
        if self.start <= start and end <= self.start + len(self.bytes):
            return self.bytes[start - self.start : end - self.start]
        require(end - start <= LARGEST, "it holds more than numbers alone explain")
        self.file.seek(start)
        found = self.file.read(end - start)
        require(len(found) == end - start, "it became shorter while it was read")
        return found


Source = Any  # a Window or bytes: what has a byte at each place


class Field(NamedTuple):
    """A field of a message: its number, how it is stored, and where its value lies."""

    number: int
    wire: int
    start: int
    end: int


def header(data: Source, at: int, end: int) -> tuple[int, int, int, int]:
    """Return a field's number, how it is stored, where its value begins, and how many bytes that takes."""
    tag, at = varint(data, at, end)
    field, wire = tag >> 3, tag & 7
    require(wire in (VARINT, FIXED64, BYTES, FIXED32), "it is no protocol buffer")
    size = {FIXED64: 8, FIXED32: 4}.get(wire, 0)
    if wire == VARINT:
        size = varint(data, at, end)[1] - at
    elif wire == BYTES:
        size, at = varint(data, at, end)
    require(at + size <= end, "a field of it reaches beyond its end")
    return field, wire, at, size


def varint(data: Source, at: int, end: int) -> tuple[int, int]:
    """Return the number of variable length at a place, and where it ends."""
    value = shift = 0
    while True:
        require(at < end and shift < 70, "it is no protocol buffer, or cut off")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def places(data: Source, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message that lies in `data` from `start` to `end`."""
    for _ in range(_FIELDS):
        if start >= end:
            return
        number, wire, start, size = header(data, start, end)
        yield Field(number, wire, start, start + size)
        start += size
    require(start >= end, f"a message of it has more than {_FIELDS} fields")


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field: bytes, or a number for the rest."""
    for number, wire, start, end in places(message, 0, len(message)):
        if wire == VARINT:
            yield number, varint(message, start, end)[0]
        else:
            value = message[start:end]
            yield number, value if wire == BYTES else int.from_bytes(value, "little")


def signed(value: int) -> int:
    """Return an int64 of which `value` are the 64 bits."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def number(value: int | bytes) -> int:
    """Return the value of a field that must be an integer."""
    require(isinstance(value, int), "a field of it is no number")
    return signed(value)  # type: ignore[arg-type]


def message(value: int | bytes) -> bytes:
    """Return the value of a field that must be a message or bytes."""
    require(isinstance(value, bytes), "a field of it is a number")
    return value  # type: ignore[return-value]


def text(value: int | bytes) -> str:
    """Return the value of a field that must be a text."""
    return message(value).decode("utf-8")
