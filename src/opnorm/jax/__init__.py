"""The front end of plain JAX: constraints as the last of optax's transformations; without Keras.

    optimizer = optax.chain(optax.adam(1e-3), opnorm.jax.constrain(opnorm.jax.SpectralNorm()))

A rule is a pure function with state; the states of all kernels are in the optimizer's.
"""

from opnorm.jax.constraining import ConstraintState, constrain
from opnorm.jax.kinds import KernelGeometry, kernels
from opnorm.jax.muon import dimension_numbers
from opnorm.jax.normalizing import normalized
from opnorm.jax.projecting import project
from opnorm.jax.sites import Geometry, Kernel, geometry
from opnorm.rules import MaxSpectralNorm, Orthogonal, SpectralClip, SpectralNorm

__all__ = [
    "ConstraintState",
    "Geometry",
    "Kernel",
    "KernelGeometry",
    "MaxSpectralNorm",
    "Orthogonal",
    "SpectralClip",
    "SpectralNorm",
    "constrain",
    "dimension_numbers",
    "geometry",
    "kernels",
    "normalized",
    "project",
]


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
