"""The Lipschitz constant of a network between two numbers: proved from above, differentiated from below."""

from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Checkpoint
from opnorm.checks import require
from opnorm.networks.bound import NetworkBound, Step, network_bound


def lipschitz_bound(model: Any, data: Any = None) -> NetworkBound:
    """Return `NetworkBound(lower, upper, ...)` around the Lipschitz constant of a network at inference, in the 2-norm.

    `upper` is proved for all inputs, in float64 arithmetic, from the norms of the kernels and the network's graph. It
    is None where a node has no finite constant; `unknown` names these nodes. `lower` is the largest norm of the
    Jacobian found over `data`, true up to the rounding of the model's own arithmetic.

    Args:
        model: A built Keras model, or the path of a checkpoint that holds its network's graph (`.keras`, `.onnx`).
        data: Points to differentiate at, (points, ...), in floating point; only for a model with one input and one
            output. Without them `lower` is None.

    Raises:
        ValueError: When `data` is given for a file or is no batch of points, or the model is not built.
        opnorm.checkpoints.records.CheckpointError: A `ValueError`, when the file cannot be read.

    Example:
        >>> bound = opnorm.lipschitz_bound(model, x_test[:100])
        >>> print(bound.lower, bound.upper, bound.ratio)

    Reference:
        A. Virmaux and K. Scaman, "Lipschitz regularity of deep neural networks", NeurIPS 2018.
    """
    is_path = isinstance(model, str | PathLike)
    if is_path and data is not None:
        raise ValueError("Argument `data` needs a live model: a file is never executed. Received: data and a path")
    require(is_path or hasattr(model, "built"), "model", "must be a Keras model or a path", model)
    checkpoint = open_checkpoint(fspath(model)) if is_path else _live(model)
    bound = _from_above(checkpoint, Path(model).name if is_path else str(model.name))
    return bound if data is None else bound._replace(lower=_from_below(model, data))


def _from_above(checkpoint: Checkpoint, name: str) -> NetworkBound:
    if checkpoint.graph is None:
        reason = "how its layers are joined is not known: neither a Sequential nor a Functional model"
        return NetworkBound(None, None, "none", (Step(name, "model", None, reason),), checkpoint.notes)
    bound = network_bound(checkpoint.graph)
    return bound._replace(notes=(*bound.notes, *checkpoint.notes))


def _live(model: Any) -> Checkpoint:
    reader = import_module("opnorm.keras.live")
    checkpoint: Checkpoint = reader.read_model(model)
    return checkpoint


def _from_below(model: Any, data: Any) -> float:
    jacobian = import_module("opnorm.keras.jacobian")  # imports Keras
    lower: float = jacobian.largest_jacobian(model, data)
    return lower
