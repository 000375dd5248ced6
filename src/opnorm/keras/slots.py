"""A constraint's state as optimizer variables: made when the optimizer is built, found while it applies an update.

Keras calls `variable.constraint(variable)` at the end of `Optimizer.apply` and offers no hook where a constraint could
ask for state. So this module wraps three public methods of `keras.optimizers.Optimizer`, once, on import; nothing else
in Keras is touched. Where an optimizer passes the wrapped methods by, `OperatorConstraint` does without state.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import keras
from keras import ops
from keras.optimizers import LossScaleOptimizer, Optimizer

from opnorm.backends import Tensor
from opnorm.keras.base import OperatorConstraint, current, real_tensor, state_shape
from opnorm.keras.models import project_variables
from opnorm.keras.optimizers import note, updates
from opnorm.keras.writing import write
from opnorm.rules import Rule, find, updated


class _Due(NamedTuple):
    """A kernel that waits for the end of the update."""

    kernel: keras.Variable
    constraint: OperatorConstraint
    state: keras.Variable | None


class OptimizerUpdate:
    """The constraints of one update of an optimizer, applied together at its end: `keras.base.Update`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._steps = optimizer.gradient_accumulation_steps
        self._due: list[_Due] = []

    @property
    def step(self) -> Tensor:
        """How many updates came before this one, while it goes on."""
        return updates(self._optimizer)

    def later(self, constraint: OperatorConstraint, kernel: Any) -> bool:
        """Note that `constraint` is to act on `kernel`; return False where the optimizer keeps no place for it."""
        slot = _fitting(self._optimizer, kernel, constraint.rule)
        if slot is not None:
            self._due.append(_Due(kernel, constraint, slot.state))
        return slot is not None

    def now(self, constraint: OperatorConstraint, kernel: Any) -> Tensor | None:
        """Return the constrained kernel, its state advanced; None where the optimizer keeps no place for it."""
        slot = _fitting(self._optimizer, kernel, constraint.rule)
        if slot is None:
            return None
        one = _Due(kernel, constraint, slot.state)
        (changed,), states = self._when_due([one], coming=1)
        _keep([one], states)
        return changed

    def finish(self) -> None:
        """Change all kernels, and advance their states; neither where gradients only accumulate."""
        if not self._due:
            return
        if self._steps is None or keras.config.backend() == "torch":
            if self._steps is None or int(self._iteration.value) % self._steps == 0:
                self._act()
            return
        kernels, states = self._when_due(self._due, coming=0)
        for one, kernel in zip(self._due, kernels, strict=True):
            one.kernel.assign(kernel)
        _keep(self._due, states)

    @property
    def _iteration(self) -> keras.Variable:
        return next(v for v in self._optimizer.variables if v.name == "iteration")

    def _act(self) -> None:
        rules, kernels, states = _tensors(self._due)
        found, states = find(rules, kernels, states, self._levels(self._due, coming=0))
        write([one.kernel for one in self._due], rules, found)
        _keep(self._due, states)

    def _when_due(self, due: list[_Due], coming: int) -> tuple[list[Tensor], list[Tensor]]:
        rules, kernels, states = _tensors(due)
        levels = self._levels(due, coming)
        if self._steps is None:
            return updated(rules, kernels, states, levels)
        flat = ops.cond(
            (self._iteration.value + coming) % self._steps == 0,
            lambda: _present(*updated(rules, kernels, states, levels)),
            lambda: _present(kernels, states),
        )
        rest = iter(flat[len(due) :])
        return list(flat[: len(due)]), [None if state is None else next(rest) for state in states]

    def _levels(self, due: list[_Due], coming: int) -> list[Tensor]:
        moves = any(one.constraint.norm.moves for one in due)
        step = self.step - (1 - coming) if moves else None  # at its end an update is counted already
        return [one.constraint.level(step) for one in due]


def _tensors(due: list[_Due]) -> tuple[list[Rule], list[Tensor], list[Tensor]]:
    states = [None if one.state is None else one.state.value for one in due]
    return [one.constraint.rule for one in due], [one.kernel.value for one in due], states


def _present(kernels: list[Tensor], states: list[Tensor]) -> tuple[Tensor, ...]:
    return *kernels, *(state for state in states if state is not None)


def _keep(due: list[_Due], states: list[Tensor]) -> None:
    for one, state in zip(due, states, strict=True):
        if one.state is not None:
            one.state.assign(state)


class _Slot(NamedTuple):
    state: keras.Variable | None


_WRAPPERS = LossScaleOptimizer, getattr(keras.optimizers, "MultiOptimizer", LossScaleOptimizer)  # not in Keras 3.12
_slots: WeakKeyDictionary[Optimizer, dict[int, _Slot]] = WeakKeyDictionary()


def state_of(optimizer: Optimizer, kernel: keras.Variable) -> keras.Variable | None:
    """Return the variable of `optimizer` that holds the state of the constraint of `kernel`, None if there is none."""
    slot = _find(optimizer, kernel)
    return slot and slot.state


def _find(optimizer: Optimizer, kernel: keras.Variable) -> _Slot | None:
    return _slots.get(optimizer, {}).get(id(kernel))


def _fitting(optimizer: Optimizer, kernel: keras.Variable, rule: Rule) -> _Slot | None:
    """Return the place of `kernel` as `rule` needs it, None where there is none: it may have had another constraint."""
    slot, wanted = _find(optimizer, kernel), state_shape(rule, tuple(kernel.shape))
    if slot is None or wanted is None:
        return slot and _Slot(None)
    return slot if slot.state is not None and tuple(slot.state.shape) == wanted else None


def _add_slots(optimizer: Optimizer, variables: Iterable[keras.Variable]) -> None:
    if isinstance(optimizer, _WRAPPERS):
        return  # their inner optimizers, built on the same kernels, are the ones that apply the constraints
    _slots[optimizer] = {
        id(kernel): _Slot(_add_state(optimizer, kernel, index))
        for index, kernel in enumerate(variables)
        if isinstance(getattr(kernel, "constraint", None), OperatorConstraint)
    }


def _add_state(optimizer: Optimizer, kernel: keras.Variable, index: int) -> keras.Variable | None:
    real_tensor(kernel)
    start = kernel.constraint.initial_state(kernel, index)
    if start is None:
        return None
    return optimizer.add_variable(
        shape=start.shape,
        # A function, not an assignment: TensorFlow may build the optimizer while it traces the training step.
        initializer=lambda shape, dtype=None: ops.convert_to_tensor(start, dtype=dtype),
        dtype="float32",
        aggregation="only_first_replica",  # replicas of a kernel are equal, so are their vectors
        layout=_replicated(start.ndim),
        name=f"{kernel.path.replace('/', '_')}_u",
    )


def _replicated(ndim: int) -> Any:
    # Said explicitly, lest a `ModelParallel` layout map take the vector for the kernel, whose path its name contains.
    distribution = keras.distribution.distribution()
    return distribution and keras.distribution.TensorLayout([None] * ndim, distribution.device_mesh)


def _build(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def build(self: Optimizer, variables: list[keras.Variable]) -> None:
        original(self, variables)
        note(self, variables)
        _add_slots(self, variables)

    return build


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what PyTorch's compiler calls as it is: what acts depends on numbers. Keras has imported Dynamo there."""
    if keras.config.backend() != "torch":
        return function
    import torch

    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled


def _apply(original: Callable[..., Any]) -> Callable[..., Any]:
    finish = _uncompiled(OptimizerUpdate.finish)

    @wraps(original)
    def apply(self: Optimizer, grads: Any, trainable_variables: Any = None) -> Any:
        update = OptimizerUpdate(self)
        token = current.set(update)
        try:
            result = original(self, grads, trainable_variables)
        finally:
            current.reset(token)
        finish(update)
        return result

    return apply


def _finalize(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def finalize_variable_values(self: Optimizer, var_list: list[keras.Variable]) -> None:
        original(self, var_list)
        if self.use_ema:  # the averages that replaced the kernels were taken before the constraint acted
            project_variables(v for v in var_list if isinstance(v.constraint, OperatorConstraint))

    return finalize_variable_values


Optimizer.build = _build(Optimizer.build)
Optimizer.apply = _apply(Optimizer.apply)
Optimizer.finalize_variable_values = _finalize(Optimizer.finalize_variable_values)
