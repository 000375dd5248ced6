"""The kernels of a model, each with the norm that is meant, estimated during training or proved on request."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from math import nan
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from scipy.sparse.linalg import aslinearoperator

from opnorm.base import OperatorConstraint
from opnorm.bounds import Bounds, spectral_norm
from opnorm.compiled import compiled_once
from opnorm.convolution import Convolution
from opnorm.frequencies import Strides, start_shape, survey
from opnorm.iterations import Tensor, random_directions, settled_power_iteration
from opnorm.matrices import Axis, matrix_maps, output_shape, to_matrix
from opnorm.operators import BlockDiagonal

# The constraints' own defaults: from the last vectors one iteration, more while sigma moves, sigma within 1e-2.
_SEARCH = partial(settled_power_iteration, steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


class Meaning(NamedTuple):
    """Which operator a kernel stands for; the fields are `opnorm.SpectralNorm`'s arguments."""

    operator: str = "matrix"
    axis: Axis = -1
    strides: Strides = 1
    groups: int = 1

    def start(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the first vectors of a search on a kernel of `shape`."""
        if self.operator == "convolution":
            return random_directions((1, *start_shape(shape, self.strides, self.groups)), (0,))
        outputs = output_shape(shape, self.axis, self.groups)
        return random_directions((2 if outputs[-1] > 1 else 1, *outputs), (0,))

    def proved(self, kernel: Tensor) -> Bounds:
        """Return the norm between two proved numbers; both are nan for a kernel that is not finite."""
        if not bool(ops.all(ops.isfinite(kernel))):
            return Bounds(nan, nan)
        if self.operator == "convolution":
            return spectral_norm(Convolution(_host(kernel), strides=self.strides, groups=self.groups))
        matrix = _host(to_matrix(kernel, self.axis, self.groups))
        if self.groups == 1:
            return spectral_norm(matrix.reshape(-1, matrix.shape[-1]))
        return spectral_norm(BlockDiagonal([aslinearoperator(block) for block in matrix.swapaxes(0, 1)]))


class Kernel:
    """A kernel under watch: its name, its meaning, and the vectors of the last estimate."""

    def __init__(self, name: str, variable: keras.Variable, meaning: Meaning) -> None:
        self.name = name
        self.ball = radius(variable.constraint)
        self.meaning = meaning
        self._variable = variable
        self._vectors: Tensor = ops.convert_to_tensor(meaning.start(tuple(variable.shape)))

    @property
    def value(self) -> Tensor:
        """The kernel's entries now, without a gradient."""
        return ops.stop_gradient(self._variable.value)

    def estimate(self) -> Tensor:
        """Return sigma, from below, by power iteration from the vectors of the last call; nan if not finite."""
        sigma, self._vectors = _estimate(self.meaning, self.value, self._vectors)
        return sigma

    def proved(self) -> Bounds:
        """Return the norm between two proved numbers."""
        return self.meaning.proved(self.value)


def kernels_of(
    model: keras.Model, operator: str, include: tuple[str, ...], exclude: tuple[str, ...]
) -> Iterator[Kernel]:
    """Yield the trainable weights of `model` with two axes or more, under names that are all different.

    A weight with a constraint of opnorm's means what that constraint means. Others are matrices, the last axis their
    outputs, unless `operator` is "convolution" and a convolution layer says how it applies them.
    """
    layers = {id(layer.kernel): layer for layer in _convolutions(model)} if operator == "convolution" else {}
    taken: set[str] = set()
    for variable in model.trainable_variables:
        path = variable.path
        wanted = not include or _matches(path, include)
        if len(variable.shape) < 2 or not wanted or _matches(path, exclude):
            continue
        name = next(n for n in _numbered(path) if n not in taken)
        taken.add(name)
        yield Kernel(name, variable, _meaning(variable, layers.get(id(variable))))


def radius(constraint: Any) -> float | None:
    """Return the norm at which a constraint of opnorm's holds a kernel; None where it declares no number."""
    if not isinstance(constraint, OperatorConstraint):
        return None
    declared = getattr(constraint, "value", getattr(constraint, "max_value", 1.0))  # `Orthogonal` has neither: 1
    return float(declared) if isinstance(declared, float | int) else None


def _meaning(variable: keras.Variable, layer: Any) -> Meaning:
    constraint = variable.constraint
    if isinstance(constraint, OperatorConstraint):
        return Meaning(**{name: getattr(constraint, name) for name in Meaning._fields if hasattr(constraint, name)})
    if layer is None:
        return Meaning()
    dilated = any(rate > 1 for rate in layer.dilation_rate)
    strides = 1 if dilated else tuple(layer.strides)  # with both, stride 1 is the bound from above
    return Meaning("convolution", strides=strides, groups=getattr(layer, "groups", 1))


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _numbered(path: str) -> Iterator[str]:
    yield path
    number = 1
    while True:
        yield f"{path}_{number}"
        number += 1


def _convolutions(layer: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield the built convolution layers inside `layer`: Keras has no public way to list nested layers."""
    seen = set() if seen is None else seen
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)) and layer.built:
        yield layer
    for held in vars(layer).values():
        values = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else (held,)
        for value in values:
            if isinstance(value, keras.layers.Layer):
                yield from _convolutions(value, seen)


def _host(kernel: Tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(kernel))


@compiled_once(static_argnums=(0,), graph=True)
def _estimate(meaning: Meaning, kernel: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    kernel = ops.cast(kernel, "float32")
    if meaning.operator == "convolution":
        seen = survey(kernel, meaning.strides, meaning.groups, _SEARCH, vectors, 1)
        sigma, vectors = ops.max(seen.sigma), seen.vectors
    else:
        found = _SEARCH(matrix_maps(to_matrix(kernel, meaning.axis, meaning.groups)), vectors)
        sigma, vectors = ops.max(found.sigma), found.vectors
    return ops.where(ops.all(ops.isfinite(kernel)), sigma, nan), vectors
