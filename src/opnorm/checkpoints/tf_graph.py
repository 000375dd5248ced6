"""TensorFlow's graphs of operations as tables: what each operation is called, reads and is set to; nothing is executed.

Reference:
    TensorFlow, `core/framework/graph.proto`, `function.proto`, `node_def.proto`, `attr_value.proto`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from opnorm.checkpoints.wire import BYTES, Field, Window, fields, message, places, signed, text, varint

_NODES, _LIBRARY, _FUNCTION = 1, 2, 1  # of a GraphDef, and of its library
_NODE_BYTES = 2**16  # larger ones are constants
_IN_ALL = 2**25  # bytes of nodes without constants: a hundred thousand nodes, and half a minute
_SET = re.compile(r"Conv|MatMul|Variable|VarHandleOp|PartitionedCall")  # kinds whose settings are read
_SETTINGS = {
    "strides", "dilations", "padding", "data_format", "transpose_b", "adj_y", "shared_name", "f",
}  # fmt: skip


class Operation(NamedTuple):
    """A node of a graph."""

    kind: str
    inputs: tuple[str, ...]  # names of nodes, or of a function's arguments; without what only waits
    settings: Mapping[str, Any]


class Body(NamedTuple):
    """The graph itself, or a function of it."""

    arguments: tuple[str, ...]
    operations: Mapping[str, Operation]


def bodies(data: Window, graph: Field) -> dict[str, Body]:
    """Return the bodies of a GraphDef by the names of the functions, the graph's own being ""; none of a huge one."""
    found: dict[str, Body] = {}
    budget = [_IN_ALL]
    parts = list(places(data, graph.start, graph.end))
    found[""] = Body((), dict(_operations(data, parts, _NODES, budget)))
    for library in parts:
        if (library.number, library.wire) == (_LIBRARY, BYTES):
            for one in places(data, library.start, library.end):
                if one.number == _FUNCTION and one.wire == BYTES and budget[0] > 0:
                    inner = list(places(data, one.start, one.end))
                    name, arguments = _signature(data, inner)
                    found[name] = Body(arguments, dict(_operations(data, inner, 3, budget)))
    return found if budget[0] > 0 else {}


def _signature(data: Window, parts: list[Field]) -> tuple[str, tuple[str, ...]]:
    """Return the name and the arguments of a function."""
    for part in parts:
        if part.number == 1 and part.wire == BYTES and part.end - part.start <= 16 * _NODE_BYTES:
            name, arguments = "", []
            for key, value in fields(data.read(part.start, part.end)):
                if key == 1:
                    name = text(value)
                elif key == 2:
                    arguments.append(text(dict(fields(message(value))).get(1, b"")))
            return name, tuple(arguments)
    return "", ()


def _operations(data: Window, parts: list[Field], nodes: int, budget: list[int]) -> Iterator[tuple[str, Operation]]:
    for part in parts:
        if part.number == nodes and part.wire == BYTES:
            size = part.end - part.start
            if size <= _NODE_BYTES:
                budget[0] -= size
            if size <= _NODE_BYTES and budget[0] > 0:
                yield _operation(data.read(part.start, part.end))


def _operation(node: bytes) -> tuple[str, Operation]:
    name, kind, inputs, settings = "", "", [], {}
    for key, value in fields(node):
        if key == 1:
            name = text(value)
        elif key == 2:
            kind = text(value)
        elif key == 3:
            inputs.append(text(value))
        elif key == 5 and _SET.search(kind):  # the kind stands before
            entry = dict(fields(message(value)))
            attribute = text(entry.get(1, b""))
            if attribute in _SETTINGS:
                settings[attribute] = _value(message(entry.get(2, b"")))
    read = tuple(one.partition(":")[0] for one in inputs if not one.startswith("^"))
    return name, Operation(kind, read, settings)


def _value(attribute: bytes) -> Any:
    """Return an AttrValue: a text, a number, a flag, a list of numbers, the name of a function."""
    for key, value in fields(attribute):
        if key == 1:
            return [number for part, one in fields(message(value)) if part == 3 for number in numbers(one)]
        if key == 2:
            return message(value).decode("utf-8", "replace")
        if key in (3, 5):
            return value
        if key == 10:
            return text(dict(fields(message(value))).get(1, b""))
    return None


def numbers(value: int | bytes) -> Iterator[int]:
    """Yield the numbers of a packed field, or the one of a plain field."""
    if isinstance(value, int):
        yield signed(value)
        return
    at = 0
    while at < len(value):
        number, at = varint(value, at, len(value))
        yield signed(number)
