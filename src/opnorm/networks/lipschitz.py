"""The Lipschitz constant of a network between two numbers: proved from above, differentiated from below."""

from functools import partial
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Checkpoint
from opnorm.checks import check_time_limit, require
from opnorm.networks.bound import NetworkBound, Step, network_bound
from opnorm.networks.linear_rules import bound_weight


def lipschitz_bound(model: Any, data: Any = None, *, time_limit: float | None = None) -> NetworkBound:
    """Return `NetworkBound(lower, upper, ...)` around the Lipschitz constant of a network at inference, in the 2-norm.

    `upper` is proved for all inputs, in float64 arithmetic, from the norms of the kernels and the network's graph. It
    is None where a node has no finite constant; `unknown` names these nodes. `lower` is the largest norm of the
    Jacobian found over `data`, true up to the rounding of the model's own arithmetic.

    Args:
        model: A built Keras model, a PyTorch module, or the path of a checkpoint that holds its network's graph
            (`.keras`, `.onnx`). A module is traced as its ONNX export, which needs the extra `audit`.
        data: Points to differentiate at, (points, ...), in floating point; only for a model with one input and one
            output. Without them `lower` is None. A PyTorch module needs at least one, to be traced with.
        time_limit: Seconds for each kernel, after which its bracket is what is known by then; and so many times the
            number of nodes for joining them. The bound is larger then, and as true.

    Raises:
        ValueError: When `data` is given for a file or is no batch of points, the model is not built, or `time_limit`
            is no number of seconds.
        opnorm.checkpoints.records.CheckpointError: A `ValueError`, when the file cannot be read.

    Example:
        >>> bound = opnorm.lipschitz_bound(model, x_test[:100])
        >>> print(bound.lower, bound.upper, bound.ratio)

    Reference:
        A. Virmaux and K. Scaman, "Lipschitz regularity of deep neural networks", NeurIPS 2018.
    """
    check_time_limit(time_limit)
    if hasattr(model, "named_modules") and not hasattr(model, "built"):
        return _of_torch(model, data, time_limit)
    is_path = isinstance(model, str | PathLike)
    if is_path and data is not None:
        raise ValueError("Argument `data` needs a live model: a file is never executed. Received: data and a path")
    require(is_path or hasattr(model, "built"), "model", "must be a Keras model, a PyTorch module or a path", model)
    checkpoint = open_checkpoint(fspath(model)) if is_path else _live(model)
    bound = _from_above(checkpoint, Path(model).name if is_path else str(model.name), time_limit)
    return bound if data is None else bound._replace(lower=_from_below(model, data))


def _of_torch(module: Any, data: Any, time_limit: float | None) -> NetworkBound:
    graphs = import_module("opnorm.torch.graphs")  # imports PyTorch
    points = graphs.points_of(module, data)
    with graphs.traced(module, points) as checkpoint:
        bound = _from_above(checkpoint, type(module).__name__, time_limit)
    return bound._replace(lower=graphs.largest_jacobian(module, points))


def _from_above(checkpoint: Checkpoint, name: str, time_limit: float | None) -> NetworkBound:
    if checkpoint.graph is None:
        reason = "how its layers are joined is not known: neither a Sequential nor a Functional model"
        return NetworkBound(None, None, "none", (Step(name, "model", None, reason),), checkpoint.notes)
    deadline = Deadline.after(None if time_limit is None else time_limit * max(1, len(checkpoint.graph.nodes)))
    try:
        bound = network_bound(checkpoint.graph, partial(bound_weight, time_limit=time_limit), deadline=deadline)
    except Exception as error:  # graphs come from files
        why = f"its settings or weights make no sense: {type(error).__name__}: {error}"
        return NetworkBound(None, None, "none", (Step("the whole", "graph", None, why),), checkpoint.notes)
    return bound._replace(notes=(*bound.notes, *checkpoint.notes))


def _live(model: Any) -> Checkpoint:
    reader = import_module("opnorm.keras.live")
    checkpoint: Checkpoint = reader.read_model(model)
    return checkpoint


def _from_below(model: Any, data: Any) -> float:
    jacobian = import_module("opnorm.keras.jacobian")  # imports Keras
    lower: float = jacobian.largest_jacobian(model, data)
    return lower
