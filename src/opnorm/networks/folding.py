"""Networks rewritten, before any norm is taken, so that neighbouring linear nodes become one: the same function.

||B A|| <= ||B|| ||A||, often by far: BatchNormalization joins the kernel beside it, two dense layers their product, a
depthwise convolution the pointwise one after it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from math import prod
from typing import Any

import numpy as np

from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.keras_integers import is_integer_type
from opnorm.checkpoints.keras_layers import class_of
from opnorm.checkpoints.records import Graph, Node, of_file
from opnorm.networks.activations import is_activation, parse
from opnorm.networks.effects import constants, is_for_each, is_training
from opnorm.networks.gates import gate_node
from opnorm.networks.kernel_products import form_of, product, scaled
from opnorm.networks.linear_rules import CONVOLUTIONS, DEPTHWISE, KERNELS, MATRICES, TRANSPOSED
from opnorm.networks.repeats import centred, repeated

_NAME = 10_000  # characters of the name of nodes that were joined, which holds all of theirs
_SCALES = ("BatchNormalization", "Rescaling", "Normalization")
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_WRAPPERS = ("TimeDistributed", "SpectralNormalization")  # Keras's own: at inference it is the layer inside
_OPERATIONS = {  # Keras's functions, by the kind whose rule holds for them; activations keep their names
    **{name: name for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Concatenate")},
    **{name: name for name in ("Reshape", "Transpose", "Squeeze", "ExpandDims", "LogSoftmax")},
    "Quotient": "Div", "Mean": "ReduceMean", "Sum": "ReduceSum", "Max": "ReduceMax", "Min": "ReduceMin",
}  # fmt: skip


def split(graph: Graph, *, gates: bool = True) -> Graph:
    """Return the same network with wrappers taken off and each node doing one thing: a kernel or an activation.

    Args:
        graph: The network.
        gates: Whether gated activations, and values less their mean, that it writes out become one node each.
    """
    renamed: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    replaced: set[str] = set()  # by a gate that was written out
    taken = names(graph)
    for node in graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        parts, within = _apart(node._replace(inputs=inputs), nodes if gates else {}, taken)
        replaced.update(within)
        nodes |= {part.name: part for part in parts}
        renamed[node.name] = parts[-1].name
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    return Graph(tuple(_without_unread(nodes, replaced, outputs)), graph.inputs, outputs)


def names(graph: Graph) -> set[str]:
    """Return the names of a network's values: what is made of its nodes must have others."""
    return {*graph.inputs, *(node.name for node in graph.nodes)}


def _apart(node: Node, nodes: Mapping[str, Node], taken: set[str]) -> tuple[list[Node], tuple[str, ...]]:
    """Return what `_read` does, no new node of which has a name that is taken; their names are added to these.

    The new ones are named after the node: where a name is taken, the node has another one for as long as it is read.
    """
    own, tried = node.name, set[str]()
    while True:
        parts, within = _read(node, nodes)
        made = {part.name for part in parts} - {node.name}
        if not made & taken:
            taken |= made
            back = {node.name: own}
            return [_renamed(part, back) for part in parts], within
        tried = tried or set(taken)
        node = node._replace(name=unique(own, tried))


def _renamed(node: Node, new: Mapping[str, str]) -> Node:
    inputs = tuple(new.get(name, name) for name in node.inputs)
    return node._replace(name=new.get(node.name, node.name), inputs=inputs)


def _read(node: Node, nodes: Mapping[str, Node]) -> tuple[list[Node], tuple[str, ...]]:
    """Return the nodes that do what `node` does, and those before it that they replace."""
    try:
        plain = _unwrap(node._replace(kind=_kind(node.kind)))
        if not (_is_whole(node) or _is_whole(plain)):
            found, within = gate_node(plain, nodes) or centred(plain, nodes) or (plain, ())
            return _parts(found), within
        reason = "it rounds its input to integers, as its dtype says"
    except KeyError as missing:  # not the node as it is: its activation, say, would be lost
        reason = f"its file does not say its {missing.args[0]}"
    except Exception as error:
        reason = f"its settings make no sense: {error}"
    return [Node(node.name, "Unread", node.inputs, {"reason": reason}, {})], ()


def _is_whole(node: Node) -> bool:
    """Return whether a Keras layer computes with integers, to which it rounds what it is given; tables take them."""
    if node.kind == "Embedding":
        return False
    policy = node.options.get("dtype")
    name = (policy.get("config") or {}).get("name") if isinstance(policy, Mapping) else policy
    return is_integer_type(name)


def _without_unread(nodes: Mapping[str, Node], replaced: Set[str], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes but for the `replaced` ones that nothing reads any more."""
    kept: list[Node] = []
    read = set(outputs)
    for node in reversed(list(nodes.values())):
        if node.name not in replaced or node.name in read:
            kept.append(node)
            read.update(node.inputs)
    return kept[::-1]


def _kind(kind: str) -> str:
    function = kind.removeprefix("keras.ops.")
    known = _OPERATIONS.get(function, function if is_activation(function) else kind)
    return kind if function == kind else known


def _unwrap(node: Node) -> Node:
    """Return the layer inside a wrapper: of one that is applied to every position, the norm is that of one."""
    if node.kind not in _WRAPPERS or not isinstance(node.options.get("layer"), Mapping):
        return node
    inner: Any = node.options["layer"]
    weights = {role.split("/", 1)[1]: weight for role, weight in node.weights.items() if "/" in role}
    called: dict[str, Any] = {"arguments": {"training": True}} if is_training(node) else {}
    if node.kind == "TimeDistributed" or is_for_each(node):
        called["for_each"] = True
    return _unwrap(Node(node.name, class_of(inner), node.inputs, {**of_file(inner["config"]), **called}, weights))


def _parts(node: Node) -> list[Node]:
    parts = repeated(node)
    if node.kind == "keras.applications.CustomScaleLayer":
        return _scaled_sum(node)
    if node.kind in _SEPARABLE:
        parts = _separated(node)
    specification = node.options.get("activation")
    name, _ = parse(specification)
    if node.kind in (*KERNELS, *_SEPARABLE) and name != "linear":
        inputs, told = (parts[-1].name,), {"activation": specification, "for_each": is_for_each(node)}
        parts.append(Node(f"{node.name}/{name}", "Activation", inputs, told, {}))
    return parts


def _scaled_sum(node: Node) -> list[Node]:
    """Return the two halves of InceptionResNetV2's sum: the second input is multiplied, then added to the first."""
    first, second = node.inputs
    factor = Node(f"{node.name}/scale", "Rescaling", (second,), {"scale": float(node.options["scale"])}, {})
    return [factor, Node(node.name, "Add", (first, factor.name), {"input_shapes": node.options["input_shapes"]}, {})]


def _separated(node: Node) -> list[Node]:
    """Return the depthwise and the pointwise half of a separable convolution, under one name once they are joined."""
    rank = node.kind[-2:]
    first = {"depthwise_kernel": node.weights["depthwise_kernel"]}
    second = {"pointwise_kernel": node.weights["pointwise_kernel"]}
    ones = {**node.options, "strides": 1, "dilation_rate": 1, "groups": 1}
    depthwise = Node(f"{node.name}/depthwise", f"DepthwiseConv{rank}", node.inputs, node.options, first)
    return [depthwise, Node(f"{node.name}/pointwise", f"Conv{rank}", (depthwise.name,), ones, second)]


def fold(graph: Graph, deadline: Deadline = NEVER) -> Graph:
    """Return the same network with linear neighbours joined, where nothing else reads what stands between them.

    After the deadline none are joined.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs) + Counter(graph.outputs)
    folded: dict[str, Node] = {}
    current: dict[str, str] = {}  # of a node that was joined, the name of what now computes it
    taken = names(graph)
    for node in graph.nodes:
        only = node.inputs[0] if len(node.inputs) == 1 else ""
        node = node._replace(inputs=tuple(current.get(name, name) for name in node.inputs))
        before = folded.get(current.get(only, only))
        alone = readers[only] == 1 and not deadline.passed
        joined = join(before, node, deadline) if before is not None and alone else None
        if joined is not None and before is not None:
            del folded[before.name]
            joined = joined._replace(name=unique(joined.name, taken))
        after = joined or node
        folded[after.name] = after
        current[node.name] = after.name
    return Graph(tuple(folded.values()), graph.inputs, tuple(current.get(name, name) for name in graph.outputs))


def join(a: Node, b: Node, deadline: Deadline = NEVER) -> Node | None:
    """Return one node that does `a`, then `b`; None when they are not joined."""
    name = f"{a.name} + {b.name}"
    if len(name) > _NAME or is_training(a) or is_training(b):
        return None
    try:
        if a.kind in KERNELS and b.kind in ("Add", "Sub") and is_bias(a, b):
            return a._replace(name=name)
        if not places(a) & places(b):
            return None
        if a.kind in KERNELS and b.kind in _SCALES:
            return scaled(a, b, outputs=True)._replace(name=name)
        if a.kind in _SCALES and b.kind in KERNELS:
            return scaled(b, a, outputs=False)._replace(name=name, inputs=a.inputs)
        return product(a, b, name, deadline) if a.kind in KERNELS and b.kind in KERNELS else None
    except Exception:  # not understood, or not read, and so not joined: the node's own rule says why
        return None


def is_bias(a: Node, b: Node) -> bool:
    """Return whether `b` adds one stored number to each channel of the matrix `a`: no entry is repeated to fit."""
    if a.kind not in MATRICES or "last" not in places(a):
        return False
    outputs = form_of(a).channels[1]
    return all(prod(values.shape) in (1, values.shape[-1]) and values.size in (1, outputs) for values in constants(b))


def places(node: Node) -> set[str]:
    """Return where the channels of a node stand, by every way to say it: "last", "first" (after the batch), or axes.

    A layer that is applied to every position counts its axes without those of the positions.
    """
    found = _places(node)
    return found & {"last"} if is_for_each(node) else found


def _places(node: Node) -> set[str]:
    if node.kind in _SCALES:
        return _scale_places(node)
    if node.kind in KERNELS and not any(role.endswith("kernel") for role in node.weights):
        return set()  # ONNX's MatMul with its matrix on the left
    if node.kind == "MatMul" and any(len(weight.shape) != 2 for weight in node.weights.values()):
        return set()  # an axis less behind it, or more
    if node.kind in ("Conv", "ConvTranspose"):
        return {"first"}
    if node.kind == "Gemm":  # always two axes; transposed, its rows are multiplied
        return set() if node.options.get("transA") else {"first", "last"}
    if node.kind in (*CONVOLUTIONS, *DEPTHWISE, *TRANSPOSED):
        rank = int(node.kind.removesuffix("Transpose")[-2])
        return {"first"} if node.options.get("data_format") == "channels_first" else {"last", f"axis {rank + 1}"}
    return {"last"} if node.kind in KERNELS else set()


def _scale_places(node: Node) -> set[str]:
    if node.kind == "Rescaling":
        return {0: {"first", "last"}, 1: {"last"}}.get(np.ndim(node.options["scale"]), set())
    axis = node.options.get("axis", 1)  # ONNX has no such attribute: its channels stand first
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    return {"last"} if axis == -1 else {"first"} if axis == 1 else {f"axis {axis}"}
