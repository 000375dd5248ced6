"""Pytrees as leaves with names: `"layers.0.kernel"`, the same for a module, for its state and for its gradient."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_unflatten

_VARIABLE = GetAttrKey("value")  # what flax.nnx holds an array in: it is there in a state and not in its gradient
_LINEN = "params."  # what flax.linen's variables begin with, and its parameters do not


class Leaves(NamedTuple):
    """A pytree taken apart."""

    names: list[str]
    leaves: list[Any]
    rebuild: Callable[[list[Any]], Any]

    def find(self, name: str) -> int | None:
        """Return the place of a name among the leaves; None where a mask or a filter has left a hole.

        Raises:
            KeyError: When there is nothing of that name.
        """
        for place, (known, leaf) in enumerate(zip(self.names, self.leaves, strict=True)):
            if known == name or known == _LINEN + name:
                return None if is_hole(leaf) else place
            if is_hole(leaf) and f"{name}.".startswith(f"{known}." if known else ""):
                return None
        raise KeyError(name)

    def replaced(self, leaves: Mapping[int, Any]) -> Any:
        """Return the tree with other leaves at some of the places."""
        return self.rebuild([leaves.get(place, leaf) for place, leaf in enumerate(self.leaves)])


def is_hole(leaf: Any) -> bool:
    """Return whether something stands where `optax.masked` or `equinox.filter` left a leaf out."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def take_apart(tree: Any, stop: Callable[[Any], bool] = lambda node: False) -> Leaves:
    """Return the leaves of a pytree, and its holes, with their names; nodes for which `stop` holds are leaves."""
    pairs, structure = tree_flatten_with_path(tree, is_leaf=lambda node: is_hole(node) or stop(node))
    names = [named(path) for path, _ in pairs]
    return Leaves(names, [leaf for _, leaf in pairs], lambda leaves: tree_unflatten(structure, leaves))


def named(path: tuple[Any, ...]) -> str:
    """Return the name of a path in a pytree."""
    if len(path) > 1 and path[-1] == _VARIABLE:
        path = path[:-1]
    return str(keystr(path, simple=True, separator="."))


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array, or stands for one as in `jax.eval_shape`."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, jax.Device)
