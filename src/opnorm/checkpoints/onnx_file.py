"""`.onnx` files: every tensor with what the operators do with it, and the outermost graph with its functions."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import extra, require
from opnorm.checkpoints.onnx_bodies import Definitions, Names, function_key
from opnorm.checkpoints.onnx_geometry import role
from opnorm.checkpoints.onnx_integers import with_scales
from opnorm.checkpoints.onnx_runtime import Runtime
from opnorm.checkpoints.onnx_shapes import Shape, value_shapes
from opnorm.checkpoints.onnx_sizes import with_open_sizes
from opnorm.checkpoints.onnx_steering import without_shape_arithmetic
from opnorm.checkpoints.onnx_unfold import Op, Unfolded
from opnorm.checkpoints.onnx_uses import Met, Uses
from opnorm.checkpoints.onnx_wire import skeleton
from opnorm.checkpoints.records import Checkpoint, CheckpointError, Graph, Node, Weight, of_file


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
    shapes = {name: shape for name, shape in value_shapes(model).items() if name in unfolded.own}
    shapes = with_open_sizes(unfolded.ops, shapes, definitions.tensors)
    uses = Uses(path, definitions.tensors, shapes)
    met = [(op, uses.meet(op)) for op in unfolded.ops]
    calls = [(op, found) for op, found in met if found is not None and op.outermost]
    constants = {name: value.shape for name, value in uses.values.items()}
    for part in Runtime(unfolded.ops, unfolded.links, constants, shapes).parts():
        uses.compute(part)
    weights = tuple(_trained(weight, definitions) for weight in uses.rows())
    fixed = {name for name, value in uses.values.items() if not value.moving}
    return Checkpoint("onnx", weights, _graph(unfolded, calls, shapes, fixed))


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


def _graph(unfolded: Unfolded, calls: list[tuple[Op, Met]], shapes: Mapping[str, Shape], fixed: Set[str]) -> Graph:
    """Return the outermost graph; operators on constants alone are no nodes, their results are weights."""
    makers = {value: value for value in unfolded.inputs}
    names = Names()
    for value in (*unfolded.inputs, *fixed):  # no node is called as one of these
        names.fresh(value)
    read = {value for op, _ in calls for value in op.inputs} | set(unfolded.outputs)
    nodes = []
    places = {value: i for op, _ in calls if op.kind == "Split" for i, value in enumerate(op.outputs)}
    for op, met in calls:
        node = _node(names.fresh(op.name), op, met, makers, shapes)
        nodes.append(_with_parts(node, op, met, places))
        parts = op.outputs if op.kind == "Split" else op.outputs[:1]
        makers.update(dict.fromkeys(parts, node.name))
        for i, value in enumerate(op.outputs):
            if value in read and value not in makers:  # the places of a maximum, say: what holds of the first does not
                further = Node(names.fresh(f"{op.name}:{i}"), f"result {i + 1} of {op.kind}", node.inputs, {}, {})
                nodes.append(further)
                makers[value] = further.name
    outputs = tuple(makers.get(value, value) for value in unfolded.outputs if value not in fixed)
    constants = fixed - {node.name for node in nodes} - set(unfolded.inputs)
    return Graph(tuple(without_shape_arithmetic(nodes, unfolded.inputs, outputs, constants)), unfolded.inputs, outputs)


def _with_parts(node: Node, op: Op, met: Met, places: Mapping[str, int]) -> Node:
    """Return the node, with which part it reads of each of its inputs, where one is a Split."""
    read = [value for i, value in enumerate(op.inputs) if value and i not in met.weights]
    if not any(value in places for value in read):
        return node
    return node._replace(options={**node.options, "parts": tuple(places.get(value, 0) for value in read)})


def _node(name: str, op: Op, met: Met, makers: Mapping[str, str], shapes: Mapping[str, Shape]) -> Node:
    inputs = [value for i, value in enumerate(op.inputs) if value and i not in met.weights]
    by_role = {role(op.kind, i): weight for i, weight in met.weights.items()}
    found = [shapes.get(value) for value in inputs]
    options = of_file(op.options)
    if inputs and None not in found:
        options["input_shapes"] = tuple(found)
    kind = f"{op.kind} of a constant" if met.hands_on else op.kind
    return Node(name, kind, tuple(makers.get(value, value) for value in inputs), options, by_role)
