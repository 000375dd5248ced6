"""Whole modules brought into their balls at once: averaged copies, loaded weights, loops of one's own."""

import torch
from torch import nn

from opnorm.checks import require, require_constraint
from opnorm.rules import Constraint
from opnorm.torch.fitting import Fitted, fit, overwrite_all
from opnorm.torch.sites import Kernel, find_kernels


def project(module: nn.Module, rule: Constraint | None = None, *, step: int | None = None) -> None:
    """Apply `rule` to every kernel of `module` now, in place, from a fresh start and to convergence.

    After it each kernel has the norm that the rule asks for, within 1e-3; frozen kernels too. A copy of a module that
    `constrain` was given (`deepcopy`, `torch.optim.swa_utils.AveragedModel`) knows its rules.

    Args:
        module: A `torch.nn.Module`.
        rule: `opnorm.torch.SpectralNorm()` or another, for all kernels; by default those that `constrain` attached.
        step: How many updates came before, where a rule's norm is a function of it.

    Raises:
        ValueError: When there is no kernel, nothing was attached and no `rule` is given, or a rule needs the `step`.

    Example:
        >>> opnorm.torch.project(critic, opnorm.torch.SpectralNorm())
    """
    require(isinstance(module, nn.Module), "module", "must be a torch.nn.Module", module)
    require_constraint(rule is None or isinstance(rule, Constraint), "rule", "opnorm.torch", rule)
    due = _due(module, rule)
    if not due:
        raise ValueError(
            "Argument `rule` must be given for a module that `opnorm.torch.constrain` attached nothing to, and the "
            f"module must have kernels. Received: rule={rule!r} and a {type(module).__name__}"
        )
    parameters = [getattr(kernel.module, kernel.geometry.name) for kernel, _ in due]
    fitted = [one for _, one in due]
    with torch.no_grad():
        kernels = [one.view(parameter) for one, parameter in zip(fitted, parameters, strict=True)]
        states = [one.state(None, parameter) for one, parameter in zip(fitted, parameters, strict=True)]
        overwrite_all([one.rule.converged for one in fitted], kernels, states, [one.level(step) for one in fitted])


def _due(module: nn.Module, rule: Constraint | None) -> list[tuple[Kernel, Fitted]]:
    """Return the kernels to change, tied ones once, each with its constraint."""
    due: dict[int, tuple[Kernel, Fitted]] = {}
    for kernel in find_kernels(module):
        constraint = (rule or kernel.constraint) if isinstance(kernel, Kernel) and not kernel.obstacle else None
        if isinstance(kernel, Kernel) and constraint is not None:
            due.setdefault(id(kernel.tensor), (kernel, fit(constraint, kernel)))
    return list(due.values())
