"""Every kernel of a model with its path and geometry, as a table that prints itself."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, NamedTuple

import jax.numpy as jnp

from opnorm.checks import require
from opnorm.jax.bare import guessed
from opnorm.jax.kinds import KernelGeometry, Shape, is_registered, kernels, several
from opnorm.jax.paths import is_array, take_apart
from opnorm.selection import Selection, choose
from opnorm.showing import Rows

_LAYERS = {"equinox": "opnorm.jax.equinox_layers", "flax": "opnorm.jax.flax_layers"}
_NONE = "no array of two axes or more that holds floating-point numbers"
_UNKNOWN = "no rule: register the layer's type with `opnorm.jax.kernels`, or say which by `kernels={pattern: ...}`"


class Kernel(NamedTuple):
    """One array of a model that is a kernel, or that may be one.

    Args:
        path: Its name: `"layers.0.kernel"`.
        shape: Its shape.
        geometry: What the layer makes of it; None where nothing is to be constrained.
        note: Why it is no kernel, or what else is to be known.
    """

    path: str
    shape: Shape
    geometry: KernelGeometry | None
    note: str = ""

    @property
    def names(self) -> Iterator[str]:
        """The path, and the paths of the layers on the way to it."""
        parts = self.path.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))

    @property
    def place(self) -> tuple[Any, str]:
        """What a function that chooses kernels is given: the shape, and the path."""
        return self.shape, self.path


class Geometry(Rows[Kernel]):
    """The table that `geometry` returns, in the model's order; `print` shows it, and so does a notebook."""

    headings = ("path", "shape", "outputs", "note")

    @property
    def kernels(self) -> Mapping[str, KernelGeometry]:
        """The geometry of each kernel that is to be constrained, by its path."""
        return {row.path: row.geometry for row in self if row.geometry is not None}

    @staticmethod
    def cells(row: Kernel) -> tuple[str, ...]:
        """Return the texts of a row."""
        return row.path, " x ".join(map(str, row.shape)), _outputs(row), row.note


def geometry(
    model: Any,
    *inputs: Any,
    keywords: Mapping[str, Any] | None = None,
    kernels: Mapping[str, KernelGeometry] | None = None,
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> Geometry:
    """Return which arrays of `model` are kernels, and which matrix or convolution each is.

    By the layers' types for `flax.nnx`, `equinox` and `flax.linen`; a type that is not known is a row that says so, and
    `opnorm.jax.kernels.register` teaches it. Of other pytrees by names and axes: two axes are (in, out); four or five,
    or three under a name with "conv" in it, are (*spatial, in, out).

    Args:
        model: A `flax.nnx.Module` or `equinox.Module`, whole or what a filter left of it; a `flax.linen.Module`; or a
            pytree of parameters.
        *inputs: Of a `flax.linen.Module` what its `init` takes after the key; arrays, or their `jax.ShapeDtypeStruct`.
        keywords: Of a `flax.linen.Module` what its `init` takes by name: `{"train": False}`.
        kernels: Geometries of your own, by patterns of paths: `{"experts.*": KernelGeometry(rank=2)}`.
        include: The kernels to constrain, by default all: a glob pattern, or several, of paths or of the layers on the
            way there (`"encoder"`, `"*.query"`); or a function of shape and path that returns whether to.
        exclude: The kernels to leave as they are, in the same way; it wins.

    Raises:
        ValueError: When there is no kernel, a pattern matches none, or one is not real and floating point.

    Example:
        >>> print(opnorm.jax.geometry(model, exclude="head"))
    """
    dtypes, rows = _found(model, inputs, {} if keywords is None else keywords)
    rows = _overridden(rows, {} if kernels is None else kernels)
    chosen = choose([row for row in rows if row.geometry is not None], include, exclude)
    if not chosen:
        seen = "; ".join(f"{row.path}: {row.note or 'not selected'}" for row in rows) or _NONE
        raise ValueError(
            "Argument `model` must have a kernel to constrain: `kernels={pattern: opnorm.jax.KernelGeometry(...)}` "
            f"says which arrays are. Received: a {type(model).__name__} with {seen}"
        )
    for row in chosen:
        sound = jnp.issubdtype(dtypes[row.path], jnp.floating)
        require(sound, "model", f"must have real floating-point kernels; {row.path!r} is not", str(dtypes[row.path]))
    paths = {row.path for row in chosen}
    return Geometry(row if row.path in paths else _not_selected(row) for row in rows)


Answer = KernelGeometry | str | None


def is_model(thing: Any) -> bool:
    """Return whether something is a module of flax or equinox, which may be a function of parameters too."""
    return isinstance(thing, _module_types()) or _is_linen(thing)


def _module_types() -> tuple[type, ...]:
    return tuple(import_module(home).MODULE for name, home in _LAYERS.items() if name in sys.modules)


def _is_linen(model: Any) -> bool:
    linen = sys.modules.get("flax.linen")
    return linen is not None and isinstance(model, linen.Module)


def _found(model: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[dict[str, Any], list[Kernel]]:
    """Return the dtypes of all arrays, and a row for each that is a kernel or may be one."""
    types = _module_types()
    if _is_linen(model):
        answers = import_module("opnorm.jax.linen").answered(model, inputs, keywords)
    else:
        require(not inputs, "inputs", "must be given for a flax.linen.Module only", inputs)
        require(not keywords, "keywords", "must be given for a flax.linen.Module only", keywords)
        answers = list(_walked(model, "", {}, lambda node: isinstance(node, types) or is_registered(node)))
        nnx = sys.modules.get("flax.nnx")
        answers = _tied(model, answers, nnx.Variable) if nnx is not None and isinstance(model, nnx.Module) else answers
    dtypes = {path: leaf.dtype for path, leaf, _ in answers}
    twice = [path for path, count in Counter(path for path, _, _ in answers).items() if count > 1]
    require(not twice, "model", "must not have two arrays of one path", twice)
    return dtypes, [_row(path, tuple(leaf.shape), what) for path, leaf, what in answers if what is not None]


def _walked(
    tree: Any, prefix: str, outer: Mapping[str, KernelGeometry | str], is_layer: Callable[[Any], bool]
) -> Iterator[tuple[str, Any, Answer]]:
    """Return the path of every array, the array, and what it is; `outer` is what a layer outside says of these."""
    told = {**kernels(tree), **outer}
    leaves = take_apart(tree, lambda node: node is not tree and is_layer(node))
    for name, leaf in zip(leaves.names, leaves.leaves, strict=True):
        path = f"{prefix}.{name}".strip(".")
        if is_layer(leaf) and leaf is not tree:
            inner = {
                key.removeprefix(f"{name}."): one for key, one in told.items() if key.startswith((f"{name}.", "*"))
            }
            yield from _walked(leaf, path, inner, is_layer)
        elif is_array(leaf):
            yield path, leaf, _answer(tree, name, path, leaf, told, is_layer(tree))


def _tied(model: Any, answers: list[tuple[str, Any, Answer]], variable: type) -> list[tuple[str, Any, Answer]]:
    """Return the answers with a reason for what is there again: a state of flax.nnx has shared variables once."""
    # Variables, not their arrays: a clone's are its own, and share the arrays until they are trained.
    whole = take_apart(model, lambda node: isinstance(node, variable))
    held = {name: id(leaf) for name, leaf in zip(whole.names, whole.leaves, strict=True)}
    first: dict[Any, str] = {}
    owners = [first.setdefault(held.get(path, path), path) for path, _, _ in answers]
    return [
        (path, leaf, what if owner == path or what is None else f"tied to {owner!r}")
        for owner, (path, leaf, what) in zip(owners, answers, strict=True)
    ]


def _answer(
    tree: Any, name: str, path: str, leaf: Any, told: Mapping[str, KernelGeometry | str], typed: bool
) -> Answer:
    may_be = len(leaf.shape) > 1 and jnp.issubdtype(leaf.dtype, jnp.inexact)
    if "*" in told:
        return told["*"] if may_be else None
    if name in told:
        return told[name]
    if not may_be or is_registered(tree):
        return None
    return _UNKNOWN if typed else guessed(path, tuple(leaf.shape))


def _row(path: str, shape: Shape, what: KernelGeometry | str) -> Kernel:
    if isinstance(what, str):
        return Kernel(path, shape, None, what)
    if what.rank is not None and len(shape) < what.rank:
        return Kernel(path, shape, None, f"has {len(shape)} axes; a kernel of its layer has {what.rank}")
    must = (
        f"must fit the array {path!r} of shape {shape}: axes that it has, each once, and groups that divide the outputs"
    )
    require(what.fits(shape), "kernels", must, what)
    return Kernel(path, shape, what, what.note)


def _overridden(rows: list[Kernel], given: Mapping[str, KernelGeometry]) -> list[Kernel]:
    """Return the rows with the user's own geometries where a pattern matches."""
    require(isinstance(given, Mapping), "kernels", "must map patterns to KernelGeometry", given)
    for pattern, one in given.items():
        require(isinstance(one, KernelGeometry), "kernels", "must map patterns to KernelGeometry", {pattern: one})
        known = [row.path for row in rows]
        found = any(fnmatchcase(path, pattern) for path in known)
        require(found, "kernels", f"must match arrays of the model with two axes or more: {', '.join(known)}", pattern)
        rows = [_row(row.path, row.shape, one) if fnmatchcase(row.path, pattern) else row for row in rows]
    return rows


def _not_selected(row: Kernel) -> Kernel:
    return row if row.geometry is None else row._replace(geometry=None, note="not selected")


def _outputs(row: Kernel) -> str:
    if row.geometry is None:
        return ""
    one = row.geometry
    axes = several(one.axis)
    named = f"ax{'is' if len(axes) == 1 else 'es'} {', '.join(map(str, axes))}"
    stack = one.stack(row.shape)
    return "".join(
        [
            named,
            f", {one.groups} groups" if one.groups > 1 else "",
            f", {' x '.join(map(str, stack))} kernels" if stack else "",
        ]
    )
