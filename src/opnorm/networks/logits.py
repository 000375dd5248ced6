"""What is certified: a network's graph and examples for it, and its logits with what they may be off by."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Checkpoint, Graph, Node
from opnorm.checks import Array, is_torch_module, real_array, require
from opnorm.networks.activations import parse
from opnorm.networks.balls.points import fits_input, input_shape, shown
from opnorm.networks.balls.walk import Network
from opnorm.networks.effects import Unbounded
from opnorm.networks.forward import NotEvaluatedError, Value, evaluate

_BATCH = 256  # examples at a time
_SECONDS = 60.0  # for a live model's examples one by one, which it computes faster itself
_SOFTMAX = ("softmax", "log_softmax", "logsoftmax")
_TOKENS = ("Embedding", "ReversibleEmbedding")
Computed = Callable[[bool], tuple[Array, float]]


class Subject(NamedTuple):
    """A network and the examples at which its predictions are certified."""

    graph: Graph  # with one input and one output
    points: Array  # (examples, ...)
    is_keras: bool  # a graph of Keras's layers
    computed: Computed | None  # of a live Keras model: the logits by itself, softmax taken off or not, and its roundoff


@contextmanager
def subject_of(model: Any, x: Any) -> Iterator[Subject]:
    """Give the network that `certify` was called with, while what it is read from is there.

    Raises:
        ValueError: When there is no graph of it, it has several inputs or outputs, or x does not fit.
    """
    if is_torch_module(model):
        graphs = import_module("opnorm.torch.graphs")  # imports PyTorch
        with graphs.traced(model, graphs.points_of(model, x, "x"), "x", fixed=True) as checkpoint:
            graph = _required(checkpoint, model)
            yield Subject(graph, _fitting(graph, graphs.in_double(x)), False, None)
    elif isinstance(model, str | PathLike):
        graph = _required(open_checkpoint(fspath(model)), model)
        yield Subject(graph, _fitting(graph, real_array(x, "x")), False, None)
    else:
        must = "must be a built Keras model, a PyTorch module, or the path of a file that holds its network's graph"
        require(hasattr(model, "built") and hasattr(model, "layers"), "model", must, model)
        graph = _required(import_module("opnorm.keras.live").read_model(model), model)
        own = import_module("opnorm.keras.logits")
        points = own.checked(model, real_array(x, "x"))
        yield Subject(graph, points, True, lambda is_shortened: own.logits(model, points, is_shortened))


def _required(checkpoint: Checkpoint, model: Any) -> Graph:
    graph = checkpoint.graph
    if graph is None:
        why = "be Sequential or Functional, or a file with a graph: how the layers of others are joined is not known"
        raise ValueError(f"Argument `model` must {why}. Received: {model!r}")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        counts = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise ValueError(f"Argument `model` must have one input and one output. Received: {counts}")
    tokens = [node.name for node in graph.nodes if node.kind in _TOKENS]
    if tokens:
        raise ValueError(f"Argument `model` must take numbers, not tokens, which have no radius. Received: {tokens[0]}")
    return graph


def _fitting(graph: Graph, points: Array) -> Array:
    shape = input_shape(graph, graph.inputs[0])
    if points.ndim < 2 or (shape is not None and not fits_input((1, *points.shape[1:]), shape)):
        told = "" if shape is None else f" of shape {shown(shape[1:])}"
        if shape is not None and isinstance(shape[0], int) and shape[0] != 1:
            told = f" of a network that takes one at a time or any number, where this one takes {shape[0]} at once"
        raise ValueError(f"Argument `x` must hold examples, batch first{told}. Received: shape={points.shape}")
    return points


def without_softmax(graph: Graph) -> Graph:
    """Return the network without a softmax at its end, itself where there is none."""
    last = next((node for node in graph.nodes if node.name == graph.outputs[0]), None)
    if last is None or not _is_softmax(last) or any(last.name in node.inputs for node in graph.nodes):
        return graph
    return Graph(tuple(node for node in graph.nodes if node is not last), graph.inputs, last.inputs)


def _is_softmax(node: Node) -> bool:
    name = parse(node.options.get("activation"))[0] if node.kind == "Activation" else node.kind.lower()
    return name in _SOFTMAX and node.options.get("axis", -1) in (-1, 1) and not node.options.get("arguments")


def logits_of(subject: Subject, graph: Graph, network: Network, is_shortened: bool) -> tuple[Value, tuple[str, ...]]:
    """Return the logits and what they may be off by, and the assumptions that this takes.

    Args:
        subject: The network and its examples.
        graph: The network, split, a softmax taken off.
        network: The same, made ready for balls.
        is_shortened: Whether a softmax was taken off.

    Raises:
        ValueError: When a network that is no live model cannot be evaluated.
    """
    try:
        if subject.is_keras:
            starts = range(0, len(subject.points), _BATCH)
            return _together([evaluate(graph, subject.points[start : start + _BATCH]) for start in starts]), ()
        missing = ""
    except NotEvaluatedError as node:
        missing = str(node)
    try:
        deadline = Deadline.after(None if subject.computed is None else _SECONDS)
        return _one_by_one(network.without_tangents(), subject.points, deadline), ()
    except Unbounded as reason:
        if subject.computed is None:
            must = "must be a network that opnorm evaluates"
            raise ValueError(f"Argument `model` {must}. Received: {reason}") from None
        values, unit = subject.computed(is_shortened)
        missing = f"{missing} has no error analysis" if deadline.left > 0 else str(reason)
    largest = np.max(np.abs(values.reshape(len(values), -1)), axis=1)
    errors = np.broadcast_to(np.sqrt(unit) * largest.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    note = f"the rounding errors of the logits are assumed to be below {np.sqrt(unit):.1e} of them: {missing}"
    return Value(values, errors), (note,)


def _one_by_one(network: Network, points: Array, deadline: Deadline) -> Value:
    """Return the logits as balls of radius 0 have them.

    Raises:
        Unbounded: When a node is not followed there, or the deadline has passed.
    """
    found = []
    for point in points:
        if deadline.passed:
            raise Unbounded("its examples take too long one by one")
        met = network.meet([point[None]], 0.0)
        (name,) = network.graph.outputs
        if name not in met.values:
            raise Unbounded(network.ended(met) or "its output is not reached")
        found.append(Value(met.values[name].centre, met.values[name].error))
    return _together(found)


def _together(parts: list[Value]) -> Value:
    return Value(*map(np.concatenate, zip(*parts, strict=True)))
