"""What every constraint of opnorm is: a pure function with state, `(kernel, state) -> (kernel, state)`.

Keras applies a constraint after each optimizer update. Its state is an optimizer variable (`keras.slots`): the vector
`u` of a power iteration is to the constraint what momentum is to Adam.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from inspect import signature
from typing import Any, Protocol

import keras
import numpy as np

from opnorm.iterations.power import Tensor

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Slot(Protocol):
    """The place of one kernel's state while an optimizer applies an update."""

    def run(self, update: Update, kernel: Any) -> Tensor:
        """Return the kernel that `update` makes of `kernel` and the state, and store the new state."""


def _no_slot(kernel: Any) -> Slot | None:
    return None


# `opnorm.keras.slots` sets it while an optimizer applies an update.
find_slot: ContextVar[Callable[[Any], Slot | None]] = ContextVar("find_slot", default=_no_slot)


class OperatorConstraint(keras.constraints.Constraint):
    """Abstract: a constraint of an operator norm. `find_slot` says where an optimizer keeps its state."""

    _warned = False

    @abstractmethod
    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray | None:
        """Return the state for the first update of `kernel`, a float32 array, or None where no state is needed.

        Args:
            kernel: An array, tensor or variable; only its shape is read.
            index: Kernels with different indices get different states.
        """

    @abstractmethod
    def update(self, kernel: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the constrained kernel and the next state; pure, so it serves any training loop.

        Args:
            kernel: A tensor or variable, after the optimizer's update.
            state: What `initial_state` or the last `update` returned.
        """

    @abstractmethod
    def project(self, kernel: Tensor) -> Tensor:
        """Return the constrained kernel, from a fresh start and to convergence."""

    def __call__(self, w: Any) -> Tensor:
        """Return the constrained kernel, and advance its state where an optimizer holds one."""
        slot = find_slot.get()(w)
        if slot is not None:
            return slot.run(self.update, w)
        if isinstance(w, keras.Variable):
            self._warn_once(w)
        return self.project(w)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; JSON-serializable."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def _warn_once(self, kernel: Any) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"No optimizer state for the constraint {type(self).__name__} of '{kernel.path}': it starts afresh at each "
            "update, which is correct but slow. Remedy: attach the constraint and `import opnorm` before the optimizer "
            "is built, and let the optimizer's own `build` and `apply` call `super()`.",
            stacklevel=4,
        )
