"""The hooks of an optimizer that hold kernels in their balls, and what they keep in its state."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from opnorm.torch.fitting import Fitted, overwrite_all
from opnorm.torch.sites import Kernel, mark

STATE = "spectral_vectors"  # a key of `optimizer.state[parameter]`
STEP = "spectral_step"  # another, where a norm is a function of it: the updates so far, an integer, which none casts


class Held(NamedTuple):
    """A kernel that is held in its ball."""

    kernel: Kernel
    parameter: nn.Parameter
    fitted: Fitted


# By optimizer; a keeper knows its own by a weak reference, so that neither is kept alive by this table.
_keepers: WeakKeyDictionary[Optimizer, list["Keeper"]] = WeakKeyDictionary()


def taken() -> set[int]:
    """Return the ids of all parameters that are constrained."""
    return {id(one.parameter) for several in _keepers.values() for keeper in several for one in keeper.held}


def last_step(parameter: Any) -> int | None:
    """Return the number of the last update of a parameter whose norm is a function of it; None if there was none."""
    for optimizer, several in list(_keepers.items()):
        for keeper in several:
            if any(one.parameter is parameter for one in keeper.held):
                count = keeper.kept(optimizer, parameter, STEP)
                return count - 1 if count else None
    return None


class Keeper:
    """The hooks of an optimizer that hold kernels in their balls."""

    def __init__(self, optimizer: Optimizer, held: Sequence[Held]) -> None:
        self.held = tuple(held)
        self._optimizer = ref(optimizer)
        self._aside: dict[tuple[int, str], Any] = {}  # of parameters that the optimizer has not begun to update
        self._loaded: dict[int, Tensor] = {}
        # What acts depends on numbers: a compiled step calls it as it is. PyTorch's optimizers have imported Dynamo.
        self._act: Callable[[Optimizer], None] = torch.compiler.disable(self._acted)
        self._handles: list[RemovableHandle] | None = [
            optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self._act(optimizer)),
            optimizer.register_load_state_dict_pre_hook(self._remember),
            optimizer.register_load_state_dict_post_hook(self._restore),
        ]
        _keepers.setdefault(optimizer, []).append(self)

    def remove(self) -> None:
        """Take the hooks off, and the vectors out of the optimizer's state."""
        optimizer = self._optimizer()
        if self._handles is None:  # another constraint may hold the kernels by now
            return
        for handle in self._handles:
            handle.remove()
        self._handles = None
        for one in self.held:
            mark(one.kernel, None)
            if optimizer is not None and one.parameter in optimizer.state:
                for key in (STATE, STEP):
                    optimizer.state[one.parameter].pop(key, None)
        if optimizer is not None and self in _keepers.get(optimizer, []):
            _keepers[optimizer].remove(self)

    def _acted(self, optimizer: Optimizer) -> None:
        due = [one for one in self.held if one.parameter.requires_grad]
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for one in due:
            _require_in_place(one, updated)
        steps = [self.kept(optimizer, one.parameter, STEP) or 0 for one in due]
        levels = [one.fitted.level(step) for one, step in zip(due, steps, strict=True)]
        with torch.no_grad():
            kernels = [one.fitted.view(one.parameter) for one in due]
            states = [one.fitted.state(self.kept(optimizer, one.parameter, STATE), one.parameter) for one in due]
            following = overwrite_all([one.fitted.rule for one in due], kernels, states, levels)
        for one, state, step in zip(due, following, steps, strict=True):
            self._keep(optimizer, one.parameter, STATE, state)
            self._keep(optimizer, one.parameter, STEP, step + 1 if one.fitted.constraint.target.moves else None)

    def kept(self, optimizer: Optimizer, parameter: nn.Parameter, key: str) -> Any:
        """Return what is kept for a parameter under a key; None if there is nothing."""
        return optimizer.state.get(parameter, {}).get(key, self._aside.get((id(parameter), key)))

    def _keep(self, optimizer: Optimizer, parameter: nn.Parameter, key: str, value: Any) -> None:
        if value is None:
            return
        # Optimizers make their own state of a parameter where they find none of it: ours must not come first.
        begun = parameter.grad is not None or (parameter in optimizer.state and optimizer.state[parameter])
        if begun:
            optimizer.state[parameter][key] = value
            self._aside.pop((id(parameter), key), None)
        else:
            self._aside[id(parameter), key] = value

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


def _require_in_place(one: Held, updated: set[int]) -> None:
    remedy = (
        "Remedy: call `remove()` of the table that `opnorm.torch.constrain` returned, make the optimizer anew, and "
        "constrain again."
    )
    if id(one.parameter) not in updated:
        raise RuntimeError(
            f"The kernel {one.kernel.path!r} of {type(one.kernel.module).__name__} is no longer a parameter of the "
            f"optimizer: its `param_groups` were replaced, and what it updates is not what was constrained. {remedy}"
        )
    if getattr(one.kernel.module, one.kernel.geometry.name, None) is not one.parameter:
        raise RuntimeError(
            f"The kernel {one.kernel.path!r} of {type(one.kernel.module).__name__} is not the parameter that was "
            "constrained: it was replaced (`load_state_dict(assign=True)`, a new parameter, a parametrization), and "
            f"the optimizer goes on with the old one. {remedy}"
        )
