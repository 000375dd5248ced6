"""Snappy's compression undone, within a bound: blocks of TensorFlow's oldest checkpoints are stored so.

Reference:
    Google, snappy, `format_description.txt`.
"""

from opnorm.checkpoints.files import check_growth, require
from opnorm.checkpoints.wire import varint


def unpacked(data: bytes, limit: int) -> bytes:
    """Return what a compressed block holds; it says how many bytes, of which there are `limit` at most."""
    size, at = varint(data, 0, len(data))
    require(size <= limit, f"a block of it unpacks to {size} bytes")
    check_growth("a block", size, len(data))
    found = bytearray()
    while at < len(data):
        at = _step(data, at, found)
        require(len(found) <= size, "a compressed block of it holds more than it says")
    require(len(found) == size, "a compressed block of it is cut off")
    return bytes(found)


def _step(data: bytes, at: int, found: bytearray) -> int:
    """Append what the element at a place stands for, and return where the next one begins."""
    kind, length = data[at] & 3, data[at] >> 2
    at += 1
    if kind == 0:
        return _literal(data, at, length, found)
    if kind == 1:
        length, offset, at = 4 + (length & 7), _number(data, at, 1) + (length >> 3 << 8), at + 1
    else:
        width = 2 * kind - 2  # 2 or 4 bytes
        length, offset, at = length + 1, _number(data, at, width), at + width
    require(0 < offset <= len(found), "a compressed block of it repeats what is not there")
    start = len(found) - offset
    run = found[start : start + length]
    found += (run * (length // len(run) + 1))[:length]  # a copy may overlap what it writes
    return at


def _literal(data: bytes, at: int, length: int, found: bytearray) -> int:
    if length >= 60:
        width = length - 59
        length, at = _number(data, at, width), at + width
    require(at + length < len(data) or at + length + 1 == len(data), "a compressed block of it is cut off")
    found += data[at : at + length + 1]
    return at + length + 1


def _number(data: bytes, at: int, width: int) -> int:
    require(at + width <= len(data), "a compressed block of it is cut off")
    return int.from_bytes(data[at : at + width], "little")
