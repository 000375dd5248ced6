"""The tensor operations that the iterations need, one file a framework with the same names.

`of(tensor)` finds the file from the tensor handed in. NumPy is the reference. Whatever has an operator (`+`, `@`,
`x[:1]`, `abs`) is written as one and stands in none of the files. Why they are our own: docs/decisions.md.
"""

import sys
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

Tensor = Any  # an array or tensor of NumPy, TensorFlow, JAX or PyTorch
TINY = float(np.finfo("float32").tiny)  # added to divisors: none is zero, and no other number notices
_FRAMEWORKS = {"jax": "jax", "jaxlib": "jax", "torch": "torch", "tensorflow": "tensorflow", "numpy": "numpy"}

__all__ = ["TINY", "Tensor", "of"]


def of(tensor: Tensor) -> Any:
    """Return the module of operations for the framework that `tensor` belongs to.

    Raises:
        TypeError: When it belongs to none of them.
    """
    kind: Any = type(tensor)
    return _of_type(kind)


@lru_cache(maxsize=256)
def _of_type(kind: Any) -> ModuleType:
    for one in kind.__mro__:
        framework = _FRAMEWORKS.get(one.__module__.partition(".")[0])
        if framework is not None:
            return import_module(f"opnorm.backends.{framework}")
    # JAX's tracers may have no class of JAX's among their bases that says so; its arrays are registered with an ABC.
    jax = sys.modules.get("jax")
    if jax is not None and issubclass(kind, jax.Array):
        return import_module("opnorm.backends.jax")
    raise TypeError(f"Argument `tensor` must be of NumPy, TensorFlow, JAX or PyTorch. Received: {kind}")
