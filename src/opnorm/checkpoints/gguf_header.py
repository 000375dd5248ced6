"""The header of a GGUF file: the few settings that count and the places of the tensors; all else is stepped over.

`gguf.GGUFReader` makes an object of every entry of every array, a million for a tokenizer, and more for a hostile file
than there is memory: so the header is walked here, and each length held against the file before anything is read.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from opnorm.checkpoints.files import byte_size, check_count, require

_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type
_TEXT, _ARRAY = 8, 9
_KEYS = 2**16  # of settings: real files have under a hundred
_TEXTS = 2**22  # in arrays of one file: the vocabularies and merges of 2026 have under a million
_KEPT = 2**16  # bytes of a name or of a text that is kept
_AXES = 4  # GGML_MAX_DIMS
_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT


class Place(NamedTuple):
    """A tensor: its shape with the input's axis last, as PyTorch has it, its type, and where its numbers begin."""

    name: str
    shape: tuple[int, ...]
    kind: int  # GGMLQuantizationType
    offset: int


class Header(NamedTuple):
    """What is told before the numbers."""

    settings: Mapping[str, Any]  # numbers and texts by key; no arrays
    places: tuple[Place, ...]


def gguf_header(path: Path) -> Header:
    """Return the header of a little-endian GGUF file of version 2 or 3; nothing is larger than the file allows."""
    with path.open("rb") as file:
        walk = _Walk(file, path.stat().st_size)
        require(walk.take(4) == b"GGUF", "it is no GGUF file")
        version = walk.number("I")
        require(version & 0xFFFF != 0, "it is a big-endian GGUF file, which is not read")
        require(version in _VERSIONS, f"its version of GGUF is {version}, which is not read")
        tensors, keys = walk.number("Q"), walk.number("Q")
        check_count(tensors)
        require(keys <= _KEYS, f"it has {keys} settings, more than {_KEYS}")
        settings = dict(walk.setting() for _ in range(keys))
        require(len(settings) == keys, "it has a setting twice")
        places = [walk.place() for _ in range(tensors)]
    require(len({place.name for place in places}) == tensors, "it has a tensor twice")
    alignment = settings.get("general.alignment", _ALIGNMENT)
    proper = type(alignment) is int and 0 < alignment <= 2**20 and alignment & (alignment - 1) == 0
    require(proper, f"its alignment is {alignment!r}, no power of two")
    start = -(-walk.at // alignment) * alignment
    return Header(settings, tuple(place._replace(offset=start + place.offset) for place in places))


class _Walk:
    """Reads from the beginning; whatever does not fit into the file is an error."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.at, self.texts = file, size, 0, 0

    def take(self, count: int) -> bytes:
        require(count <= self.size - self.at, f"its GGUF header ends at {self.at} of {self.size} bytes")
        data = self.file.read(count)
        require(len(data) == count, "it became shorter while it was read")
        self.at += count
        return data

    def skip(self, count: int) -> None:
        require(count <= self.size - self.at, f"something in its header takes {count} bytes, and it has {self.size}")
        self.at += count
        self.file.seek(self.at)

    def number(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def text(self) -> str:
        length = self.number("Q")
        require(length <= _KEPT, f"a name in its header has {length} bytes")
        return self.take(length).decode()

    def setting(self) -> tuple[str, Any]:
        key, kind = self.text(), self.number("I")
        if kind in _SCALARS:
            return key, self.number(_SCALARS[kind])
        require(kind in (_TEXT, _ARRAY), f"its setting {key!r} is of the type {kind}, which GGUF does not have")
        if kind == _TEXT:
            return key, self.long_text()
        self.skip_array()
        return key, None

    def long_text(self) -> str | None:
        """Return a text, None where it is so long that it says nothing here: a chat template."""
        length = self.number("Q")
        if length <= _KEPT:
            return self.take(length).decode(errors="replace")
        self.skip(length)
        return None

    def skip_array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[kind]))
            return
        require(kind == _TEXT, f"its header has an array of the type {kind}, which is not read")
        self.texts += count
        require(self.texts <= _TEXTS, f"its header has {self.texts} texts, more than {_TEXTS}")
        for _ in range(count):
            self.skip(self.number("Q"))

    def place(self) -> Place:
        name, axes = self.text(), self.number("I")
        require(axes <= _AXES, f"{name!r} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        byte_size(shape, 1)
        return Place(name, shape, self.number("I"), self.number("Q"))
