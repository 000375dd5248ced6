"""Compilation of what runs eagerly, which JAX alone needs."""

from collections.abc import Callable
from typing import Any

import keras


def compiled_once(static_argnums: tuple[int, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator: on JAX the function is compiled once for each set of shapes and of static arguments.

    Without it JAX would compile the loop inside anew at every eager call, which takes far longer than the loop itself.
    Under an outer `jit`, and on other backends, it changes nothing.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if keras.config.backend() != "jax":
            return function
        from jax import jit

        compiled: Callable[..., Any] = jit(function, static_argnums=static_argnums)
        return compiled

    return decorate
