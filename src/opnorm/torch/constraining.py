"""A constraint that acts on every kernel of a module after each step of its optimizer.

`u` is to the constraint what momentum is to Adam, so it lives where momentum does: in `optimizer.state[parameter]`, and
goes wherever that goes.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opnorm.checks import require
from opnorm.rules import Constraint
from opnorm.selection import Selection, choose
from opnorm.torch.attachments import Attachment, Attachments
from opnorm.torch.fitting import Fitted, fit, overwrite_all
from opnorm.torch.sites import Kernel, PassedOver, find_kernels, mark

STATE = "spectral_vectors"  # the key of `optimizer.state[parameter]`


class _Held(NamedTuple):
    """A kernel that is held in its ball."""

    kernel: Kernel
    parameter: nn.Parameter
    fitted: Fitted


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
    require(isinstance(rule, Constraint), "rule", "must be one of opnorm.torch's constraints", rule)
    optimizer = _inner(optimizer)
    found = find_kernels(module)
    kernels = _chosen(module, found, include, exclude)
    owned = _owned(module, optimizer, kernels)
    held = [_Held(one, p, fit(rule, one, i)) for i, (one, p) in enumerate(owned.values())]
    keeper = _Keeper(optimizer, held)
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


# By optimizer; a keeper knows its own by a weak reference, so that neither is kept alive by this table.
_keepers: WeakKeyDictionary[Optimizer, list["_Keeper"]] = WeakKeyDictionary()


def _require_free(owned: dict[int, tuple[Kernel, nn.Parameter]]) -> None:
    taken = {id(one.parameter) for several in _keepers.values() for keeper in several for one in keeper.held}
    for key, (kernel, _) in owned.items():
        if key in taken:
            raise ValueError(
                "Argument `module` must have no kernel that is constrained already: call `remove()` of the table that "
                f"`opnorm.torch.constrain` returned first. Received: {kernel.path!r}, constrained twice"
            )


class _Keeper:
    """The hooks of an optimizer that hold kernels in their balls."""

    def __init__(self, optimizer: Optimizer, held: Sequence[_Held]) -> None:
        self.held = tuple(held)
        self._optimizer = ref(optimizer)
        self._aside: dict[int, Tensor] = {}  # states of parameters that the optimizer has not begun to update
        self._loaded: dict[int, Tensor] = {}
        # What acts depends on numbers: a compiled step calls it as it is. PyTorch's optimizers have imported Dynamo.
        self._act: Callable[[Optimizer], None] = torch.compiler.disable(self._acted)
        self._handles = [
            optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self._act(optimizer)),
            optimizer.register_load_state_dict_pre_hook(self._remember),
            optimizer.register_load_state_dict_post_hook(self._restore),
        ]
        _keepers.setdefault(optimizer, []).append(self)

    def remove(self) -> None:
        """Take the hooks off, and the vectors out of the optimizer's state."""
        optimizer = self._optimizer()
        for handle in self._handles:
            handle.remove()
        for one in self.held:
            mark(one.kernel, None)
            if optimizer is not None and one.parameter in optimizer.state:
                optimizer.state[one.parameter].pop(STATE, None)
        if optimizer is not None and self in _keepers.get(optimizer, []):
            _keepers[optimizer].remove(self)

    def _acted(self, optimizer: Optimizer) -> None:
        due = [one for one in self.held if one.parameter.requires_grad]
        for one in due:
            _require_in_place(one)
        with torch.no_grad():
            kernels = [one.fitted.view(one.parameter) for one in due]
            states = [self._state(optimizer, one) for one in due]
            following = overwrite_all([one.fitted.rule for one in due], kernels, states)
        for one, state in zip(due, following, strict=True):
            self._keep(optimizer, one.parameter, state)

    def _state(self, optimizer: Optimizer, one: _Held) -> Tensor | None:
        held = optimizer.state.get(one.parameter, {})
        return one.fitted.state(held.get(STATE, self._aside.get(id(one.parameter))), one.parameter)

    def _keep(self, optimizer: Optimizer, parameter: nn.Parameter, state: Tensor | None) -> None:
        if state is None:
            return
        # Optimizers make their own state of a parameter where they find none of it: ours must not come first.
        begun = parameter.grad is not None or (parameter in optimizer.state and optimizer.state[parameter])
        if begun:
            optimizer.state[parameter][STATE] = state
            self._aside.pop(id(parameter), None)
        else:
            self._aside[id(parameter)] = state

    def _remember(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        # `load_state_dict` casts to the parameter's dtype; of half-precision parameters the vectors are float32.
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        saved = {number: state for number, state in state_dict["state"].items() if isinstance(state, dict)}
        self._loaded = {
            place: saved[number][STATE]
            for place, number in enumerate(numbers)
            if number in saved and STATE in saved[number]
        }

    def _restore(self, optimizer: Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for place, state in self._loaded.items():
            parameter = parameters[place]
            optimizer.state[parameter][STATE] = state.detach().clone().to(parameter.device, torch.float32)
        self._aside, self._loaded = {}, {}


def _require_in_place(one: _Held) -> None:
    if getattr(one.kernel.module, one.kernel.geometry.name, None) is not one.parameter:
        raise RuntimeError(
            f"The kernel {one.kernel.path!r} of {type(one.kernel.module).__name__} is not the parameter that was "
            "constrained: it was replaced (`load_state_dict(assign=True)`, a new parameter, a parametrization), and "
            "the optimizer goes on with the old one. Remedy: call `remove()` of the table that "
            "`opnorm.torch.constrain` returned, make the optimizer anew, and constrain again."
        )


def _row(
    one: Kernel | PassedOver,
    kernels: list[Kernel],
    owned: dict[int, tuple[Kernel, nn.Parameter]],
    keeper: _Keeper,
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
