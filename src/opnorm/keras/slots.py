"""A constraint's state as optimizer variables: made when the optimizer is built, found while it applies an update.

Keras calls `variable.constraint(variable)` at the end of `Optimizer.apply` and offers no hook where a constraint could
ask for state. So this module wraps three public methods of `keras.optimizers.Optimizer`, once, on import; nothing else
in Keras is touched. Where an optimizer passes the wrapped methods by, `OperatorConstraint` does without state.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import keras
from keras import ops
from keras.optimizers import LossScaleOptimizer, Optimizer

from opnorm.iterations.power import Tensor
from opnorm.keras.base import OperatorConstraint, Update, find_slot


class OptimizerSlot:
    """One kernel's state, a variable of the optimizer that updates the kernel; None for a constraint without state."""

    def __init__(self, optimizer: Optimizer, state: keras.Variable | None) -> None:
        self.state = state
        self._steps = optimizer.gradient_accumulation_steps
        self._iteration = next(v for v in optimizer.variables if v.name == "iteration")

    def run(self, update: Update, kernel: keras.Variable) -> Tensor:
        """Return the updated kernel and store its state; change neither where gradients only accumulate."""
        kernel = kernel.value
        if self.state is None:
            return self._when_due(lambda: update(kernel, None)[0], lambda: kernel)
        state = self.state.value
        kernel, state = self._when_due(lambda: update(kernel, state), lambda: (kernel, state))
        self.state.assign(state)
        return kernel

    def _when_due(self, change: Callable[[], Any], keep: Callable[[], Any]) -> Any:
        if self._steps is None:
            return change()
        return ops.cond((self._iteration + 1) % self._steps == 0, change, keep)


_WRAPPERS = LossScaleOptimizer, getattr(keras.optimizers, "MultiOptimizer", LossScaleOptimizer)  # not in Keras 3.12
_slots: WeakKeyDictionary[Optimizer, dict[int, OptimizerSlot]] = WeakKeyDictionary()
_updated: WeakKeyDictionary[Optimizer, frozenset[int]] = (
    WeakKeyDictionary()
)  # ids stay: an optimizer keeps its variables


def state_of(optimizer: Optimizer, kernel: keras.Variable) -> keras.Variable | None:
    """Return the variable of `optimizer` that holds the state of the constraint of `kernel`, None if there is none."""
    slot = _find(optimizer, kernel)
    return slot and slot.state


def optimizers_of(variable: keras.Variable) -> list[Optimizer]:
    """Return the optimizers that were built to update `variable`, before now, and are still in use."""
    return [optimizer for optimizer, held in list(_updated.items()) if id(variable) in held]


def _find(optimizer: Optimizer, kernel: keras.Variable) -> OptimizerSlot | None:
    return _slots.get(optimizer, {}).get(id(kernel))


def _add_slots(optimizer: Optimizer, variables: Iterable[keras.Variable]) -> None:
    if isinstance(optimizer, _WRAPPERS):
        return  # their inner optimizers, built on the same kernels, are the ones that apply the constraints
    _slots[optimizer] = {
        id(kernel): OptimizerSlot(optimizer, _add_state(optimizer, kernel, index))
        for index, kernel in enumerate(variables)
        if isinstance(getattr(kernel, "constraint", None), OperatorConstraint)
    }


def _add_state(optimizer: Optimizer, kernel: keras.Variable, index: int) -> keras.Variable | None:
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
        _updated[self] = frozenset(map(id, variables))
        _add_slots(self, variables)

    return build


def _apply(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def apply(self: Optimizer, grads: Any, trainable_variables: Any = None) -> Any:
        token = find_slot.set(lambda kernel: _find(self, kernel))
        try:
            return original(self, grads, trainable_variables)
        finally:
            find_slot.reset(token)

    return apply


def _finalize(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def finalize_variable_values(self: Optimizer, var_list: list[keras.Variable]) -> None:
        original(self, var_list)
        if self.use_ema:  # the averages that replaced the kernels were taken before the constraint acted
            for variable in var_list:
                if isinstance(variable.constraint, OperatorConstraint):
                    variable.assign(variable.constraint.project(variable))

    return finalize_variable_values


Optimizer.build = _build(Optimizer.build)
Optimizer.apply = _apply(Optimizer.apply)
Optimizer.finalize_variable_values = _finalize(Optimizer.finalize_variable_values)
