"""Whole models: every constraint of a model applied at once."""

import warnings
from collections.abc import Iterable

import keras
from keras import ops

from opnorm.checks import require
from opnorm.keras.base import OperatorConstraint, is_empty, real_tensor, require_layer
from opnorm.keras.optimizers import last_step
from opnorm.keras.writing import write
from opnorm.rules import find


def project(model: keras.Model) -> None:
    """Apply every constraint of `model` now; spectral constraints to convergence, from a fresh start.

    After it each constrained kernel has the norm its constraint asks for, within 1e-3. Call it after loading weights,
    or after a step of an optimizer that is not Keras's. Frozen variables are left alone. A norm that is a function of
    the step is that of the last update of the optimizer built last, or of step 0.

    Args:
        model: A built `keras.Model` or `keras.Layer`.

    Example:
        >>> table = opnorm.constrain(model, opnorm.SpectralNorm())
        >>> opnorm.project(model)
    """
    require_layer(model)
    require(model.built, "model", "must be built before it is projected", model)
    held = [variable for variable in model.variables if variable.constraint is not None]
    if not held:
        warnings.warn(
            f"`project` changed nothing: no kernel of '{model.name}' has a constraint. "
            "Remedy: `opnorm.constrain` the model, or give its layers a `kernel_constraint`.",
            stacklevel=2,
        )
    elif not any(variable.trainable for variable in held):
        warnings.warn(
            f"`project` left all {len(held)} constrained kernels of '{model.name}' alone, since they are frozen. "
            "Remedy: set `trainable = True` while they are projected.",
            stacklevel=2,
        )
    project_variables(model.trainable_variables)


def project_variables(variables: Iterable[keras.Variable]) -> None:
    """Apply the constraint of every variable that has one, opnorm's together, to convergence."""
    ours = []
    for variable in variables:
        constraint = variable.constraint
        if isinstance(constraint, OperatorConstraint) and type(constraint).__call__ is OperatorConstraint.__call__:
            ours += [] if is_empty(variable) else [variable]
        elif constraint is not None:
            variable.assign(constraint(variable))
    _project(ours)


def _project(kernels: list[keras.Variable]) -> None:
    rules = [kernel.constraint.rule.converged for kernel in kernels]
    starts = [kernel.constraint.initial_state(kernel) for kernel in kernels]
    states = [None if start is None else ops.convert_to_tensor(start) for start in starts]
    levels = [kernel.constraint.level(last_step(kernel)) for kernel in kernels]
    found, _ = find(rules, [real_tensor(kernel) for kernel in kernels], states, levels)
    write(kernels, rules, found)
