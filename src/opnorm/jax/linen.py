"""The kernels of a `flax.linen` module, whose layers exist only while it is called."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from opnorm.checks import require
from opnorm.jax.kinds import KernelGeometry, is_registered, kernels
from opnorm.jax.paths import is_array, take_apart

_UNKNOWN = "no rule: say which by `kernels={pattern: ...}`, or register the layer's type with `opnorm.jax.kernels`"
_WRAPPED = "made of other arrays in the forward pass, by flax's {}"
Told = dict[str, tuple[KernelGeometry | str, tuple[int, ...]]]


def answered(
    module: linen.Module, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> list[tuple[str, Any, KernelGeometry | str | None]]:
    """Return the path of every parameter, its shape and dtype, and what its layer makes of it; nothing is computed."""
    must = "must be what the module's `init` takes after the key: arrays, or `jax.ShapeDtypeStruct`s"
    require(bool(inputs or keywords), "inputs", must, inputs)
    told: Told = {}
    registered: set[str] = set()
    wrapped: dict[str, str] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        layer = context.module
        if isinstance(layer, linen.SpectralNorm | linen.WeightNorm):
            wrapped[".".join(layer.layer_instance.path)] = _WRAPPED.format(type(layer).__name__)
        if context.method_name == "__call__" and is_registered(layer):
            registered.add(".".join(layer.path))
            told.update(_of_layer(layer))
        return result

    with linen.intercept_methods(record):
        variables = _initial(module, inputs, keywords)
    told |= {path: (why, ()) for path in told for layer, why in wrapped.items() if path.startswith(f"{layer}.")}
    leaves = take_apart(variables.get("params", {}))
    return [
        (path, leaf, _answer(path, leaf, told, registered))
        for path, leaf in zip(leaves.names, leaves.leaves, strict=True)
    ]


def _initial(module: linen.Module, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """Return what `init` would, without numbers; what is no array is handed over as it is."""
    leaves, structure = jax.tree.flatten((tuple(inputs), dict(keywords)))
    places = [place for place, leaf in enumerate(leaves) if is_array(leaf)]

    def init(key: Any, arrays: Sequence[Any]) -> Any:
        given = dict(zip(places, arrays, strict=True))
        several, named = structure.unflatten([given.get(place, leaf) for place, leaf in enumerate(leaves)])
        return module.init(key, *several, **named)

    return jax.eval_shape(init, jax.random.key(0), [leaves[place] for place in places])


def _of_layer(layer: Any) -> Told:
    leaves = take_apart(dict(layer.variables.get("params", {})))
    shapes = {name: tuple(leaf.shape) for name, leaf in zip(leaves.names, leaves.leaves, strict=True)}
    prefix = ".".join(layer.path)
    several = kernels(layer).items()
    return {f"{prefix}.{name}".strip("."): (what, shapes[name]) for name, what in several if name in shapes}


def _answer(path: str, leaf: Any, told: Told, registered: set[str]) -> KernelGeometry | str | None:
    if path not in told:
        single = len(leaf.shape) < 2 or not jnp.issubdtype(leaf.dtype, jnp.inexact)
        return None if single or path.rpartition(".")[0] in registered else _UNKNOWN
    what, shape = told[path]
    inside = tuple(leaf.shape)[len(leaf.shape) - len(shape) :] == shape
    return what if isinstance(what, str) or inside else "stacked along another axis than the first"
