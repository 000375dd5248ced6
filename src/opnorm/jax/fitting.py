"""A constraint fitted to an array of a pytree: the rule, and the array as the rule reads it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from opnorm.backends import Tensor
from opnorm.checks import require, require_constraint
from opnorm.jax.kinds import KernelGeometry
from opnorm.jax.paths import Leaves, is_hole, take_apart
from opnorm.jax.sites import Geometry
from opnorm.rules import Constraint, Rule, Scale, find

_GEOMETRY = {"axis": -1, "groups": 1, "strides": 1}  # arguments of a constraint, and what they are by default
GeometryLike = Geometry | Callable[[Any], Geometry]


class Fitted(NamedTuple):
    """A constraint with the geometry of one kernel of a pytree."""

    path: str
    place: int  # among the leaves
    constraint: Constraint
    geometry: KernelGeometry
    number: int  # seeds the first vectors

    def view(self, array: Tensor) -> Tensor:
        """Return the array as the rule reads it."""
        return self.geometry.view(array, self.constraint.operator)

    def unview(self, kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the array of `shape` of which `kernel` is the view."""
        return self.geometry.unview(kernel, self.constraint.operator, shape)

    def start(self, array: Tensor) -> np.ndarray | None:
        """Return the rule's first state; None where it needs none."""
        slides = self.geometry.slides(self.constraint.operator)
        return self.constraint.initial_state(jax.eval_shape(self.view, array) if slides else array, self.number)


def require_rule(rule: Any) -> None:
    """Raise unless `rule` is a constraint that leaves to the geometry what the geometry says."""
    require_constraint(isinstance(rule, Constraint), "rule", "opnorm.jax", rule)
    told = [name for name, default in _GEOMETRY.items() if getattr(rule, name, default) != default]
    must = f"must leave {' and '.join(told)} to `opnorm.jax.geometry(model, kernels={{pattern: KernelGeometry(...)}})`"
    require(not told, "rule", must, rule)


def table_of(geometry: GeometryLike, params: Any) -> Geometry:
    """Return what `geometry` says of `params`; raise unless it is a table, or a function that returns one."""
    told = geometry if isinstance(geometry, Geometry) else geometry(params)
    require(isinstance(told, Geometry), "geometry", "must be, or return, what `opnorm.jax.geometry` returns", told)
    return told


def fit_all(constraint: Constraint, geometry: GeometryLike, params: Any) -> tuple[Leaves, list[Fitted]]:
    """Return the leaves of `params`, and the constraint fitted to each kernel that is there.

    Raises:
        ValueError: When the geometry names none of the leaves, or one that is not there, or does not fit.
    """
    told, leaves = table_of(geometry, params), take_apart(params)
    fitted = []
    for index, (path, one) in enumerate(told.kernels.items()):
        place = place_of(leaves, path, "params")
        if place is not None and 0 not in leaves.leaves[place].shape:  # no entries, no norm
            fitted.append(_fit(constraint, path, place, one, leaves.leaves[place], index))
    if not fitted:
        raise ValueError(
            "Argument `params` must have a kernel of `geometry`: give it to the part of the optimizer that updates "
            f"them. Received: none of {', '.join(told.kernels)}"
        )
    return leaves, fitted


def place_of(leaves: Leaves, path: str, name: str) -> int | None:
    """Return the place of a kernel among the leaves; None where a mask or a filter has left a hole.

    Raises:
        ValueError: When there is nothing of that path.
    """
    try:
        return leaves.find(path)
    except KeyError:
        known = ", ".join(one for one, leaf in zip(leaves.names, leaves.leaves, strict=True) if not is_hole(leaf))
        raise ValueError(
            f"Argument `{name}` must have the kernel {path!r}, which `geometry` names: both must be of one model; of a "
            "part of it, `opnorm.jax.geometry(model, exclude=...)` leaves out the rest. "
            f"Received: {known or 'no leaves'}"
        ) from None


def apply_all(
    fitted: Sequence[Fitted],
    rules: Sequence[Rule],
    arrays: Sequence[Tensor],
    states: Sequence[Tensor],
    level: Tensor,
    least: float = 0.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all arrays as their rules make them, found together, and the next states.

    What the rules aim at is multiplied by the level, unless that is None. No array becomes smaller than `least` times
    what it was.
    """

    def applied(arrays: Sequence[Tensor], states: Sequence[Tensor], level: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        kernels = [one.view(array) for one, array in zip(fitted, arrays, strict=True)]
        found, following = find(rules, kernels, states, [level] * len(rules))
        changed = [_made(*one, least) for one in zip(rules, kernels, found, strict=True)]
        back = [one.unview(kernel, array.shape) for one, kernel, array in zip(fitted, changed, arrays, strict=True)]
        return back, following

    # GPUs and TPUs multiply float32 in fewer digits unless they are told: sigma would be known to 1e-2 only.
    with jax.default_matmul_precision("highest"):
        return without_explicit_axes(applied, list(arrays), list(states), level)


def _made(rule: Rule, kernel: Tensor, found: Any, least: float) -> Tensor:
    if isinstance(rule, Scale):
        return rule.act(kernel, jnp.maximum(found, least))
    made = rule.act(kernel, found)
    small = jnp.max(jnp.abs(made)) < least * jnp.max(jnp.abs(kernel))
    return jnp.where(small, least * kernel, made)


def without_explicit_axes(
    applied: Callable[..., tuple[list[Tensor], list[Tensor]]],
    arrays: list[Tensor],
    states: list[Tensor],
    *more: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return `applied(...)` of the rest; where shardings are part of the types, the compiler chooses those inside."""
    shardings = [jax.typeof(array).sharding for array in arrays]
    explicit = [one.mesh for one in shardings if AxisType.Explicit in one.mesh.axis_types]
    if not explicit:
        return applied(arrays, states, *more)
    everywhere = NamedSharding(explicit[0], PartitionSpec())
    result: tuple[list[Tensor], list[Tensor]] = auto_axes(
        applied, out_sharding=(shardings, [None if state is None else everywhere for state in states])
    )(arrays, states, *more)
    return result


def _fit(constraint: Constraint, path: str, place: int, geometry: KernelGeometry, array: Any, index: int) -> Fitted:
    shape, own = tuple(array.shape), geometry.rank or len(array.shape)
    real = jnp.issubdtype(array.dtype, jnp.floating)
    require(real, "params", f"must have real floating-point kernels; {path!r} is not", str(array.dtype))
    require(len(shape) >= own, "params", f"must have a kernel {path!r} of {own} axes or more", shape)
    stack = geometry.stack(shape)
    fitted = constraint.of(
        geometry.operator(constraint.operator, shape, constraint.blockwise), constraint.blockwise or bool(stack)
    )
    if stack and geometry.groups > 1 and not constraint.blockwise and isinstance(fitted.rule, Scale):
        raise ValueError(
            f"Argument `params` must not stack kernels that have groups: constrain them with `blockwise=True`, or "
            f"exclude them. Received: {path!r} of shape {shape}"
        )
    return Fitted(path, place, fitted, geometry, index)
