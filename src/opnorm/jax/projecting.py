"""A pytree of parameters brought into its balls at once: averaged copies, loaded weights, loops of one's own."""

from typing import Any, TypeVar

import jax.numpy as jnp

from opnorm.jax.fitting import GeometryLike, apply_all, fit_all, require_rule
from opnorm.jax.sites import geometry as by_type_or_name
from opnorm.rules import Constraint

Params = TypeVar("Params")


def project(params: Params, rule: Constraint, geometry: GeometryLike = by_type_or_name, *, step: Any = None) -> Params:
    """Return `params` with every kernel as `rule` makes it, from a fresh start and to convergence.

    Each kernel then has the norm that the rule asks for, within 1e-3. Pure; nothing else of `params` is changed.

    Args:
        params: A pytree: parameters, an `equinox.Module`, a `flax.nnx.Module` or its state.
        rule: `opnorm.jax.SpectralNorm()` or another, for all kernels.
        geometry: As for `opnorm.jax.constrain`.
        step: How many updates came before, where the rule's norm is a function of it.

    Raises:
        ValueError: When there is no kernel, `geometry` is of another model, or the rule needs the `step`.

    Example:
        >>> params = opnorm.jax.project(params, opnorm.jax.SpectralNorm())
    """
    require_rule(rule)
    leaves, fitted = fit_all(rule, geometry, params)
    arrays = [jnp.asarray(leaves.leaves[one.place]) for one in fitted]
    starts = [one.start(array) for one, array in zip(fitted, arrays, strict=True)]
    starts = [None if start is None else jnp.asarray(start) for start in starts]
    rules = [one.constraint.rule.converged for one in fitted]
    changed, _ = apply_all(fitted, rules, arrays, starts, rule.target.at(step))
    projected: Params = leaves.replaced({one.place: array for one, array in zip(fitted, changed, strict=True)})
    return projected
