"""A module as an ONNX file, as PyTorch's exporters write it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opnorm.torch.traced_sizes import sizes_are_known

_SEVERAL = 7  # examples of a batch


class AnotherTraceError(ValueError):
    """A module that does something else with other numbers, or with a batch of another size."""


def exported(module: nn.Module, example: Tensor, path: Path, fixed: bool) -> None:
    """Write a module as an ONNX file: by its trace, or where PyTorch has none of it by its program."""
    # The exporters print graphs that they cannot translate.
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()), _slow_attention():
        try:
            _trace(module, example, path, fixed)
        except Exception as error:
            asks = _asks(error) or find_spec("onnxscript") is None
            if asks or not _write_program(module, example, path, fixed):
                raise


def _asks(error: BaseException | None) -> bool:
    """Return whether a module was not traced since numbers, or the batch's size, decide which way its code goes.

    Of these ways a program has one, too: that of examples it knows nothing of.
    """
    while error is not None:
        if isinstance(error, torch.jit.TracerWarning | AnotherTraceError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Let attention be what it is made of: its fast way is one operator that the exporters do not know."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _trace(module: nn.Module, example: Tensor, path: Path, fixed: bool) -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's newer exporter needs packages of its own
    warnings.simplefilter("error", torch.jit.TracerWarning)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch(\.|$)")  # its checks of shapes
    open_axes = {} if fixed else {"dynamic_axes": {"input": {0: "batch"}}}
    # The module is in evaluation. Asked for evaluation, the exporter multiplies BatchNorm into kernels in float32.
    warnings.filterwarnings("ignore", message="It is recommended that constant folding be turned off")
    warnings.filterwarnings("ignore", message="Constant folding")  # of padded images it leaves something to opnorm
    as_it_is = torch.onnx.TrainingMode.PRESERVE
    options = {"input_names": ["input"], "output_names": ["output"], "training": as_it_is, **open_axes}
    with sizes_are_known() as taken:
        torch.onnx.export(module, (example,), str(path), dynamo=False, **options)
    _require_no_numbers(module, example, options)
    if taken and not fixed:
        _require_the_same(taken, module, example, options)


def _require_no_numbers(module: nn.Module, example: Tensor, options: dict[str, Any]) -> None:
    """Raise unless other examples have the same trace: not all that takes numbers out of one is warned of."""
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    first, *others = (
        _steps(module, one, options) for one in (example, 1.5 * noise - example, torch.zeros_like(example))
    )
    if any(other != first for other in others):
        raise AnotherTraceError("its trace is another one for other numbers: it takes them out of tensors")


def _steps(module: nn.Module, example: Tensor, options: dict[str, Any]) -> bytes:
    """Return a module's trace without its parameters."""
    found = BytesIO()
    with sizes_are_known():
        plain = {"export_params": False, "do_constant_folding": False, "dynamo": False}
        torch.onnx.export(module, (example,), found, **options, **plain)
    return found.getvalue()


def _write_program(module: nn.Module, example: Tensor, path: Path, fixed: bool) -> bool:
    """Write a module as its program by `torch.export`, as it is; return whether there is one."""
    shapes = {} if fixed else {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    warnings.simplefilter("ignore")
    logs = logging.getLogger("torch.onnx")  # of packages that it would know
    level = logs.level
    logs.setLevel(logging.ERROR)
    try:
        options = {"optimize": False, "verbose": False, "external_data": False, **shapes}  # no folding in float32
        torch.onnx.export(module, (example,), str(path), dynamo=True, **options)
    except Exception:  # whatever that exporter meets: what the first one said is told
        return False
    finally:
        logs.setLevel(level)
    return True


def _require_the_same(taken: list[Any], module: nn.Module, example: Tensor, options: dict[str, Any]) -> None:
    """Raise unless the sizes that decided which way the module's code goes are those of a larger batch too."""
    several = example.expand(_SEVERAL, *example.shape[1:]).clone()
    with sizes_are_known() as others:
        torch.onnx.export(module, (several,), BytesIO(), dynamo=False, **options)
    if others != taken:
        raise AnotherTraceError("the size of the batch decides which way its code goes")
