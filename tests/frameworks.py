"""The four frameworks that the algorithms run on, by the tensors handed in; NumPy, in float64, is the reference."""

from importlib import import_module

import numpy as np

FRAMEWORKS = ("numpy", "tensorflow", "jax", "torch")


def tensor(framework, array):
    """Return a NumPy array as a tensor of the framework; None stays None."""
    if array is None or framework == "numpy":
        return array
    make = {"tensorflow": "constant", "torch": "tensor"}.get(framework)
    return getattr(import_module(framework), make)(array) if make else import_module("jax.numpy").asarray(array)


def array(x):
    """Return a tensor of any framework as a NumPy array."""
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)
