"""The Lipschitz constant of a network between two numbers: proved from above, differentiated from below."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from opnorm.bounds.deadlines import Deadline
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Checkpoint, Node
from opnorm.checks import check_time_limit, is_torch_module, require, to_not_negative
from opnorm.networks.balls.bound import ball_bound
from opnorm.networks.balls.points import points_of
from opnorm.networks.bound import TIGHTENING, Apply, NetworkBound, Step, network_bound
from opnorm.networks.effects import Effect, Unbounded
from opnorm.networks.linear_rules import bound_weight
from opnorm.networks.pairs import Progress, remembered


def lipschitz_bound(
    model: Any,
    data: Any = None,
    *,
    around: Any = None,
    radius: float | None = None,
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> NetworkBound:
    """Return `NetworkBound(lower, upper, ...)` around the Lipschitz constant of a network at inference, in the 2-norm.

    `upper` is proved for all inputs, in float64 arithmetic, from the norms of the kernels and the network's graph. It
    is None where a node has no finite constant; `unknown` names these nodes. `lower` is the largest norm of the
    Jacobian found over `data`, true up to the rounding of the model's own arithmetic.

    With `around` and `radius` both ends are of one ball: `||f(y) - f(z)|| <= upper ||y - z||` for all y and z no
    further from `around` than `radius`. Layers without a constant for all inputs have one there: layer normalization,
    attention, products. `lower` is then proved: the Jacobian's norm at `around`; None where there is none.

    Args:
        model: A built Keras model, a PyTorch module, or the path of a checkpoint that holds its network's graph
            (`.keras`, `.onnx`). A module is traced as its ONNX export, which needs the extra `audit`.
        data: Points to differentiate at, (points, ...), in floating point; only for a model with one input and one
            output. Without them `lower` is None. A PyTorch module needs at least one, to be traced with.
        around: The centre of a ball: one example, with or without its batch axis of one; for a network with several
            inputs a list of them, or a table by the inputs' names. An example for a module whose own first axis has one
            entry is given with its batch axis. Together with `radius`, without `data`.
        radius: Of the ball, in the 2-norm of all inputs together; 0 is the point alone.
        time_limit: Seconds for each kernel, after which its bracket is what is known by then; ten times as many for
            each part that is bounded as a whole, and twenty times for all of them. The bound is larger then, and as
            true. None: no limit for kernels, 10 seconds for each part and 20 for all.
        progress: Called with the number of nodes done and of all, after each: what is joined to one kernel is one.
            Parts are bounded as a whole after the last one.

    Raises:
        ValueError: When `data` is given for a file or is no batch of points, the model is not built, `time_limit`
            is no number of seconds, only one of `around` and `radius` is given, or they are no point and no radius.
        opnorm.checkpoints.records.CheckpointError: A `ValueError`, when the file cannot be read.

    Example:
        >>> bound = opnorm.lipschitz_bound(model, x_test[:100])
        >>> print(bound.lower, bound.upper, bound.ratio)

    Reference:
        A. Virmaux and K. Scaman, "Lipschitz regularity of deep neural networks", NeurIPS 2018.
    """
    check_time_limit(time_limit)
    if around is not None or radius is not None:
        return _on_ball(model, data, around, radius, time_limit, _telling(progress))
    if is_torch_module(model):
        return _of_torch(model, data, time_limit, _telling(progress))
    is_path = isinstance(model, str | PathLike)
    if is_path and data is not None:
        raise ValueError("Argument `data` needs a live model: a file is never executed. Received: data and a path")
    checkpoint = _opened(model)
    bound = _from_above(checkpoint, Path(model).name if is_path else str(model.name), time_limit, _telling(progress))
    return bound if data is None else bound._replace(lower=_from_below(model, data))


def _telling(progress: Progress | None) -> Apply:
    """Return what bounds the nodes one after another, and tells how many are done."""

    def apply(bound: Callable[[Node], Effect | Unbounded], nodes: Sequence[Node]) -> Iterator[Effect | Unbounded]:
        for done, node in enumerate(nodes, 1):
            yield bound(node)
            if progress is not None:
                progress(done, len(nodes))

    return apply


def _tightening(time_limit: float | None) -> float:
    """Return the seconds for each part that is bounded as a whole."""
    return TIGHTENING if time_limit is None else TIGHTENING * time_limit


def _opened(model: Any) -> Checkpoint:
    is_path = isinstance(model, str | PathLike)
    require(is_path or hasattr(model, "built"), "model", "must be a Keras model, a PyTorch module or a path", model)
    return open_checkpoint(fspath(model)) if is_path else _live(model)


def _on_ball(
    model: Any, data: Any, centre: Any, radius: float | None, time_limit: float | None, apply: Apply
) -> NetworkBound:
    both = centre is not None and radius is not None
    if not both:
        given = f"around={centre!r:.60}, radius={radius!r}"
        raise ValueError(f"Arguments `around` and `radius` must be given together. Received: {given}")
    require(data is None, "data", "must not be given with `around`: the lower end is that of the ball's centre", data)
    size = to_not_negative("radius", radius)
    if is_torch_module(model):
        graphs = import_module("opnorm.torch.graphs")  # imports PyTorch
        with graphs.traced(model, graphs.point_of(model, centre), "around", fixed=True) as checkpoint:
            return _ball(checkpoint, centre, size, time_limit, apply)
    return _ball(_opened(model), centre, size, time_limit, apply)


def _ball(checkpoint: Checkpoint, centre: Any, radius: float, time_limit: float | None, apply: Apply) -> NetworkBound:
    graph = checkpoint.graph
    if graph is None:
        return _from_above(checkpoint, checkpoint.format, time_limit, apply)
    points = points_of(graph, centre)
    deadline = Deadline.after(None if time_limit is None else time_limit * max(1, len(graph.nodes)))
    bounds = remembered(partial(bound_weight, time_limit=time_limit))
    bound = ball_bound(graph, points, radius, bounds, deadline, _tightening(time_limit), apply)
    return bound._replace(notes=(*bound.notes, *checkpoint.notes))


def _of_torch(module: Any, data: Any, time_limit: float | None, apply: Apply) -> NetworkBound:
    graphs = import_module("opnorm.torch.graphs")  # imports PyTorch
    points = graphs.points_of(module, data)
    with graphs.traced(module, points) as checkpoint:
        bound = _from_above(checkpoint, type(module).__name__, time_limit, apply)
    try:
        return bound._replace(lower=graphs.largest_jacobian(module, points))
    except RuntimeError as error:  # of a module that changes its buffers, say, or leaves PyTorch on its way
        said = str(error).strip().partition("\n")[0]
        return bound._replace(notes=(*bound.notes, f"no lower end: PyTorch does not differentiate the module: {said}"))


def _from_above(checkpoint: Checkpoint, name: str, time_limit: float | None, apply: Apply) -> NetworkBound:
    if checkpoint.graph is None:
        reason = "how its layers are joined is not known: neither a Sequential nor a Functional model"
        return NetworkBound(None, None, "none", (Step(name, "model", None, reason),), checkpoint.notes)
    deadline = Deadline.after(None if time_limit is None else time_limit * max(1, len(checkpoint.graph.nodes)))
    try:
        bounds = remembered(partial(bound_weight, time_limit=time_limit))
        bound = network_bound(checkpoint.graph, bounds, apply, deadline, _tightening(time_limit))
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
