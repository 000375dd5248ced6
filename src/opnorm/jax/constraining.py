"""A constraint as the last of optax's transformations.

`u` is to the constraint what momentum is to Adam, so it lives where momentum does: in the optimizer's state.
"""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from opnorm.backends import Tensor
from opnorm.checks import require
from opnorm.jax.fitting import Fitted, GeometryLike, apply_all, fit_all, place_of
from opnorm.jax.paths import take_apart
from opnorm.jax.sites import Geometry
from opnorm.jax.sites import geometry as by_type_or_name
from opnorm.rules import Constraint


class ConstraintState(NamedTuple):
    """What `constrain` keeps from update to update.

    Args:
        vectors: Of each kernel the singular vectors that are followed, by its path; float32.
    """

    vectors: dict[str, Tensor]


def constrain(rule: Constraint, geometry: GeometryLike = by_type_or_name) -> optax.GradientTransformationExtraArgs:
    """Return the transformation after which `optax.apply_updates(params, updates)` satisfies `rule`.

    It must be the last of a chain. Kernels are what `opnorm.jax.geometry` says, all of them found together; what is
    left of the update is the step from the old kernel to the constrained new one, to rounding in the parameters' dtype.
    Where the rule changes nothing, the update is as it came, bit for bit. A kernel without an update (None, or masked)
    is left alone.

    Args:
        rule: `opnorm.jax.SpectralNorm()` or another; the geometry is filled in.
        geometry: What `opnorm.jax.geometry(model)` returned, or a function that makes it of the parameters:
            `functools.partial(opnorm.jax.geometry, exclude="head")`. By default the layers' types where the parameters
            still have them, as equinox's do, names and axes elsewhere; give the model's for flax.

    Raises:
        ValueError: In `init` and `update`, when no kernel is there, or `params` is not given or of another model.

    Example:
        >>> optimizer = optax.chain(optax.adam(1e-3), opnorm.jax.constrain(opnorm.jax.SpectralNorm()))
    """
    require(isinstance(rule, Constraint), "rule", "must be one of opnorm.jax's constraints", rule)
    sound = isinstance(geometry, Geometry) or callable(geometry)
    require(sound, "geometry", "must be what `opnorm.jax.geometry(model)` returned, or a function of params", geometry)

    def init(params: Any) -> ConstraintState:
        if not isinstance(geometry, Geometry):
            _warn_of_strangers(geometry(params))
        leaves, fitted = fit_all(rule, geometry, params)
        starts = {one.path: one.start(leaves.leaves[one.place]) for one in fitted}
        return ConstraintState({path: start for path, start in starts.items() if start is not None})

    def update(updates: Any, state: ConstraintState, params: Any = None, **extra: Any) -> tuple[Any, ConstraintState]:
        if params is None:
            raise ValueError(
                "Argument `params` must be given: `optimizer.update(gradients, opt_state, params)`. Received: None"
            )
        leaves, fitted = fit_all(rule, geometry, params)
        steps = take_apart(updates)
        places = [place_of(steps, one.path, "updates") for one in fitted]
        moving = [(one, place) for one, place in zip(fitted, places, strict=True) if place is not None]
        before = [jnp.asarray(leaves.leaves[one.place]) for one, _ in moving]
        raw = [jnp.asarray(steps.leaves[place]) for _, place in moving]
        kernels = [kernel + step for kernel, step in zip(before, raw, strict=True)]
        due = [one for one, _ in moving]
        states = [_vectors(state, one) for one in due]
        changed, following = apply_all(due, [one.constraint.rule for one in due], kernels, states)
        steps_made = map(_step, before, raw, kernels, changed)
        new = {place: step for (_, place), step in zip(moving, steps_made, strict=True)}
        vectors = {one.path: one_state for one, one_state in zip(due, following, strict=True) if one_state is not None}
        return steps.replaced(new), ConstraintState({**state.vectors, **vectors})

    return optax.GradientTransformationExtraArgs(init, update)


def _step(before: Tensor, raw: Tensor, kernel: Tensor, changed: Tensor) -> Tensor:
    """Return the update that leads to the changed kernel, in the dtype of the one that came."""
    return jnp.where(changed == kernel, raw, (changed - before).astype(raw.dtype))


def _vectors(state: ConstraintState, one: Fitted) -> Tensor:
    kept = state.vectors.get(one.path)
    needed = hasattr(one.constraint, "seed") or getattr(one.constraint, "margin", 0) > 0
    if kept is None and needed:
        raise ValueError(
            f"Argument `state` must be of these parameters: call `init` on them. Received: no vectors of {one.path!r}"
        )
    return kept


def _warn_of_strangers(table: Geometry) -> None:
    strangers = [row for row in table if row.geometry is None and row.note != "not selected"]
    if strangers:
        warnings.warn(
            f"{len(strangers)} arrays that may be kernels are not constrained, {strangers[0].path!r} the first: "
            f"{strangers[0].note}. Remedy: `geometry=opnorm.jax.geometry(model)`, of which `print` shows all.",
            stacklevel=3,
        )
