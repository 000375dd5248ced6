"""A constraint as the last of optax's transformations.

`u` is to the constraint what momentum is to Adam, so it lives where momentum does: in the optimizer's state.
"""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from opnorm.backends import Tensor
from opnorm.checks import require
from opnorm.jax.bare import CONVOLUTION
from opnorm.jax.fitting import Fitted, GeometryLike, apply_all, fit_all, place_of, require_rule, table_of
from opnorm.jax.paths import Leaves, take_apart
from opnorm.jax.sites import Geometry, is_model
from opnorm.jax.sites import geometry as by_type_or_name
from opnorm.rules import Constraint

# What is left of a sum of two numbers 2**24 times as large is rounding, or zero, and a zero kernel stays zero.
_LEAST = 2.0**-20


class ConstraintState(NamedTuple):
    """What `constrain` keeps from update to update.

    Args:
        vectors: Of each kernel the singular vectors that are followed, by its path; float32.
        step: How many updates there were, where the norm is a function of it; None elsewhere.
    """

    vectors: dict[str, Tensor]
    step: Tensor | None = None


def constrain(rule: Constraint, geometry: GeometryLike = by_type_or_name) -> optax.GradientTransformationExtraArgs:
    """Return the transformation after which `optax.apply_updates(params, updates)` satisfies `rule`.

    It must be the last of a chain. Kernels are what `opnorm.jax.geometry` says, all of them found together; what is
    left of the update is the step from the old kernel to the constrained new one, to rounding of parameters and update.
    Where the rule changes nothing, the update is as it came, bit for bit. A kernel without an update (None, or masked)
    is left alone.

    Args:
        rule: `opnorm.jax.SpectralNorm()` or another; the geometry is filled in. Its norm may be a schedule of optax's,
            or a number that `optax.inject_hyperparams` hands in.
        geometry: What `opnorm.jax.geometry(model)` returned, or a function that makes it of the parameters:
            `functools.partial(opnorm.jax.geometry, exclude="head")`. By default the layers' types where the parameters
            still have them, as equinox's do, names and axes elsewhere; give the model's for flax.

    Raises:
        ValueError: In `init` and `update`, when no kernel is there, or `params` is not given or of another model.

    Example:
        >>> optimizer = optax.chain(optax.adam(1e-3), opnorm.jax.constrain(opnorm.jax.SpectralNorm()))
    """
    require_rule(rule)
    sound = isinstance(geometry, Geometry) or (callable(geometry) and not is_model(geometry))
    require(sound, "geometry", "must be what `opnorm.jax.geometry(model)` returned, or a function of params", geometry)

    def init(params: Any) -> ConstraintState:
        told = table_of(geometry, params)
        if told is not geometry:
            _warn_of_guesses(told)
        leaves, fitted = fit_all(rule, told, params)
        starts = {one.path: one.start(leaves.leaves[one.place]) for one in fitted}
        vectors = {path: jnp.asarray(start) for path, start in starts.items() if start is not None}
        return ConstraintState(vectors, jnp.zeros((), jnp.int32) if rule.target.moves else None)

    def update(updates: Any, state: ConstraintState, params: Any = None, **extra: Any) -> tuple[Any, ConstraintState]:
        if params is None:
            raise ValueError(
                "Argument `params` must be given: `optimizer.update(gradients, opt_state, params)`. Received: None"
            )
        must = "must be what `init` returned; `optimizer.init(params)` is that of a whole chain"
        require(isinstance(state, ConstraintState), "state", must, state)
        steps, due = _due(rule, geometry, updates, params)
        states = [_vectors(state, one) for one in due]
        fitted, wanted = [one.fitted for one in due], [one.wanted for one in due]
        rules = [one.constraint.rule for one in fitted]
        changed, following = apply_all(fitted, rules, wanted, states, rule.target.at(state.step), _LEAST)
        new = {one.place: one.step_to(kernel) for one, kernel in zip(due, changed, strict=True)}
        vectors = {one.path: kept for one, kept in zip(fitted, following, strict=True) if kept is not None}
        following_step = None if state.step is None else optax.safe_increment(state.step)
        return steps.replaced(new), ConstraintState({**state.vectors, **vectors}, following_step)

    return optax.GradientTransformationExtraArgs(init, update)


class _Due(NamedTuple):
    """A kernel that an update changes."""

    fitted: Fitted
    place: int  # among the updates
    before: Tensor
    step: Tensor  # as it came

    @property
    def wanted(self) -> Tensor:
        """The kernel that the update alone leads to, in float32 or wider."""
        kind = jnp.float64 if jnp.float64 in (self.before.dtype, self.step.dtype) else jnp.float32
        wanted: Tensor = self.before.astype(kind) + self.step.astype(kind)
        return wanted

    def step_to(self, kernel: Tensor) -> Tensor:
        """Return the update that leads to the constrained kernel, in the dtype of the one that came."""
        # Not kernel - before: p + ((p + u) - p) is not always p + u, and where the rule changes nothing, nor may this.
        step: Tensor = (self.step + (kernel - self.wanted)).astype(self.step.dtype)
        return step


def _due(rule: Constraint, geometry: GeometryLike, updates: Any, params: Any) -> tuple[Leaves, list[_Due]]:
    """Return the leaves of the updates, and the kernels that they change."""
    leaves, fitted = fit_all(rule, geometry, params)
    steps = take_apart(updates)
    due = []
    for one in fitted:
        place = place_of(steps, one.path, "updates")
        if place is not None:
            before, step = jnp.asarray(leaves.leaves[one.place]), jnp.asarray(steps.leaves[place])
            due.append(_Due(one, place, before, step))
    return steps, due


def _vectors(state: ConstraintState, one: _Due) -> Tensor:
    start, kept = one.fitted.start(one.before), state.vectors.get(one.fitted.path)
    if (None if start is None else start.shape) != (None if kept is None else kept.shape):
        found = "no vectors" if kept is None else f"vectors of shape {kept.shape}"
        raise ValueError(
            "Argument `state` must be of these parameters: call `init` on them, with this rule. Received: "
            f"{found} of {one.fitted.path!r}"
        )
    return kept


def _warn_of_guesses(table: Geometry) -> None:
    strangers = [row for row in table if row.geometry is None and row.note != "not selected"]
    guesses = [row for row in table if row.geometry is not None and row.note == CONVOLUTION]
    for several, what in ((strangers, "that may be kernels are not constrained"), (guesses, "are guessed")):
        if several:
            warnings.warn(
                f"{len(several)} arrays {what}, {several[0].path!r} the first: {several[0].note}. Remedy: "
                "`geometry=opnorm.jax.geometry(model)`, of which `print` shows all.",
                stacklevel=3,
            )
