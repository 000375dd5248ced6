"""Which optimizers update a variable, and how many updates they have made."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import keras
from keras import ops
from keras.optimizers import Optimizer

from opnorm.backends import Tensor

# In the order in which they were built. Ids stay: an optimizer keeps its variables.
_updated: WeakKeyDictionary[Optimizer, frozenset[int]] = WeakKeyDictionary()


def note(optimizer: Optimizer, variables: Iterable[keras.Variable]) -> None:
    """Remember that the optimizer was built to update these variables."""
    _updated[optimizer] = frozenset(map(id, variables))


def optimizers_of(variable: keras.Variable) -> list[Optimizer]:
    """Return the optimizers that were built to update `variable`, before now, and are still in use."""
    return [optimizer for optimizer, held in list(_updated.items()) if id(variable) in held]


def updates(optimizer: Optimizer) -> Tensor:
    """Return how many updates an optimizer has made, an integer; those in which gradients accumulate are none."""
    return ops.convert_to_tensor(optimizer.iterations)


def last_step(variable: Any) -> Tensor:
    """Return the number, from 0, of the last update of a variable by the optimizer built last; 0 before the first."""
    optimizers = optimizers_of(variable)
    return ops.cast(ops.maximum(updates(optimizers[-1]) - 1, 0) if optimizers else 0, "float32")
