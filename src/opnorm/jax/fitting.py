"""A constraint fitted to an array of a pytree: the rule, and the array as the rule reads it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from opnorm.backends import Tensor
from opnorm.checks import require
from opnorm.jax.kinds import KernelGeometry
from opnorm.jax.paths import Leaves, is_hole, take_apart
from opnorm.jax.sites import Geometry
from opnorm.rules import Constraint, Rule, Scale, find

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

    def start(self, array: Tensor) -> Tensor:
        """Return the rule's first state; None where it needs none."""
        start = self.constraint.initial_state(jax.eval_shape(self.view, array), self.number)
        return None if start is None else jnp.asarray(start)


def fit_all(constraint: Constraint, geometry: GeometryLike, params: Any) -> tuple[Leaves, list[Fitted]]:
    """Return the leaves of `params`, and the constraint fitted to each kernel that is there.

    Raises:
        ValueError: When the geometry names none of the leaves, or one that is not there, or does not fit.
    """
    told = geometry if isinstance(geometry, Geometry) else geometry(params)
    require(isinstance(told, Geometry), "geometry", "must be, or return, what `opnorm.jax.geometry` returns", told)
    leaves = take_apart(params)
    fitted = []
    for index, (path, one) in enumerate(told.kernels.items()):
        place = place_of(leaves, path, "params")
        if place is not None:
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
            f"Argument `{name}` must have the kernel {path!r}, which `geometry` names: both must be of one model. "
            f"Received: {known or 'no leaves'}"
        ) from None


def apply_all(
    fitted: Sequence[Fitted],
    rules: Sequence[Rule],
    arrays: Sequence[Tensor],
    states: Sequence[Tensor],
    level: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all arrays as their rules make them, found together, and the next states.

    What the rules aim at is multiplied by the level, unless that is None.
    """

    def applied(arrays: Sequence[Tensor], states: Sequence[Tensor], level: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        kernels = [one.view(array) for one, array in zip(fitted, arrays, strict=True)]
        found, following = find(rules, kernels, states, [level] * len(rules))
        changed = [rule.act(kernel, what) for rule, kernel, what in zip(rules, kernels, found, strict=True)]
        back = [one.unview(kernel, array.shape) for one, kernel, array in zip(fitted, changed, arrays, strict=True)]
        return back, following

    # GPUs and TPUs multiply float32 in fewer digits unless they are told: sigma would be known to 1e-2 only.
    with jax.default_matmul_precision("highest"):
        return _without_explicit_axes(applied, list(arrays), list(states), level)


def _without_explicit_axes(
    applied: Callable[..., tuple[list[Tensor], list[Tensor]]],
    arrays: list[Tensor],
    states: list[Tensor],
    level: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return `applied(...)` of the rest; where shardings are part of the types, the compiler chooses those inside."""
    shardings = [jax.typeof(array).sharding for array in arrays]
    explicit = [one.mesh for one in shardings if AxisType.Explicit in one.mesh.axis_types]
    if not explicit:
        return applied(arrays, states, level)
    everywhere = NamedSharding(explicit[0], PartitionSpec())
    result: tuple[list[Tensor], list[Tensor]] = auto_axes(
        applied, out_sharding=(shardings, [None if state is None else everywhere for state in states])
    )(arrays, states, level)
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
