"""Compilation of what runs eagerly."""

from collections.abc import Callable
from typing import Any

import keras


def compiled_once(
    static_argnums: tuple[int, ...], *, graph: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator: on JAX the function is compiled once for each set of shapes and of static arguments.

    Without it JAX would compile the loop inside anew at every eager call, which takes far longer than the loop itself.
    Under an outer `jit`, and on other backends, it changes nothing.

    Args:
        static_argnums: The positions of the arguments that are no tensors.
        graph: On TensorFlow, make a graph of the function, likewise. It suits functions that are only called eagerly.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        backend = keras.config.backend()
        if backend == "tensorflow" and graph:
            return _graph(function, static_argnums)
        if backend != "jax":
            return function
        from jax import jit

        compiled: Callable[..., Any] = jit(function, static_argnums=static_argnums)
        return compiled

    return decorate


def _graph(function: Callable[..., Any], static_argnums: tuple[int, ...]) -> Callable[..., Any]:
    from tensorflow import function as graph_of

    graphs: dict[Any, Callable[..., Any]] = {}  # a graph each: TensorFlow warns of one function with many shapes

    def run(*args: Any) -> Any:
        key = tuple(x if i in static_argnums else (tuple(x.shape), str(x.dtype)) for i, x in enumerate(args))
        if key not in graphs:
            graphs[key] = graph_of(function).get_concrete_function(*args)
        return graphs[key](*(x for i, x in enumerate(args) if i not in static_argnums))

    return run
