"""TensorFlow's first checkpoints, up to 2016: one file, a table whose values are the numbers themselves.

Reference:
    TensorFlow, `core/util/saved_tensor_slice.proto`, `tensor_slice_writer.cc`.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints.boxes import check_cover, joined
from opnorm.checkpoints.files import byte_size, check_count, check_growth, guarded, require
from opnorm.checkpoints.flat import Entry, unread
from opnorm.checkpoints.guesses import Named, unique
from opnorm.checkpoints.records import Checkpoint, CheckpointError
from opnorm.checkpoints.tf_bundle import shape_of
from opnorm.checkpoints.tf_checkpoint import follow, guessed
from opnorm.checkpoints.tf_graph import numbers
from opnorm.checkpoints.tf_slices import slice_key, slice_of
from opnorm.checkpoints.tf_table import Table, pairs
from opnorm.checkpoints.tf_types import dtype_of, type_name
from opnorm.checkpoints.wire import fields, message, number, text

_LISTS = {5: "<f4", 6: "<f8"}  # of a TensorProto: numbers one after another
_INTEGERS = {7: "<i4", 10: "<i8"}  # and numbers of variable length


class Listed(NamedTuple):
    """What the table says of a tensor before its numbers."""

    name: str
    shape: tuple[int, ...]
    kind: int
    slices: tuple[bytes, ...]


def read_first(path: Path) -> Checkpoint:
    """Return the checkpoint of one file of TensorFlow's first format."""
    first = next(pairs(path), None)
    if first is None or first[0] != b"":
        raise CheckpointError("it is a table of TensorFlow's, and no checkpoint")
    meta = message(dict(fields(first[1])).get(1, b""))
    listed = [_listed(message(value)) for key, value in fields(meta) if key == 1]
    check_count(len(listed))
    taken, table = set[str](), Table(path)
    weights = guessed({one.name: _entry(table, unique(one.name, taken), one) for one in listed}, ())
    graph = path.with_name(f"{path.name}.meta")
    notes = follow(graph, weights) if graph.is_file() else ()
    return Checkpoint("tensorflow", tuple(weights.values()), None, notes)


def _listed(data: bytes) -> Listed:
    found: dict[int, Any] = {}
    slices = []
    for key, value in fields(data):
        found[key] = value
        if key == 4:
            slices.append(message(value))
    return Listed(text(found.get(1, b"")), shape_of(message(found.get(2, b""))), number(found.get(3, 0)), tuple(slices))


def _entry(table: Table, label: str, one: Listed) -> Entry:
    """Return a tensor of which the parts that are listed make the whole."""
    dtype = dtype_of(one.kind)
    if dtype is None or dtype.str not in {*_LISTS.values(), *_INTEGERS.values()}:
        kind = type_name(one.kind)
        return unread(table.path, label, one.shape, kind, f"it holds {kind}, which is not read in this format")
    check_growth(label, byte_size(one.shape, dtype.itemsize), table.size)
    boxes = [slice_of(encoded, one.shape) for encoded in one.slices]
    check_cover(label, one.shape, boxes)
    parts = [
        (box, partial(_part, table, one.name, encoded, dtype, box.shape))
        for box, encoded in zip(boxes, one.slices, strict=True)
    ]
    return Entry(Named(label, one.shape, str(dtype), guarded(table.path, joined, one.shape, dtype, parts)))


def _part(table: Table, name: str, encoded: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers of a part, which stand in its entry of the table."""
    value = table.find(slice_key(name, encoded))
    if value is None:
        raise CheckpointError(f"a part of {name!r} is not in the table")
    saved = dict(fields(message(dict(fields(value)).get(2, b""))))
    tensor = list(fields(message(saved.get(3, b""))))
    lists = [np.frombuffer(message(held), dtype) for key, held in tensor if _LISTS.get(key) == dtype.str]
    integers = [n for key, held in tensor if _INTEGERS.get(key) == dtype.str for n in numbers(held)]
    found = np.concatenate(lists) if lists else np.array(integers, dtype)
    require(found.size == byte_size(shape, 1), f"a part of {name!r} has another number of values than places")
    return found.reshape(shape)
