"""A constraint that acts on every kernel of a module after each step of its optimizer.

`u` is to the constraint what momentum is to Adam, so it lives where momentum does: in `optimizer.state[parameter]`, and
goes wherever that goes.
"""

import gc
import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer

from opnorm.checks import require, require_constraint
from opnorm.rules import Constraint
from opnorm.selection import Selection, choose
from opnorm.torch.attachments import Attachment, Attachments
from opnorm.torch.fitting import fit
from opnorm.torch.keeping import Held, Keeper, taken
from opnorm.torch.sites import Kernel, PassedOver, find_kernels, mark


def constrain(
    module: nn.Module,
    optimizer: Optimizer,
    rule: Constraint,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> Attachments:
    """Let `rule` hold for every kernel of `module` after each `optimizer.step()`, as the module's own operator.

    All kernels are changed together and in place, by a hook of the optimizer. Nothing is changed before the first step;
    `opnorm.torch.project(module)` applies the rule now. The kernels are those that `opnorm.torch.kernels` knows: linear
    and bilinear layers, convolutions (transposed, grouped), embeddings, recurrences, attention. Of an attention's fused
    projection the three matrices have a norm each; with `blockwise=True` each head, and each gate of a recurrence.
    Frozen kernels are left alone while they are frozen; tied ones are constrained once.

    The vectors are in `optimizer.state[parameter]["spectral_vectors"]`, so that `state_dict`, `deepcopy` and `pickle`
    carry them; a state dict without them loads, and the next step finds them anew. PyTorch gives copies of an optimizer
    no hooks: call `constrain` again on a copy.

    Args:
        module: A `torch.nn.Module`.
        optimizer: Any `torch.optim.Optimizer` that updates its parameters.
        rule: `opnorm.torch.SpectralNorm()` or another; a module's geometry is filled in.
        include: The kernels to constrain, by default all: a glob pattern, or several, of names as in
            `module.named_parameters()` or of modules on the way there (`"encoder"`, `"*.query"`); or a function of the
            module and of the attribute's name that returns whether to.
        exclude: The kernels to leave as they are, in the same way; it wins.

    Returns:
        The table of all kernels, constrained or not, and of other parameters that may be kernels, with the reason. Its
        `remove()` ends the constraint.

    Raises:
        ValueError: When a pattern matches no kernel, the module has none, the optimizer owns none of them, one is
            constrained already, or does not fit its geometry.

    Example:
        >>> optimizer = torch.optim.Adam(critic.parameters())
        >>> print(opnorm.torch.constrain(critic, optimizer, opnorm.torch.SpectralNorm()))
    """
    require(isinstance(module, nn.Module), "module", "must be a torch.nn.Module", module)
    require_constraint(isinstance(rule, Constraint), "rule", "opnorm.torch", rule)
    optimizer = _inner(optimizer)
    found = find_kernels(module)
    kernels = _chosen(module, found, include, exclude)
    owned = _owned(module, optimizer, kernels)
    held = [Held(one, p, fit(rule, one, i)) for i, (one, p) in enumerate(owned.values())]
    keeper = Keeper(optimizer, held)
    rows = [_row(one, kernels, owned, keeper) for one in found]
    for one in held:
        mark(one.kernel, rule)
    return Attachments(rows, keeper.remove)


def _inner(optimizer: Any) -> Optimizer:
    """Return the optimizer that steps, inside of those that Lightning and accelerate put around it."""
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    must = "must be a torch.optim.Optimizer; after the step of any other call `opnorm.torch.project(module, rule)`"
    require(isinstance(optimizer, Optimizer), "optimizer", must, optimizer)
    inner: Optimizer = optimizer
    return inner


def _chosen(
    module: nn.Module, found: list[Kernel | PassedOver], include: Selection | None, exclude: Selection | None
) -> list[Kernel]:
    kernels = choose([one for one in found if isinstance(one, Kernel) and not one.obstacle], include, exclude)
    if not kernels:
        reasons = [f"{one.path}: {one.reason}" for one in found if isinstance(one, PassedOver)]
        reasons += [f"{one.path}: {one.obstacle}" for one in found if isinstance(one, Kernel) and one.obstacle]
        told = "; ".join(reasons[:3]) or "it has no parameter that may be one"
        raise ValueError(
            "Argument `module` must have a kernel to constrain; `opnorm.torch.kernels.register` teaches types of your "
            f"own. Received: a {type(module).__name__} without one ({told})"
        )
    return kernels


def _owned(module: nn.Module, optimizer: Optimizer, kernels: list[Kernel]) -> dict[int, tuple[Kernel, nn.Parameter]]:
    """Return the kernels that the optimizer updates, by the parameter's id, each once.

    Raises:
        ValueError: When there is none, or one is constrained already.
    """
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    owned: dict[int, tuple[Kernel, nn.Parameter]] = {}
    strangers = []
    for kernel in kernels:
        parameter = getattr(kernel.module, kernel.geometry.name)
        if id(parameter) in known:
            owned.setdefault(id(parameter), (kernel, parameter))
        elif parameter.requires_grad:
            strangers.append(kernel.path)
    _require_owned(module, optimizer, owned, strangers)
    _require_free(owned)
    return owned


def _require_owned(module: nn.Module, optimizer: Optimizer, owned: dict[int, Any], strangers: list[str]) -> None:
    kind = type(optimizer).__name__
    remedy = "make the optimizer of this module's parameters, after `module.to(...)`, wrapping and assigning weights"
    if not owned:
        raise ValueError(
            f"Argument `optimizer` must own a kernel of `module`: {remedy}. Received: {kind}, which updates none of a "
            f"{type(module).__name__}'s kernels"
        )
    if strangers:
        warnings.warn(
            f"{kind} does not update {len(strangers)} of the kernels, {strangers[0]!r} the first: they are not "
            f"constrained. Remedy: `exclude` them, or {remedy}.",
            stacklevel=4,
        )


def _require_free(owned: dict[int, tuple[Kernel, nn.Parameter]]) -> None:
    held = taken()
    if not held.isdisjoint(owned):
        gc.collect()  # a scheduler and its optimizer hold each other: those of a notebook's last run may still be there
        held = taken()
    for key, (kernel, _) in owned.items():
        if key in held:
            raise ValueError(
                "Argument `module` must have no kernel that is constrained already: call `remove()` of the table that "
                "`opnorm.torch.constrain` returned first, or, if that is lost, make the optimizer anew and drop the "
                f"old one. Received: {kernel.path!r}, constrained twice"
            )


def _row(
    one: Kernel | PassedOver,
    kernels: list[Kernel],
    owned: dict[int, tuple[Kernel, nn.Parameter]],
    keeper: Keeper,
) -> Attachment:
    if isinstance(one, PassedOver):
        return Attachment(one.path, one.shape, "", None, one.reason)
    shape = tuple(one.tensor.shape)
    if one.obstacle or all(one is not kernel for kernel in kernels):
        return Attachment(one.path, shape, "", None, one.obstacle or "not selected")
    parameter = getattr(one.module, one.geometry.name)
    first, _ = owned.get(id(parameter), (None, None))
    if first is not one:
        told = "not in the optimizer" if first is None else f"tied to {first.path!r}"
        return Attachment(one.path, shape, "", None, told)
    constraint = next(held.fitted.constraint for held in keeper.held if held.kernel is one)
    return Attachment(one.path, shape, constraint.operator, constraint, _note(one, constraint))


def _note(kernel: Kernel, constraint: Constraint) -> str:
    padding = getattr(kernel.module, "padding_mode", "zeros")
    notes = {
        "frozen: acts once trainable": not getattr(kernel.module, kernel.geometry.name).requires_grad,
        f"{padding} padding repeats pixels: held is the norm with zeros": padding in ("reflect", "replicate")
        and constraint.operator == "convolution",
    }
    return "; ".join(note for note, holds in notes.items() if holds)
