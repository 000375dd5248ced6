"""Pytrees as leaves with names: `"layers.0.kernel"`, the same for a module, for its state and for its gradient."""

from collections.abc import Callable, Iterator, Mapping
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
    places: Mapping[str, int]

    def find(self, name: str) -> int | None:
        """Return the place of a name among the leaves; None where a mask or a filter has left a hole.

        Raises:
            KeyError: When there is nothing of that name.
        """
        full = name, _LINEN + name
        found = next((self.places[one] for one in full if one in self.places), None)
        if found is not None:
            return None if is_hole(self.leaves[found]) else found
        above = (self.places[outer] for one in full for outer in _above(one) if outer in self.places)
        if any(is_hole(self.leaves[place]) for place in above):
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
    places = {name: place for place, name in enumerate(names)}
    return Leaves(names, [leaf for _, leaf in pairs], lambda leaves: tree_unflatten(structure, leaves), places)


def named(path: tuple[Any, ...]) -> str:
    """Return the name of a path in a pytree."""
    if len(path) > 1 and path[-1] == _VARIABLE:
        path = path[:-1]
    return str(keystr(path, simple=True, separator="."))


def _above(name: str) -> Iterator[str]:
    """Return the names of what a leaf of that name is in, the whole tree first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(len(parts)))


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array, or stands for one as in `jax.eval_shape`."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, jax.Device)
