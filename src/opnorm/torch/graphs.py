"""A module's Lipschitz constant: from above by the graph that PyTorch traces of it, from below by its Jacobian."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opnorm.checkpoints.files import extra
from opnorm.checkpoints.onnx_file import read_onnx
from opnorm.checkpoints.records import Checkpoint
from opnorm.checks import Array
from opnorm.torch.exports import exported

_STEPS = 12  # power iterations at each point, as of a Keras model


@contextmanager
def traced(module: nn.Module, data: Tensor, name: str = "data", *, fixed: bool = False) -> Iterator[Checkpoint]:
    """Give the graph that a module makes of one example, at inference, as its ONNX export has it.

    Args:
        module: The module.
        data: Points, of which the first is the example.
        name: Of the argument they came as.
        fixed: Whether the graph is for a batch of one alone: no shape is computed then.

    Raises:
        ValueError: When PyTorch cannot export the module, or numbers decide which way its code goes.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        extra("onnx")  # or its lack would be told as the exporter's
        whole = plain(module)
        _require_taken(whole, data[:1], name)
        try:
            exported(whole, data[:1], path, fixed)
        except Exception as error:  # whatever the exporter meets
            raise ValueError(
                "Argument `model` must be a module that `torch.onnx.export(..., dynamo=False)` exports; it says: "
                f"{str(_cause(error)).strip().partition(chr(10))[0]}. Received: {type(module).__name__}"
            ) from error
        yield read_onnx(path)


def _require_taken(module: nn.Module, example: Tensor, name: str) -> None:
    """Raise where the module itself does not take the example."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(example)
    except Exception as error:
        raise ValueError(
            f"Argument `{name}` must be what the module takes, which has one input; it says: "
            f"{str(error).strip().partition(chr(10))[0]}. Received: {name} of shape {tuple(example.shape[1:])} each"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """Return what was wrong: of a warning that is raised inside of a method of C's, Python only says which method."""
    return error.__cause__ if isinstance(error, SystemError) and error.__cause__ is not None else error


def points_of(module: nn.Module, data: Any, name: str = "data") -> Tensor:
    """Return the points to differentiate at, where the module is and in its dtype.

    Args:
        module: The module.
        data: The points, batch first.
        name: Of the argument they came as.

    Raises:
        ValueError: When they are no batch of floating-point numbers.
    """
    given = _floats(data)
    if given is None or given.ndim < 2:
        raise ValueError(
            f"Argument `{name}` must hold at least one point of finite floating-point numbers, batch first: the graph "
            f"of a PyTorch module is traced with the first of them. Received: {name}={data!r:.100}"
        )
    like = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), given)
    return given.detach().to(like.device, like.dtype)


def _floats(given: Any) -> Tensor | None:
    """Return an array or numbers as a tensor; None where they are not finite floating-point numbers, or none."""
    try:
        found = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = found.numel() and found.is_floating_point() and bool(torch.isfinite(found).all())
    return found if fits else None


def in_double(data: Any) -> Array:
    """Return points as they were given, in float64."""
    found: Array = torch.as_tensor(data).detach().to("cpu", torch.float64).numpy()
    return found


def point_of(module: nn.Module, centre: Any) -> Tensor:
    """Return one example as a batch of one where the module is, in its dtype.

    What the module takes for a batch of one already, it is; else a batch axis is added.

    Raises:
        ValueError: When it holds no floating-point numbers.
    """
    given = _floats(centre)
    if given is None:
        raise ValueError(
            "Argument `around` must be one example, or a batch of one, as an array of finite floating-point numbers. "
            f"Received: around={centre!r:.100}"
        )
    like = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), given)
    example = given.detach().to(like.device, like.dtype)
    return example if _is_batch(module, example) else example[None]


def _is_batch(module: nn.Module, example: Tensor) -> bool:
    """Return whether a module takes this for a batch of one: all that it gives is one, too."""
    if example.ndim < 2 or len(example) != 1:
        return False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return all(part.ndim and len(part) == 1 for part in _parts(plain(module)(example)))
    except Exception:  # a module that takes no input of that shape
        return False


def largest_jacobian(module: nn.Module, points: Tensor) -> float:
    """Return a lower bound of the largest norm of the module's Jacobian over the points, at inference."""
    whole = plain(module)
    return max(_at(whole, point[None]) for point in points)


def plain(module: nn.Module) -> nn.Module:
    """Return a copy of a module, in evaluation, whose parametrized kernels are plain parameters."""
    module = getattr(module, "_orig_mod", module)  # of one that `torch.compile` returned
    try:
        made = copy.deepcopy(module).eval().requires_grad_(False)
    except RuntimeError as error:
        must = "must be a module that can be copied: before `torch.jit.script`, without hooks that compute weights"
        said = str(error).strip().partition(chr(10))[0]
        raise ValueError(f"Argument `model` {must}; PyTorch says: {said}. Received: {type(module).__name__}") from error
    for part in list(made.modules()):
        if parametrize.is_parametrized(part):
            _unparametrize(part)
    return made


def _unparametrize(module: Any) -> None:
    # Not by `remove_parametrizations`, which takes the attribute off a class that the module's copies share.
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _joined(outputs: Any) -> Tensor:
    """Return all that a module gives as one vector: the bound from above is of all of it."""
    return torch.cat([part.flatten() for part in _parts(outputs)])


def _parts(outputs: Any) -> Iterator[Tensor]:
    """Yield all that a module gives, however nested."""
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _parts(part)


def _at(module: nn.Module, point: Tensor) -> float:
    """Return |J^T u| / |u| at a point, after a few power iterations."""

    def function(x: Tensor) -> Tensor:
        return _joined(module(x))

    output, backward = torch.func.vjp(function, point)
    u = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    largest = 0.0
    for _ in range(_STEPS):
        (v,) = backward(u / u.norm())
        largest = max(largest, float(v.norm()))
        if not largest:
            return largest
        try:
            _, u = torch.func.jvp(function, (point,), (v / v.norm(),))
        except NotImplementedError:  # recurrent layers: what one random u has shown is a lower bound as well
            return largest
    return largest
