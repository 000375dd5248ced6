"""The kernels of a model, each with the norm that is meant, estimated during training or proved on request."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import nan
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.sparse.linalg import aslinearoperator

from opnorm.backends import Tensor, of
from opnorm.bounds.brackets import spectral_norm
from opnorm.iterations.matrices import to_matrix
from opnorm.iterations.power import Search
from opnorm.keras.base import OperatorConstraint, is_empty
from opnorm.keras.optimizers import last_step
from opnorm.keras.sites import Kernel, PassedOver, find_kernels
from opnorm.keras.wrappers import SpectralNormalization
from opnorm.operators.convolution import Convolution
from opnorm.operators.linear import BlockDiagonal
from opnorm.rules import Operator, Question, find_norms, first_vectors
from opnorm.selection import Selection, choose

# The constraints' own defaults: from the last vectors one iteration, more while sigma moves, sigma within 1e-2.
_SEARCH = Search(steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)


def proved(meaning: Operator, kernel: Tensor) -> tuple[float, float]:
    """Return the norm between two proved numbers; both are nan for a kernel that is not finite."""
    array = _host(kernel)
    if not np.all(np.isfinite(array)):
        return nan, nan
    if meaning.operator == "convolution":
        slides = array.reshape(meaning.slides(array.shape))
        return spectral_norm(Convolution(slides, strides=meaning.strides, groups=meaning.groups))
    blocks = to_matrix(array, meaning.axis, meaning.groups).swapaxes(0, 1)
    return spectral_norm(blocks[0] if meaning.groups == 1 else BlockDiagonal(list(map(aslinearoperator, blocks))))


class Watched:
    """A kernel under watch: its name, its meaning, and the vectors of the last estimate.

    Inside `SpectralNormalization` it is what the wrapper makes of the stored kernel, and its ball the wrapper's.
    """

    def __init__(self, name: str, kernel: Kernel, operator: str, wrappers: tuple[SpectralNormalization, ...]) -> None:
        self.name = name
        variable: Any = kernel.variable
        self.variable = variable
        self._wrappers = wrappers
        if wrappers:
            self.meaning = Operator(**kernel.geometry.options(wrappers[-1].operator))
        else:
            self.meaning = _meaning(kernel, operator)
        self.vectors: Tensor = ops.convert_to_tensor(first_vectors(self.meaning, tuple(variable.shape), 2, (0,)))

    @property
    def ball(self) -> float | None:
        """The norm that is declared for the kernel now; None where none is."""
        if self._wrappers:
            return float(self._wrappers[-1].value)  # the innermost one acts last
        return radius(self.variable)

    @property
    def value(self) -> Tensor:
        """The kernel's entries now, as its layer multiplies with them, without a gradient."""
        with ExitStack() as stack:
            for wrapper in self._wrappers:
                stack.enter_context(wrapper.normalized())
            return ops.stop_gradient(self.variable.value)

    def estimate(self) -> float:
        """Return sigma, from below, by power iteration from the vectors of the last call; nan if not finite."""
        return float(estimates([self])[0])

    def proved(self) -> tuple[float, float]:
        """Return the norm between two proved numbers."""
        return proved(self.meaning, self.value)


def estimates(kernels: Sequence[Watched]) -> np.ndarray:
    """Return sigma of each kernel, from below, by power iteration from the vectors of the last call.

    It is nan for a kernel that is not finite. The values come from the device at once.
    """
    values = [kernel.value for kernel in kernels]
    questions = tuple(Question(kernel.meaning, _SEARCH) for kernel in kernels)
    compiled = of(values[0]).compiled(_estimates)
    sigmas, vectors = compiled(questions, (values, [kernel.vectors for kernel in kernels]))
    for kernel, following in zip(kernels, vectors, strict=True):
        kernel.vectors = following
    return _host(sigmas)


def _estimates(questions: tuple[Question, ...], tensors: tuple[list[Tensor], list[Tensor]]) -> tuple[Tensor, Any]:
    kernels, vectors = tensors
    norms, following = find_norms(questions, kernels, vectors)
    xp = of(norms[0])
    finite = [xp.reshape(xp.all_of(xp.isfinite(kernel)), (1,)) for kernel in kernels]
    sigmas = xp.concatenate([xp.largest(norm, (0,)) for norm in norms])
    return xp.where(xp.concatenate(finite), sigmas, nan), following


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
        variable = kernel.variable
        if id(kernel) in chosen and variable is not None and variable.trainable and not is_empty(variable):
            path = f"{variable.path}/normalized" if wrappers else variable.path
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


def radius(kernel: Any) -> float | None:
    """Return the norm at which a constraint of opnorm's holds a kernel now; None where there is none."""
    constraint = kernel.constraint
    if not isinstance(constraint, OperatorConstraint):
        return None
    axis, groups = getattr(constraint, "axis", -1), getattr(constraint, "groups", 1)
    step = last_step(kernel) if constraint.norm.moves else None
    return constraint.norm.ball(tuple(kernel.shape), axis, groups, step)


def _meaning(kernel: Kernel, operator: str) -> Operator:
    constraint = getattr(kernel.variable, "constraint", None)
    if isinstance(constraint, OperatorConstraint):
        return Operator(**{name: getattr(constraint, name) for name in Operator._fields if hasattr(constraint, name)})
    return Operator(**kernel.geometry.options(operator))


def _numbered(path: str) -> Iterator[str]:
    yield path
    number = 1
    while True:
        yield f"{path}_{number}"
        number += 1


def _host(kernel: Tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(kernel))
