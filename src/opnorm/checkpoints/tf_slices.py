"""Variables that TensorFlow stores in parts: where each part lies in the whole, and the key of its entry.

Reference:
    TensorFlow, `core/util/saved_tensor_slice_util.cc`, `core/lib/strings/ordered_code.cc`.
"""

from opnorm.checkpoints.boxes import Box
from opnorm.checkpoints.files import require
from opnorm.checkpoints.wire import fields, message, number

_WHOLE = -1  # the length of an extent that is not cut


def slice_of(encoded: bytes, whole: tuple[int, ...]) -> Box:
    """Return the box that a TensorSliceProto describes, which lies within the variable."""
    extents = _extents(encoded)
    require(len(extents) == len(whole), "a part of a variable has another number of axes")
    shape = tuple(n if length == _WHOLE else length for (_, length), n in zip(extents, whole, strict=True))
    starts = tuple(start for start, _ in extents)
    inside = all(a >= 0 and s > 0 and a + s <= n for a, s, n in zip(starts, shape, whole, strict=True))
    require(inside, "a part of a variable lies outside of it")
    return Box(starts, shape)


def _extents(encoded: bytes) -> list[tuple[int, int]]:
    """Return the start and the length of each axis; the length of one that is not cut is -1."""
    found = []
    for key, value in fields(encoded):
        if key == 1:
            extent = {part: number(one) for part, one in fields(message(value))}
            found.append((extent.get(1, 0), extent.get(2, _WHOLE)))
    return found


def slice_key(name: str, encoded: bytes) -> bytes:
    """Return the key of a part's entry in the index."""
    extents = _extents(encoded)
    require("\0" not in name, "a variable of several parts has a zero in its name")
    return b"".join(
        [b"\0", name.encode(), b"\0\1", _ordered(len(extents)), *(_signed(n) for one in extents for n in one)]
    )


def _ordered(value: int) -> bytes:
    """Return a number that is not negative, so that bytes sort as numbers do: how many bytes, then these."""
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """Return a number so that bytes sort as numbers do: as many leading ones as bytes, and the sign before them."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    require(size < 8, "a part of a variable lies beyond 2**55")
    mask = ((1 << size) - 1) << 7 * size
    return ((value & ((1 << 8 * size) - 1)) ^ mask).to_bytes(size, "big")
