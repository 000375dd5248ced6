"""`.onnx` files: every tensor with what the operators do with it, and the outermost graph with its functions."""

from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import extra, require
from opnorm.checkpoints.onnx_bodies import Definitions, Names, function_key
from opnorm.checkpoints.onnx_geometry import role
from opnorm.checkpoints.onnx_integers import with_scales
from opnorm.checkpoints.onnx_numbers import Numbers, Place
from opnorm.checkpoints.onnx_runtime import Runtime
from opnorm.checkpoints.onnx_shapes import Shape, value_shapes
from opnorm.checkpoints.onnx_sizes import with_open_sizes
from opnorm.checkpoints.onnx_steering import without_shape_arithmetic
from opnorm.checkpoints.onnx_unfold import Op, Unfolded
from opnorm.checkpoints.onnx_uses import Met, Uses
from opnorm.checkpoints.onnx_wire import skeleton
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Graph, Node, Weight, of_file

_WHOLE = (2, 3, 4, 5, 6, 7, 12, 13, 21, 22, 25, 26)  # ONNX's types of integers, of 2 to 64 bits
_ARITHMETIC = {
    "Abs", "Add", "CumSum", "Div", "Gemm", "MatMul", "Mean", "Mul", "Neg", "Pow", "ReduceL1", "ReduceL2", "ReduceMean",
    "ReduceSum", "Sub", "Sum",
}  # fmt: skip


def read_onnx(path: Path) -> Checkpoint:
    """Return the checkpoint of an ONNX model; external data is read on demand, from the model's folder only."""
    model = _parsed(path)
    definitions = Definitions(path, model)
    unfolded = Unfolded(definitions)
    given = {*unfolded.outputs, *(value for source in unfolded.links.values() for value in source)}
    unfolded.ops = with_scales(unfolded.ops, definitions.tensors, given, unfolded.values.fresh)
    # The inference is C++ that follows calls as often as they are made: of what was written out above, and no more.
    called = [f for f in model.functions if function_key(f, f.name) in unfolded.called]
    del model.functions[:]
    model.functions.extend(called)
    known = value_shapes(model)
    shapes = {name: shape for name, shape in known.shapes.items() if name in unfolded.own}
    steering = {place: found for place, found in known.steering.items() if place[0] in unfolded.own}
    unfolded.ops = [_with_type(op, known.types) for op in unfolded.ops]
    whole = {name for name, kind in known.types.items() if kind in _WHOLE}
    shapes = with_open_sizes(unfolded.ops, shapes, definitions.tensors)
    uses = Uses(path, definitions.tensors, shapes)
    met = [(op, _steered(op, uses.meet(op), steering)) for op in unfolded.ops]
    calls = [(op, found) for op, found in met if found is not None and op.outermost]
    constants = {name: value.shape for name, value in uses.values.items()}
    for part in Runtime(unfolded.ops, unfolded.links, constants, shapes).parts():
        uses.compute(part)
    weights = tuple(_trained(weight, definitions) for weight in uses.rows())
    fixed = {name for name, value in uses.values.items() if not value.moving}
    return Checkpoint("onnx", weights, _graph(unfolded, calls, shapes, fixed, whole & unfolded.own))


def _with_type(op: Op, types: Mapping[str, int]) -> Op:
    """Return a cast to another value's type as one to that type, where it is known."""
    kind = types.get(op.inputs[1]) if op.kind == "CastLike" and len(op.inputs) > 1 else None
    return op if kind is None else op._replace(kind="Cast", inputs=op.inputs[:1], options={"to": kind})


def _parsed(path: Path) -> Any:
    model = extra("onnx").ModelProto()
    try:
        model.ParseFromString(skeleton(path))
    except extra("google.protobuf.message").DecodeError as error:
        raise CheckpointError(f"it is no ONNX model ({error})") from error
    held = model.graph.node, model.graph.initializer, model.graph.sparse_initializer
    require(any(held), "it holds no graph")
    return model


def _trained(weight: Weight, definitions: Definitions) -> Weight:
    """Return the weight; what stands in the file for the training only is no part of the network."""
    is_state = weight.name in definitions.training
    return weight._replace(geometry=g.nothing("training", g.STATE)) if is_state else weight


def _graph(
    unfolded: Unfolded, calls: list[tuple[Op, Met]], shapes: Mapping[str, Shape], fixed: Set[str], whole: Set[str]
) -> Graph:
    """Return the outermost graph; operators on constants alone are no nodes, their results are weights."""
    makers = {value: value for value in unfolded.inputs}
    names = Names()
    for value in (*unfolded.inputs, *fixed):  # no node is called as one of these
        names.fresh(value)
    read = {value for op, _ in calls for value in op.inputs} | set(unfolded.outputs)
    nodes = []
    for op, met in calls:
        node = _node(names.fresh(op.name), op, met, makers, shapes)
        nodes.append(_of_part(node, op, 0))
        makers.update(dict.fromkeys(op.outputs[:1], node.name))
        for i, value in enumerate(op.outputs):
            if value in read and value not in makers:
                nodes.append(_of_part(node._replace(name=names.fresh(f"{op.name}:{i}")), op, i))
                makers[value] = nodes[-1].name
    outputs = tuple(makers.get(value, value) for value in unfolded.outputs if value not in fixed)
    constants = fixed - {node.name for node in nodes} - set(unfolded.inputs)
    kept = without_shape_arithmetic(nodes, unfolded.inputs, outputs, constants)
    integers = {makers[value] for value in whole if value in makers}
    return Graph(tuple(_without_rounding(node, integers) for node in kept), unfolded.inputs, outputs)


def _without_rounding(node: Node, integers: Set[str]) -> Node:
    """Return the node; one that computes with integers is not read: it rounds, or wraps around."""
    if node.kind not in _ARITHMETIC or integers.isdisjoint(node.inputs):
        return node
    return Node(
        node.name, "Unread", node.inputs, {"reason": "it computes with integers: it rounds, or wraps around"}, {}
    )


def _steered(op: Op, met: Met | None, steering: Mapping[Place, Numbers]) -> Met | None:
    """Return what an operator is to a network, integers that it reads and that shapes tell among its weights."""
    places = [(op.outputs[0], i) for i in range(1, len(op.inputs))] if op.outputs else []
    known = {i: steering[value, i] for value, i in places if (value, i) in steering}
    if met is None or not known:
        return met
    weights = {
        i: Weight(op.inputs[i], found.shape, "int64", partial(np.array, found), g.nothing(op.kind, "it steers"))
        for i, found in known.items()
    }
    return met._replace(weights={**met.weights, **weights})


def _of_part(node: Node, op: Op, index: int) -> Node:
    """Return the node of one of an operator's results.

    Each part of a Split is a value of its own. Of no other operator holds of further results what holds of the first:
    of the places of a maximum, say.
    """
    if op.kind == "Split":
        return node._replace(options={**node.options, "part": index, "parts": len(op.outputs)})
    return node if index == 0 else Node(node.name, f"result {index + 1} of {op.kind}", node.inputs, {}, {})


def _node(name: str, op: Op, met: Met, makers: Mapping[str, str], shapes: Mapping[str, Shape]) -> Node:
    inputs = [value for i, value in enumerate(op.inputs) if value and i not in met.weights]
    by_role = {role(op.kind, i): weight for i, weight in met.weights.items()}
    found = [shapes.get(value) for value in inputs]
    options = of_file(op.options)
    if inputs and None not in found:
        options["input_shapes"] = tuple(found)
    kind = f"{op.kind} of a constant" if met.hands_on else op.kind
    return Node(name, kind, tuple(makers.get(value, value) for value in inputs), options, by_role)
