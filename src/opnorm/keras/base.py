"""What every constraint of opnorm is: a rule, and the Keras constraint that calls it.

Keras applies a constraint after each optimizer update. Its state is an optimizer variable (`keras.slots`): the vector
`u` of a power iteration is to the constraint what momentum is to Adam.
"""

import warnings
from abc import abstractmethod
from contextvars import ContextVar
from functools import lru_cache
from inspect import signature
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from opnorm.arguments import KnownArguments
from opnorm.backends import Tensor
from opnorm.checks import require
from opnorm.rules import Rule, Target, target_of, updated
from opnorm.showing import written


class Update(Protocol):
    """An update that an optimizer is applying, at the end of which all constraints act together."""

    @property
    def step(self) -> Tensor:
        """How many updates came before it."""

    def later(self, constraint: "OperatorConstraint", kernel: Any) -> bool:
        """Note that `constraint` is to act on `kernel`; return False where the optimizer keeps no place for it."""

    def now(self, constraint: "OperatorConstraint", kernel: Any) -> Tensor | None:
        """Return the constrained kernel, its state advanced; None where the optimizer keeps no place for it."""


# `keras.slots` sets it while an optimizer applies an update.
current: ContextVar[Update | None] = ContextVar("current", default=None)


def require_layer(model: Any) -> None:
    """Raise unless `model` is Keras's."""
    must = "must be a Keras model or layer; PyTorch has `opnorm.torch.constrain`, JAX `opnorm.jax.constrain`"
    require(isinstance(model, keras.Layer), "model", must, model)


class OperatorConstraint(KnownArguments, keras.constraints.Constraint):
    """Abstract: a constraint of an operator norm. The optimizer that applies it keeps its state."""

    _warned = False
    _start = 0  # seeds the first state

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """What is done to a kernel."""

    @property
    def norm(self) -> Target:
        """The norm that no kernel exceeds after an update."""
        return target_of(getattr(self, "value", getattr(self, "max_value", 1.0)))  # `Orthogonal` has neither: 1

    def level(self, step: Any) -> Tensor | None:
        """Return what the norm is multiplied by in a step, counted from 0; None where it is the same in all.

        Raises:
            ValueError: When it is a function of the step and `step` is None.
        """
        norm = self.norm
        level = norm.at(ops.cast(step, "float32") if norm.moves and step is not None else None)
        return level if level is None else ops.convert_to_tensor(level, dtype="float32")

    def initial_state(self, kernel: Any, index: int = 0) -> np.ndarray | None:
        """Return the state for the first update of `kernel`, a float32 array, or None where no state is needed.

        Args:
            kernel: An array, tensor or variable; only its shape is read.
            index: Kernels with different indices get different states.
        """
        return None if is_empty(kernel) else self.rule.start(tuple(kernel.shape), (self._start, index))

    def update(self, kernel: Tensor, state: Tensor = None, step: Any = None) -> tuple[Tensor, Tensor]:
        """Return the constrained kernel and the next state; pure, so it serves any training loop.

        Args:
            kernel: A tensor or variable, after the optimizer's update.
            state: What `initial_state` or the last `update` returned; None starts afresh.
            step: How many updates came before, for a norm that is a function of it.
        """
        tensor = real_tensor(kernel)
        if is_empty(tensor):
            return tensor, state
        wanted = state_shape(self.rule, tuple(tensor.shape))
        if wanted is None:
            state = None
        else:
            state = ops.convert_to_tensor(self.initial_state(tensor) if state is None else state, dtype="float32")
            shape = tuple(state.shape)
            require(shape == wanted, "state", f"must have the shape of `initial_state`, {wanted}", shape)
        (changed,), (state,) = updated([self.rule], [tensor], [state], [self.level(step)])
        return changed, state

    def project(self, kernel: Tensor, step: Any = None) -> Tensor:
        """Return the constrained kernel, from a fresh start and to convergence."""
        tensor = real_tensor(kernel)
        if is_empty(tensor):
            return tensor
        start = self.initial_state(tensor)
        start = None if start is None else ops.convert_to_tensor(start)
        return updated([self.rule.converged], [tensor], [start], [self.level(step)])[0][0]

    def __call__(self, w: Any) -> Tensor:
        """Return the constrained kernel, and advance its state where an optimizer holds one.

        While an optimizer applies an update the kernel is returned as it is: all kernels are changed at its end.
        """
        update = current.get()
        if update is not None and not is_empty(w):
            ours = (
                type(self).__call__ is OperatorConstraint.__call__
            )  # what a subclass does with the result comes after
            if ours and update.later(self, w):
                return w.value
            constrained = None if ours else update.now(self, w)
            if constrained is not None:
                return constrained
        must = "must be a penalty such as `opnorm.SpectralRegularizer()`; a constraint is given as `kernel_constraint=`"
        require(getattr(w, "regularizer", None) is not self, "kernel_regularizer", must, self)
        if isinstance(w, keras.Variable) and self.initial_state(w) is not None:
            self._warn_once(w)
        return self.project(w, update.step if update is not None and self.norm.moves else None)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; JSON-serializable, where a function of the step is."""
        stored = keras.saving.serialize_keras_object
        return {name: stored(value) if callable(value) else value for name, value in self.arguments().items()}

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the constructor as they are."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return the constraint of a configuration."""
        live = keras.saving.deserialize_keras_object
        return cls(**{name: live(value) if isinstance(value, dict) else value for name, value in config.items()})

    def __repr__(self) -> str:
        return written(self)

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


@lru_cache(maxsize=1024)
def state_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of the state that `rule` keeps for a kernel of `shape`, None where it keeps none."""
    start = rule.start(shape, (0, 0))
    return None if start is None else start.shape


def is_empty(kernel: Any) -> bool:
    """Return whether a kernel has no entries, and so no norm: every rule leaves it as it is.

    Raises:
        ValueError: When it is no array, tensor or variable.
    """
    require(hasattr(kernel, "shape"), "kernel", "must be an array, tensor or variable", kernel)
    return 0 in tuple(kernel.shape)


def real_tensor(kernel: Any) -> Tensor:
    """Return a kernel as a tensor; raise unless it is real and floating point."""
    must = "must be an array, tensor or variable; a layer takes `kernel_constraint=`, a model `opnorm.constrain`"
    require(hasattr(kernel, "dtype") and hasattr(kernel, "shape"), "kernel", must, kernel)
    dtype = keras.backend.standardize_dtype(kernel.dtype)
    require("float" in dtype, "kernel", "must be real and floating point", dtype)
    return ops.convert_to_tensor(kernel)
