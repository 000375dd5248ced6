"""Whole models: every constraint of a model applied at once."""

import keras

from opnorm.keras.base import OperatorConstraint


def project(model: keras.Model) -> None:
    """Apply every constraint of `model` now; spectral constraints to convergence, from a fresh start.

    After it each constrained kernel has the norm its constraint asks for, within 1e-3. Call it after loading weights,
    or after a step of an optimizer that is not Keras's. Frozen variables are left alone.

    Args:
        model: A built `keras.Model` or `keras.Layer`.
    """
    if not model.built:
        raise ValueError(f"Argument `model` must be built before it is projected. Received: model={model!r}")
    for variable in model.trainable_variables:
        constraint = variable.constraint
        if isinstance(constraint, OperatorConstraint):
            variable.assign(constraint.project(variable))
        elif constraint is not None:
            variable.assign(constraint(variable))
