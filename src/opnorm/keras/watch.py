"""The kernels of a model, each with the norm that is meant, estimated during training or proved on request."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from math import nan
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from scipy.sparse.linalg import aslinearoperator

from opnorm.backends.compiled import compiled_once
from opnorm.bounds.brackets import Bounds, spectral_norm
from opnorm.iterations.frequencies import Strides, convolution_shape, start_shape, survey
from opnorm.iterations.matrices import Axis, matrix_maps, output_shape, to_matrix
from opnorm.iterations.power import Tensor, random_directions, settled_power_iteration
from opnorm.keras.base import OperatorConstraint
from opnorm.keras.selection import Selection, choose
from opnorm.keras.sites import Kernel, PassedOver, find_kernels
from opnorm.keras.wrappers import SpectralNormalization
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal

# The constraints' own defaults: from the last vectors one iteration, more while sigma moves, sigma within 1e-2.
_SEARCH = partial(settled_power_iteration, steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)


class Meaning(NamedTuple):
    """Which operator a kernel stands for; the fields are `opnorm.SpectralNorm`'s arguments."""

    operator: str = "matrix"
    axis: Axis = -1
    strides: Strides = 1
    groups: int = 1

    def start(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the first vectors of a search on a kernel of `shape`."""
        if self.operator == "convolution":
            shape = convolution_shape(shape, self.axis)
            return random_directions((1, *start_shape(shape, self.strides, self.groups)), (0,))
        outputs = output_shape(shape, self.axis, self.groups)
        return random_directions((2 if outputs[-1] > 1 else 1, *outputs), (0,))

    def proved(self, kernel: Tensor) -> Bounds:
        """Return the norm between two proved numbers; both are nan for a kernel that is not finite."""
        if not bool(ops.all(ops.isfinite(kernel))):
            return Bounds(nan, nan)
        if self.operator == "convolution":
            array = _host(kernel).reshape(convolution_shape(tuple(kernel.shape), self.axis))
            return spectral_norm(Convolution(array, strides=self.strides, groups=self.groups))
        matrix = _host(to_matrix(kernel, self.axis, self.groups))
        if self.groups == 1:
            return spectral_norm(matrix.reshape(-1, matrix.shape[-1]))
        return spectral_norm(BlockDiagonal([aslinearoperator(block) for block in matrix.swapaxes(0, 1)]))


class Watched:
    """A kernel under watch: its name, its meaning, and the vectors of the last estimate.

    Inside `SpectralNormalization` it is what the wrapper makes of the stored kernel, and its ball the wrapper's.
    """

    def __init__(self, name: str, kernel: Kernel, operator: str, wrappers: tuple[SpectralNormalization, ...]) -> None:
        self.name = name
        variable: Any = kernel.variable
        self._variable = variable
        self._wrappers = wrappers
        if wrappers:
            self.ball: float | None = wrappers[-1].value  # the innermost one acts last
            self.meaning = Meaning(**kernel.geometry.options(wrappers[-1].operator))
        else:
            self.ball = radius(variable.constraint)
            self.meaning = _meaning(kernel, operator)
        self._vectors: Tensor = ops.convert_to_tensor(self.meaning.start(tuple(variable.shape)))

    @property
    def value(self) -> Tensor:
        """The kernel's entries now, as its layer multiplies with them, without a gradient."""
        with ExitStack() as stack:
            for wrapper in self._wrappers:
                stack.enter_context(wrapper.normalized())
            return ops.stop_gradient(self._variable.value)

    def estimate(self) -> Tensor:
        """Return sigma, from below, by power iteration from the vectors of the last call; nan if not finite."""
        sigma, self._vectors = _estimate(self.meaning, self.value, self._vectors)
        return sigma

    def proved(self) -> Bounds:
        """Return the norm between two proved numbers."""
        return self.meaning.proved(self.value)


def watched(
    model: keras.Model, operator: str, include: Selection | None, exclude: Selection | None
) -> tuple[list[Watched], list[PassedOver]]:
    """Return the trainable kernels of `model` under names that are all different, and the weights passed over.

    A kernel with a constraint of opnorm's means what that constraint means; any other one what its layer makes of it.

    Raises:
        ValueError: When a pattern matches no kernel, or a layer must be built before its kernels are known.
    """
    found = list(_found(model))
    places = [(one, wrappers) for one, wrappers in found if isinstance(one, Kernel)]
    chosen = {id(kernel) for kernel in choose([kernel for kernel, _ in places], include, exclude)}
    kernels: dict[str, Watched] = {}
    for kernel, wrappers in places:
        if id(kernel) in chosen and kernel.variable is not None and kernel.variable.trainable:
            path = f"{kernel.variable.path}/normalized" if wrappers else kernel.variable.path
            name = next(name for name in _numbered(path) if name not in kernels)
            kernels[name] = Watched(name, kernel, operator, wrappers)
    return list(kernels.values()), [one for one, _ in found if isinstance(one, PassedOver)]


def _found(
    model: keras.Layer, wrappers: tuple[SpectralNormalization, ...] = ()
) -> Iterator[tuple[Kernel | PassedOver, tuple[SpectralNormalization, ...]]]:
    """Yield what `find_kernels` does, and what is inside of wrappers with the wrappers around it, outermost first."""
    for one in find_kernels(model):
        if isinstance(one, PassedOver) and isinstance(one.layer, SpectralNormalization):
            layer = one.layer.layer
            for inner, around in _found(layer, (*wrappers, one.layer)):
                yield inner._replace(path=f"{one.path}/{layer.name}/{inner.path}".lstrip("/")), around
        else:
            yield one, wrappers


def radius(constraint: Any) -> float | None:
    """Return the norm at which a constraint of opnorm's holds a kernel; None where it declares no number."""
    if not isinstance(constraint, OperatorConstraint):
        return None
    declared = getattr(constraint, "value", getattr(constraint, "max_value", 1.0))  # `Orthogonal` has neither: 1
    return float(declared) if isinstance(declared, float | int) else None


def _meaning(kernel: Kernel, operator: str) -> Meaning:
    constraint = getattr(kernel.variable, "constraint", None)
    if isinstance(constraint, OperatorConstraint):
        return Meaning(**{name: getattr(constraint, name) for name in Meaning._fields if hasattr(constraint, name)})
    return Meaning(**kernel.geometry.options(operator))


def _numbered(path: str) -> Iterator[str]:
    yield path
    number = 1
    while True:
        yield f"{path}_{number}"
        number += 1


def _host(kernel: Tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(kernel))


@compiled_once(static_argnums=(0,), graph=True)
def _estimate(meaning: Meaning, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    kernel = ops.cast(kernel, "float32")
    if meaning.operator == "convolution":
        kernel = ops.reshape(kernel, convolution_shape(tuple(kernel.shape), meaning.axis))
        seen = survey(kernel, meaning.strides, meaning.groups, _SEARCH, vectors, 1)
        sigma, vectors = ops.max(seen.sigma), seen.vectors
    else:
        found = _SEARCH(matrix_maps(to_matrix(kernel, meaning.axis, meaning.groups)), vectors)
        sigma, vectors = ops.max(found.sigma), found.vectors
    return ops.where(ops.all(ops.isfinite(kernel)), sigma, nan), vectors
