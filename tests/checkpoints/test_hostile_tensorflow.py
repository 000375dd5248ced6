"""Checkpoints of TensorFlow's that are wrong in one place: each ends in one line, within its own size of memory."""

import struct
from time import monotonic

import pytest
from readers import fails, refused
from tensor_bundles import HEADER, STRING, VALUES, block, entry, field, table, varint, write

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.tf_snappy import unpacked

GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
W = (0, b"w", entry((2, 3), 24))


def test_what_is_written_here_is_read(tmp_path):
    (weight,) = open_checkpoint(write(tmp_path)).weights
    assert (weight.name, weight.read().tolist()) == ("w", VALUES.tolist())


@pytest.mark.parametrize(
    ("pair", "match"),
    [
        ((0, b"w", entry((2, 4), 24)), "takes 32 bytes and is stored in 24"),
        ((0, b"w", entry((2, 3), 24, offset=8)), "lies beyond the end"),
        ((0, b"w", entry((2, 3), 24, offset=-8)), "lies beyond the end"),
        ((0, b"w", entry((2**40, 2**40), 2**80)), "Cannot read"),
        ((0, b"w", entry((-2, 3), 24)), "has the shape"),
        ((0, b"w", entry((1,) * 40, 4)), "has the shape"),
        ((0, b"w", entry((2, 3), 24, shard=1)), "names the file 1 of 1"),
        ((0, b"w", entry((2, 3), 24, shard=-1)), "names the file -1 of 1"),
        ((0, b"w", field(1, b"x")), "stored in 0|takes 0|no numbers"),
        ((0, b"w", b"\xff" * 20), "no protocol buffer"),
        ((0, b"w", field(2, b"\x12\x7f")), "beyond its end"),
        ((0, b"w\xff", entry((2, 3), 24)), "damaged"),
        ((0, b"w" * 1001, entry((2, 3), 24)), "name of 1001 characters"),
        ((0, b"w" * 5000, entry((2, 3), 24)), "key of 5000 bytes"),
        ((3, b"w", entry((2, 3), 24)), "beyond its block"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(tmp_path, pair, match):
    refused(write(tmp_path, [pair]), match)


@pytest.mark.parametrize("kind", [0, 7, 20, 21, 29, 99])
def test_what_holds_no_numbers_has_a_row(tmp_path, kind):
    (weight,) = open_checkpoint(write(tmp_path, [(0, b"w", entry((2,), 24, kind=kind))])).weights
    assert weight.geometry.unknown == (kind != STRING)
    assert "no numbers" in weight.geometry.reason


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"", "names 0 files"),
        (field(1, 2**20), "names 1048576 files"),
        (field(1, 1) + field(2, 1), "big-endian"),
        (field(1, 2), "which is missing"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, header, match):
    refused(write(tmp_path, index=table([block([(0, b"", header), W])])), match)


TABLES = {
    "no header": (table([block([W])]), "no header"),
    "no footer": (b"x" * 100, "no table"),
    "short": (b"x", "no table"),
    "keys in no order": (table([block([HEADER, (0, b"w", W[2]), (0, b"a", W[2])])]), "no order"),
    "a key twice": (table([block([HEADER, W, W])]), "no order"),
    "a block twice": (table([block([HEADER, W])], places=[(0, len(block([HEADER, W])))] * 2), "overlap"),
    "a block beyond": (table([block([HEADER, W])], places=[(0, 10**6)]), "beyond its end"),
    "a huge place": (table([block([HEADER, W])], places=[(2**62, 2**62)]), "beyond its end"),
    "a block of nothing": (table([b""]), "cut off"),
    "too many restarts": (table([b"\0" * 8 + b"\xff" * 4]), "cut off"),
    "compressed": (table([block([HEADER, W])], compression=7), "method of the number 7"),
    "no snappy": (table([b"\xff" * 20], compression=1), "Cannot read"),
    "a bomb": (table([varint(2**40 + 1) + b"\0" * 20], compression=1), "unpacks to 1099511627777 bytes"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, case):
    index, match = TABLES[case]
    refused(write(tmp_path, index=index), match)


def test_a_table_of_many_long_keys_costs_no_more_than_it_stores(tmp_path):
    """A key may share all but a byte with the one before: two bytes stand for thousands."""
    start = [HEADER, (0, b"w" * 4000, entry((2, 3), 24))]
    more = [(4000, struct.pack(">I", i), b"") for i in range(100_000)]
    begin = monotonic()
    refused(write(tmp_path, [*start[1:], *more]), "name of 4000 characters|more than")
    assert monotonic() - begin < 20  # a second; shared machines


def test_more_tensors_than_any_model_has_are_refused(tmp_path):
    refused(
        write(tmp_path, [(0, b"w%06d" % i, entry((2, 3), 24)) for i in range(2**16 + 1)]), "more than 65536 tensors"
    )


def test_many_vectors_beside_many_kernels_take_no_more_than_their_number(tmp_path):
    pairs = [(0, b"d/k%05d" % i, entry((2, 3), 24)) for i in range(5_000)]
    pairs += [(0, b"d/u_%05d" % i, entry((1, 3), 12)) for i in range(5_000)]
    begin = monotonic()
    found = open_checkpoint(write(tmp_path, pairs)).weights
    assert monotonic() - begin < 30  # two seconds; shared machines
    assert all(weight.geometry.unknown for weight in found if "/k" in weight.name)


def part(start, length):
    return field(1, field(1, start) + field(2, length)) + field(1, b"")


def key_of(start, length):
    """Return the key of rows `start` to `start + length` of `w`."""
    return b"\0w\0\1\1\2" + bytes([0x80 ^ start, 0x80 ^ length, 0x80, 0x7F])


@pytest.mark.parametrize(
    ("slices", "match"),
    [
        ([part(0, 1), part(1, 1)], None),
        ([part(0, 1)], "do not make the whole"),
        ([part(0, 1), part(0, 1)], "do not make the whole"),
        ([part(0, 1), part(1, 2)], "lies outside of it"),
        ([part(0, 1), part(-1, 1)], "lies outside of it"),
        ([part(0, 2)], "not in its index"),
        ([field(1, b"")], "another number of axes"),
        ([part(0, 1)] * 5000, "more than 4096 parts"),
    ],
)
def test_parts_of_a_variable_that_make_no_whole_are_refused(tmp_path, slices, match):
    rows = [(0, key_of(i, 1), entry((1, 3), 12, offset=12 * i)) for i in range(2)]
    path = write(tmp_path, [*rows, (0, b"w", entry((2, 3), 0, slices=slices))])
    if match:
        refused(path, match)
    else:
        assert open_checkpoint(path).weights[0].read().tolist() == VALUES.tolist()


def node(children=(), variables=(), slots=()):
    return field(
        1,
        b"".join(field(1, field(1, i) + field(2, name)) for i, name in children)
        + b"".join(field(2, field(2, full) + field(3, key)) for full, key in variables)
        + b"".join(field(3, field(3, i)) for i in slots),
    )


def with_objects(tmp_path, graph):
    text = varint(len(graph)) + bytes(4) + graph
    pairs = [(0, GRAPH, entry((), len(text), offset=24, kind=STRING)), W]
    return write(tmp_path, pairs, data=VALUES.tobytes() + text)


@pytest.mark.parametrize(
    "graph",
    [
        node([(0, b"again")]),  # a circle
        node([(1, b"a"), (2**40, b"b"), (-1, b"c")]) + node([(0, b"up")], [(b"", b"w")]),
        node([(1, b"a")], slots=[5, -3]) + node(variables=[(b"d/kernel", b"missing")]),
    ],
)
def test_objects_joined_anyhow_are_followed_to_an_end(tmp_path, graph):
    (weight,) = open_checkpoint(with_objects(tmp_path, graph)).weights
    assert weight.name == "w"


@pytest.mark.parametrize("graph", [b"\xff" * 30, field(1, field(1, 3)), field(1, field(2, field(2, b"\xff\xfe")))])
def test_objects_that_make_no_sense_are_refused(tmp_path, graph):
    refused(with_objects(tmp_path, graph), "Cannot read")


def test_a_variable_that_only_its_name_calls_a_slot_is_no_optimizers(tmp_path):
    graph = (
        node([(1, b"optimizer")]) + node([(2, b"_variables")]) + node([(3, b"0")]) + node(variables=[(b"a/b", b"w")])
    )
    (weight,) = open_checkpoint(with_objects(tmp_path, graph)).weights
    assert weight.geometry.reason != g.OPTIMIZER


def test_snappy_is_undone():
    """By hand: a literal of 4, a copy of 8 from 4 back, which overlaps what it writes, and the two longer kinds."""
    packed = varint(4 + 8 + 5 + 5) + b"\x0cabcd" + b"\x11\x04" + b"\x12\x0c\x00" + b"\x13\x04\x00\x00\x00"
    assert unpacked(packed, 100) == b"abcd" * 3 + b"abcda" + b"bcda" + b"b"
    long = bytes(range(256)) * 2
    assert unpacked(varint(512) + b"\xf4" + struct.pack("<H", 511) + long, 1000) == long


@pytest.mark.parametrize(
    "packed",
    [b"", b"\x04", b"\x04\x0cab", b"\x04\x11\x04", b"\x02\x0cabcd", b"\x09\x0cabcd\x12\x00", b"\x09\x0cabcd\x11\x00"],
)
def test_snappy_that_makes_no_sense_is_refused(tmp_path, packed):
    assert fails(write(tmp_path, index=table([packed], compression=1)))
