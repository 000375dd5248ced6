"""The geometry of a model as `optax.contrib.muon` wants it."""

from typing import Any

import optax

from opnorm.jax.fitting import GeometryLike, fit_all
from opnorm.jax.kinds import KernelGeometry, several
from opnorm.jax.sites import geometry as by_type_or_name
from opnorm.rules import SpectralNorm


def dimension_numbers(params: Any, geometry: GeometryLike = by_type_or_name) -> Any:
    """Return the pytree `muon_weight_dimension_numbers` of `optax.contrib.muon`: the axes of each kernel, else None.

    Kernels with groups are None: Muon cannot say which blocks an axis has, and hands them to Adam. Axes that stack
    several kernels are batch axes. Needs optax 0.2.6.

    Args:
        params: The parameters that the optimizer is given.
        geometry: As for `opnorm.jax.constrain`.

    Example:
        >>> numbers = opnorm.jax.dimension_numbers(params)
        >>> optax.contrib.muon(1e-2, muon_weight_dimension_numbers=numbers)

    In flax.nnx, whose optimizer hands over variables at one time and their arrays at another, give Muon the function:

        >>> table = opnorm.jax.geometry(model)
        >>> numbers = functools.partial(opnorm.jax.dimension_numbers, geometry=table)
        >>> optax.contrib.muon(1e-2, muon_weight_dimension_numbers=numbers)
    """
    leaves, fitted = fit_all(SpectralNorm(), geometry, params)
    numbers = {one.place: _numbers(one.geometry, leaves.leaves[one.place].shape) for one in fitted}
    return leaves.rebuild([numbers.get(place) for place in range(len(leaves.leaves))])


def _numbers(geometry: KernelGeometry, shape: tuple[int, ...]) -> Any:
    if geometry.groups > 1:
        return None
    stack, rank = len(geometry.stack(shape)), len(shape)
    outputs = tuple(stack + axis % (rank - stack) for axis in several(geometry.axis))
    inputs = tuple(axis for axis in range(stack, rank) if axis not in outputs)
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)
