"""How long the texts in an HDF5 object's attributes claim to be: the library takes that much memory before it looks.

Reference:
    HDF5 File Format Specification 3.0, IV.A: object headers of version 1, the attribute and the continuation message.
"""

from collections.abc import Iterator
from struct import unpack_from
from typing import BinaryIO

_ATTRIBUTE, _CONTINUATION, _VARIABLE_LENGTH = 0x0C, 0x10, 9
_PREFIX = 16  # bytes of an object header before its first message
_BLOCKS = 256  # of an object header, at most: a damaged one may go in circles


def claimed_length(file: BinaryIO, address: int, name: str) -> int:
    """Return the largest length that the variable-length attribute `name` of the object at `address` claims.

    It is 0 where the attribute is not found in a header of version 1.
    """
    found = (_lengths(body, name.encode()) for kind, body in _messages(file, address) if kind == _ATTRIBUTE)
    return max((length for lengths in found for length in lengths), default=0)


def _messages(file: BinaryIO, address: int) -> Iterator[tuple[int, bytes]]:
    prefix = _read(file, address, _PREFIX)
    if len(prefix) < _PREFIX or prefix[0] != 1:
        return
    blocks = [(address + _PREFIX, unpack_from("<I", prefix, 8)[0])]
    for start, size in blocks:  # grows while it is walked
        data, place = _read(file, start, size), 0
        while place + 8 <= len(data):
            kind, length = unpack_from("<HH", data, place)
            body = data[place + 8 : place + 8 + length]
            if kind == _CONTINUATION and len(body) >= 16 and len(blocks) < _BLOCKS:
                blocks.append(unpack_from("<QQ", body))
            yield kind, body
            place += 8 + length


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    if start >= 2**62:
        return b""
    file.seek(start)
    return file.read(min(size, 2**20))  # a header is some kilobytes


def _lengths(body: bytes, name: bytes) -> Iterator[int]:
    if len(body) < 8:
        return
    version, _, *sizes = unpack_from("<BBHHH", body)
    places = [9 if version == 3 else 8]
    for size in sizes:  # of the name, the type and the space; version 1 pads each
        places.append(places[-1] + (-(-size // 8) * 8 if version == 1 else size))
    kind = body[places[1] : places[1] + 1]
    if body[places[0] : places[0] + sizes[0]].rstrip(b"\0") == name and kind and kind[0] & 15 == _VARIABLE_LENGTH:
        for start in range(places[3], len(body) - 15, 16):  # length, address and index of each text
            yield unpack_from("<I", body, start)[0]
