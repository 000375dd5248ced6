"""Checkpoints of TensorFlow's written byte by byte, so that each can be wrong in one place."""

import struct

import numpy as np

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FLOAT, STRING = 1, 7


def varint(value):
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def field(number, value):
    """Return a field of a protocol buffer: an integer, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (2**64 - 1))
    return varint(number << 3 | 2) + varint(len(value)) + value


def shape_of(sizes):
    return b"".join(field(2, field(1, size)) for size in sizes)


def entry(shape, size, offset=0, kind=FLOAT, shard=0, slices=()):
    """Return the bytes of a BundleEntryProto."""
    parts = [field(1, kind), field(2, shape_of(shape)), field(3, shard), field(4, offset), field(5, size)]
    return b"".join([*parts, *(field(7, one) for one in slices)])


def block(pairs):
    """Return a block of pairs, each `(shared, rest of the key, value)`."""
    body = b"".join(varint(a) + varint(len(key)) + varint(len(value)) + key + value for a, key, value in pairs)
    return body + struct.pack("<II", 0, 1)


def table(blocks, places=None, compression=0):
    """Return a table; `places` replaces where its index says that the blocks lie."""
    data, found = bytearray(), []
    for one in blocks:
        found.append((len(data), len(one)))
        data += one + bytes([compression]) + bytes(4)
    index = block([(0, b"\xff%d" % i, varint(a) + varint(b)) for i, (a, b) in enumerate(places or found)])
    at = len(data)
    data += index + bytes(5)
    return bytes(data) + (varint(at) + varint(0) + varint(at) + varint(len(index))).ljust(40, b"\0") + MAGIC


HEADER = (0, b"", field(1, 1))
VALUES = np.arange(6, dtype="<f4").reshape(2, 3)


def write(folder, pairs=None, *, index=None, data=None, name="a", **settings):
    """Write a checkpoint of one matrix `w`, or of `pairs`, and return its index."""
    pairs = [(0, b"w", entry((2, 3), 24))] if pairs is None else pairs
    path = folder / f"{name}.index"
    path.write_bytes(table([block([HEADER, *pairs])], **settings) if index is None else index)
    (folder / f"{name}.data-00000-of-00001").write_bytes(VALUES.tobytes() if data is None else data)
    return path
