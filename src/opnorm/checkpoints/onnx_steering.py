"""ONNX's shape arithmetic: what is computed from shapes alone is the same for all inputs of one shape."""

from collections.abc import Mapping, Sequence, Set

from opnorm.checkpoints.records import Node

STEADY = "of shapes alone"  # the kind of a node that does not change with the values of its input
_SOURCES = {"Shape", "Size"}
_COMPUTED = {  # deterministic, and without graphs inside
    "Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "CumSum", "Div",
    "Equal", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pow",
    "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements",
    "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Trilu", "Unsqueeze",
    "Where", "Xor",
}  # fmt: skip
_CONSTANT = ("constant", b"constant")  # the mode of Pad that repeats nothing
_STEERED = {
    "Reshape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Pad",
}  # whatever their other inputs are, entries move or vanish


def without_shape_arithmetic(
    nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str], fixed: Set[str] = frozenset()
) -> list[Node]:
    """Return the nodes with those that only compute shapes taken out, or marked where something else reads them.

    Two inputs that are compared have one shape, so these nodes give both the same. What they were stands by name
    under `steady` in the options of nodes that read one; `target` names those that were inputs of a Reshape or Slice;
    `steered` are others that had such inputs.

    Args:
        nodes: Of an ONNX graph, each after its inputs.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
        fixed: Names of constants, none of them that of a node or an input.
    """
    steady: dict[str, Node] = {}
    found = []
    for node in nodes:
        if _is_steady(node, steady.keys() | fixed):
            steady[node.name] = node
            node = Node(node.name, STEADY, tuple(inputs[:1]), {"steady": steady}, {})
        found.append(_unsteered(node, steady, fixed))
    read = {name for node in found for name in node.inputs} | set(outputs)
    return [node for node in found if node.kind != STEADY or node.name in read]


def _is_steady(node: Node, steady: Set[str]) -> bool:
    kind = node.kind.removesuffix(" of a constant")
    reads = bool(node.inputs) or kind != node.kind
    return kind in _SOURCES or (kind in _COMPUTED and reads and set(node.inputs) <= steady)


def _unsteered(node: Node, steady: Mapping[str, Node], fixed: Set[str]) -> Node:
    """Return the node without the inputs that only say where its entries go."""
    if node.kind not in _STEERED or "0" in node.weights or node.options.get("mode", "constant") not in _CONSTANT:
        return node
    kept = [i for i, name in enumerate(node.inputs) if i == 0 or not (name in steady or name in fixed)]
    shapes = node.options.get("input_shapes")
    options = node.options if shapes is None else {**node.options, "input_shapes": tuple(shapes[i] for i in kept)}
    if len(kept) < len(node.inputs):
        known = node.kind in ("Reshape", "Slice")
        options = {**options, **({"steady": steady, "target": tuple(node.inputs[1:])} if known else {"steered": True})}
    return node._replace(inputs=tuple(node.inputs[i] for i in kept), options=options)
