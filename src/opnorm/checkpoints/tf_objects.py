"""The graph of objects in a checkpoint of TensorFlow 2: full names of variables, and which belong to an optimizer.

Reference:
    TensorFlow, `core/protobuf/trackable_object_graph.proto`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from opnorm.checkpoints.files import check_count
from opnorm.checkpoints.tf_bundle import Bundle
from opnorm.checkpoints.wire import fields, message, number, text

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_OPTIMIZER = {"_iterations", "_variables"}  # what an optimizer of Keras's since 2.11 has; older ones have slots
_TRAINED = "_trainable_variables"  # what an optimizer of Keras 3 keeps of the model's


class Variable(NamedTuple):
    """A value that an object stores."""

    full_name: str  # "dense/kernel"; "" where nothing tells
    key: str  # in the index


class Node(NamedTuple):
    """An object of the program that was saved."""

    children: Mapping[str, int]  # by the name of the attribute
    variables: tuple[Variable, ...]
    slots: tuple[int, ...]  # variables that an optimizer keeps for others


def objects(bundle: Bundle) -> tuple[Node, ...]:
    """Return the objects of a checkpoint, the root first; none where it was saved by names alone."""
    if GRAPH not in bundle.entries:
        return ()
    nodes = tuple(_node(message(value)) for key, value in fields(bundle.text(GRAPH)) if key == 1)
    check_count(len(nodes) // 4)  # an object for a layer, its variables, and their lists
    return nodes


def _node(data: bytes) -> Node:
    children, variables, slots = {}, [], []
    for key, value in fields(data):
        if key == 1:
            child = dict(fields(message(value)))
            children[text(child.get(2, b""))] = number(child.get(1, 0))
        elif key == 2:
            stored = dict(fields(message(value)))
            variables.append(Variable(text(stored.get(2, b"")), text(stored.get(3, b""))))
        elif key == 3:
            slots.append(number(dict(fields(message(value))).get(3, 0)))
    return Node(children, tuple(variables), tuple(slots))


def full_names(nodes: Iterable[Node]) -> dict[str, str]:
    """Return the full names of variables by their keys; versions of TensorFlow that write ":0" mean nothing by it."""
    return {one.key: one.full_name.removesuffix(":0") for node in nodes for one in node.variables}


def optimizer_keys(nodes: Sequence[Node]) -> set[str]:
    """Return the keys of what an optimizer keeps: it is not met on a way that leads around all optimizers."""
    optimizers = {i for i, node in enumerate(nodes) if node.slots or set(node.children) >= _OPTIMIZER}
    slots = {slot for node in nodes for slot in node.slots}
    trained = [nodes[i].children.get(_TRAINED, -1) for i in optimizers]
    network = _reached(nodes, [0, *trained], optimizers | slots)
    return {one.key for i, node in enumerate(nodes) if i not in network for one in node.variables}


def _reached(nodes: Sequence[Node], starts: Sequence[int], closed: set[int]) -> set[int]:
    """Return the objects that are met from `starts` without passing through `closed` ones."""
    found, waiting = set[int](), deque(starts)
    while waiting:
        at = waiting.popleft()
        if 0 <= at < len(nodes) and at not in found and at not in closed:
            found.add(at)
            waiting.extend(nodes[at].children.values())
    return found
