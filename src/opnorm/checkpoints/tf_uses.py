"""What the operations of a graph do with its variables: convolutions with their strides, matrices, tables."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Geometry
from opnorm.checkpoints.tf_graph import Body, Operation

_SAME = {"Identity", "ReadVariableOp", "StopGradient", "Enter", "Snapshot", "EnsureShape"}  # hand a value on
_VARIABLES = {"VariableV2", "Variable", "VarHandleOp", "AutoReloadVariable"}
_CALLS = {"StatefulPartitionedCall", "PartitionedCall"}
_HARMLESS = re.compile(  # operations that leave what the network computes as it is
    r"Assign\w*|VarIsInitializedOp|IsVariableInitialized|Save(V2|Slices)?|Restore\w*|L2Loss|(Resource)?(Sparse)?Apply\w+|"
    r"Shape(N)?|VariableShape|\w*Summary(V2)?|NoOp|MergeV2Checkpoints|Size|Rank|DestroyResourceOp|IsFinite|ZerosLike"
)
_GRADIENTS = re.compile(r"(^|/)(gradients(_\d+)?|gradient_tape)/")  # where TensorFlow puts them
_STEPS = 20  # operations that hand a value on, one after another
_INPUTS = 2**20  # that are looked at, of all functions as often as they are called: some seconds

Use = Callable[[tuple[int, ...]], Geometry | None]  # of a kernel's shape


_Call = tuple[str, tuple[str, ...]]  # a function, and the variables that its last arguments are


class Reading(NamedTuple):
    """An operation that reads a variable, and as which of its inputs."""

    operation: Operation
    place: int

    @property
    def use(self) -> Use | None:
        """Return what the operation does with it, None where that is not known."""
        make = _KERNELS.get((self.operation.kind, self.place))
        return make(self.operation) if make else None


def uses(bodies: Mapping[str, Body], captured: Mapping[str, tuple[str, ...]]) -> dict[str, list[Use]]:
    """Return the uses of variables that are known in full; a variable that is read in another way has none.

    Args:
        bodies: The graph and its functions.
        captured: The variables that the last arguments of a function are, by its name.
    """
    found = {}
    for variable, several in readings_of(bodies, captured).items():
        known = [one.use for one in several]
        if known and None not in known:
            found[variable] = [one for one in known if one]
    return found


def readings_of(bodies: Mapping[str, Body], captured: Mapping[str, tuple[str, ...]]) -> dict[str, list[Reading]]:
    """Return which operations read each variable and each constant; none where there is too much to look at."""
    met: dict[str, list[Reading]] = {}
    for variable, one in _readers(bodies, captured) or ():
        met.setdefault(variable, []).append(one)
    return met


def _readers(bodies: Mapping[str, Body], captured: Mapping[str, tuple[str, ...]]) -> list[tuple[str, Reading]] | None:
    """Return each reading of a variable, wherever a function hands it on; None where there is too much to look at."""
    waiting: list[_Call] = [("", ())] if "" in bodies else []
    waiting += [(name, variables) for name, variables in captured.items() if name in bodies]
    seen, left, found = set[_Call](), _INPUTS, list[tuple[str, Reading]]()
    while waiting:
        name, variables = waiting.pop()
        if (name, variables) not in seen:
            seen.add((name, variables))
            body = bodies[name]
            left -= len(variables) + sum(1 + len(one.inputs) for one in body.operations.values())
            if left < 0:
                return None
            calls, read = _read(f"{name}/" if name else "", body, variables)
            waiting += [call for call in calls if call[0] in bodies]
            found += read
    return found


def _read(
    above: str, body: Body, variables: tuple[str, ...]
) -> tuple[list[tuple[str, tuple[str, ...]]], list[tuple[str, Reading]]]:
    """Return what a body calls, with the variables that it hands on, and which variables it reads itself.

    Args:
        above: What the names of constants in it begin with.
        body: The body.
        variables: Its last arguments.
    """
    count = min(len(variables), len(body.arguments))
    owners = dict(zip(body.arguments[len(body.arguments) - count :], variables[len(variables) - count :], strict=True))
    calls, found = [], []
    for key, operation in body.operations.items():
        read = tuple(_variable(one, above, body, owners) for one in operation.inputs)
        if operation.kind in _CALLS and any(read):
            calls.append((str(operation.settings.get("f")), read))
        elif not _GRADIENTS.search(key) and operation.kind not in _SAME and not _HARMLESS.fullmatch(operation.kind):
            found += [(one, Reading(operation, i)) for i, one in enumerate(read) if one]
    return calls, found


def _variable(name: str, above: str, body: Body, owners: Mapping[str, str]) -> str:
    """Return the variable that a value is, "" where it is none."""
    for _ in range(_STEPS):
        if name in owners:
            return owners[name]
        operation = body.operations.get(name)
        if operation is None:
            return ""
        if operation.kind in _VARIABLES:
            return str(operation.settings.get("shared_name") or name)
        if operation.kind == "Const":
            return above + name
        if operation.kind not in _SAME or not operation.inputs:
            return ""
        name = operation.inputs[0]
    return ""


def _sliding(operation: Operation) -> g.Sliding | None:
    """Return how a convolution slides; None for what pads by numbers of its own, or leaves out batches or channels."""
    settings = operation.settings
    layout, padding = str(settings.get("data_format") or "NHWC"), settings.get("padding")
    strides = settings.get("strides") or [1] * len(layout)
    dilations = settings.get("dilations") or [1] * len(layout)
    if padding not in ("SAME", "VALID") or len(strides) != len(layout) or len(dilations) != len(layout):
        return None
    spatial = [axis for axis, letter in enumerate(layout) if letter not in "NC"]
    if any(steps[layout.index(letter)] != 1 for steps in (strides, dilations) for letter in "NC" if letter in layout):
        return None
    along = (tuple(steps[axis] for axis in spatial) for steps in (strides, dilations))
    return g.Sliding(next(along), padding.lower(), next(along))


def _convolution(operation: Operation) -> Use | None:
    sliding = _sliding(operation)
    return (lambda shape: _grouped(shape, sliding)) if sliding else None


def _grouped(shape: tuple[int, ...], sliding: g.Sliding) -> Geometry:
    """Return a convolution: its operation counts the groups itself, up to one for each output."""
    groups = shape[-1]
    found = g.convolution("Conv", shape, sliding, assumed=True)
    other = g.convolution("Conv", shape, sliding._replace(groups=groups), assumed=True)
    return found._replace(readings=(other,) if groups > 1 else ())


def _transposed(operation: Operation) -> Use | None:
    sliding = _sliding(operation)
    return (lambda shape: g.transposed("ConvTranspose", shape, sliding)) if sliding else None


def _depthwise(operation: Operation) -> Use | None:
    sliding = _sliding(operation)
    return (lambda shape: g.depthwise("DepthwiseConv", shape, sliding)) if sliding else None


def _matrix(operation: Operation) -> Use | None:
    turned = bool(operation.settings.get("transpose_b") or operation.settings.get("adj_y"))
    return lambda shape: (g.rows if turned else g.columns)("MatMul") if len(shape) == 2 else None


def _table(_: Operation) -> Use | None:
    return lambda shape: g.columns("Embedding", "matrix (tokens, features)") if len(shape) == 2 else None


_KERNELS: dict[tuple[str, int], Callable[[Operation], Use | None]] = {
    ("Conv2D", 1): _convolution,
    ("Conv3D", 1): _convolution,
    ("Conv2DBackpropInput", 1): _transposed,
    ("Conv3DBackpropInputV2", 1): _transposed,
    ("DepthwiseConv2dNative", 1): _depthwise,
    ("MatMul", 1): _matrix,
    ("GatherV2", 0): _table,
    ("Gather", 0): _table,
    ("ResourceGather", 0): _table,
}
