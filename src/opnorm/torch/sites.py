"""Every kernel of a module, with its geometry and the path that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from opnorm.checks import require
from opnorm.rules import Constraint
from opnorm.torch.geometry import KernelGeometry, is_registered, kernels

_MARK = "_opnorm_constraints"  # of a module: what `constrain` attached, by parameter; copies of the module have it too


class Kernel(NamedTuple):
    """A kernel of a module.

    Args:
        path: Its name as in `module.named_parameters()`: `"encoder.0.weight"`.
        module: The module that it belongs to.
        geometry: What the module makes of it.
        obstacle: Why no parameter of the module is the matrix that it applies; empty if one is.
    """

    path: str
    module: nn.Module
    geometry: KernelGeometry
    obstacle: str = ""

    @property
    def tensor(self) -> Tensor:
        """What the module multiplies with: the parameter, or what a parametrization makes; nothing is written."""
        with unchanging(self.module, self.geometry.name):
            tensor: Tensor = getattr(self.module, self.geometry.name)
        return tensor

    @property
    def constraint(self) -> Constraint | None:
        """The constraint that `constrain` attached, as it was given; None if there is none."""
        found: Constraint | None = getattr(self.module, _MARK, {}).get(self.geometry.name)
        return found

    @property
    def names(self) -> Iterator[str]:
        """The kernel's path, and the paths of the modules on the way to it."""
        parts = self.path.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))

    @property
    def place(self) -> tuple[nn.Module, str]:
        """The module, and the attribute that holds the kernel."""
        return self.module, self.geometry.name


class PassedOver(NamedTuple):
    """A parameter that may be a kernel but is not known as one, and the reason."""

    path: str
    shape: tuple[int, ...]
    reason: str


def find_kernels(module: nn.Module) -> list[Kernel | PassedOver]:
    """Return every kernel of `module`, in the order of its modules, and the parameters that are passed over.

    Parameters of one axis, and those of normalization layers, are neither. Tied kernels occur once for each module.

    Raises:
        ValueError: When a parameter has no values yet, or FSDP has flattened it.
    """
    found: list[Kernel | PassedOver] = []
    for path, part in module.named_modules():
        _require_whole(path, part)
        if not isinstance(part, parametrize.ParametrizationList):
            found += _of_module(path, part)
    return found


def mark(kernel: Kernel, constraint: Constraint | None) -> None:
    """Write down on the module what was attached to the kernel, or that nothing is any more."""
    marks = {name: one for name, one in getattr(kernel.module, _MARK, {}).items() if name != kernel.geometry.name}
    if constraint is not None:
        marks[kernel.geometry.name] = constraint
    setattr(kernel.module, _MARK, marks)


@contextmanager
def unchanging(module: nn.Module, name: str) -> Iterator[None]:
    """Let a parametrization of the module's attribute be read without moving what it keeps from call to call."""
    if not parametrize.is_parametrized(module, name):
        yield
        return
    parametrizations: Any = module.parametrizations
    before = [(part, part.training) for part in parametrizations[name].modules()]
    parametrizations[name].eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def require_parameter(module: nn.Module, geometry: KernelGeometry) -> None:
    """Raise unless the kernel is a parameter of real numbers, with values."""
    _require_whole("", module)
    obstacle = _obstacle(module, geometry.name, dict(module.named_parameters(recurse=False)))
    require(not obstacle, "name", f"must be of a parameter; this one is {obstacle}", geometry.name)


def _of_module(path: str, module: nn.Module) -> list[Kernel | PassedOver]:
    own = dict(module.named_parameters(recurse=False))
    geometries = kernels(module)
    found: list[Kernel | PassedOver] = [
        Kernel(_join(path, one.name), module, one, _obstacle(module, one.name, own)) for one in geometries
    ]
    if is_registered(module):
        return found
    reason = "no rule: register the module's type with `opnorm.torch.kernels`"
    return [PassedOver(_join(path, name), tuple(p.shape), reason) for name, p in own.items() if p.ndim > 1]


def _obstacle(module: nn.Module, name: str, own: dict[str, nn.Parameter]) -> str:
    if name in own:
        return "" if own[name].is_floating_point() else f"not real and floating point: {own[name].dtype}"
    if parametrize.is_parametrized(module, name):
        return "parametrized: made of another parameter in the forward pass"
    return "no parameter: made of others in the forward pass, as by a hook of torch.nn.utils"


def _require_whole(path: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter):
            raise ValueError(
                "Argument `module` must be initialised: call it on data first. Received: "
                f"{_join(path, name)!r} without values"
            )
    if type(module).__name__ == "FullyShardedDataParallel":
        raise ValueError(
            "Argument `module` must not be a FullyShardedDataParallel, which flattens its kernels: use "
            f"`torch.distributed.fsdp.fully_shard`. Received: {path or 'the module itself'!r}"
        )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")
