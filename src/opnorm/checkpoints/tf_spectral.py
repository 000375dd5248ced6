"""Kernels beside the vector of a spectral normalization, as the networks of TensorFlow 1 have it: read as either.

Whether the layer divides its kernel by u's estimate of the norm in each call, or the kernel was divided before it was
saved, is not in the file. Implementations differ in whether they do another power iteration, and on which side u is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array

_VECTOR = re.compile(r"(^|_)u(_?(var|vec|vector|hat))?(_\d+)?$|^(spectral_norm_u|vector_u|sn_u)$", re.IGNORECASE)
_FOLDER = re.compile(r"^(spectral_?norm\w*|sn|power_iteration)$", re.IGNORECASE)


def normalized(kernel: Named, found: Geometry, others: Mapping[str, Named]) -> Geometry:
    """Return the geometry of a kernel with the readings of a layer that divides it by its estimated norm in each call.

    Args:
        kernel: The kernel.
        found: What is done with it as it is stored.
        others: All tensors of the file.
    """
    vectors = [one for one in others.values() if _belongs(one, kernel)]
    if not vectors or found.operator is None:
        return found
    readings = tuple(reading for vector in vectors for reading in _divided(kernel, found, vector))
    text = f"{found.text}; or divided by its norm in each call, since {vectors[0].name!r} stands beside it"
    return found._replace(text=text, assumed=True, readings=(*found.readings, *readings))


def kernel_of(vector: Named, others: Mapping[str, Named]) -> str:
    """Return the kernel that a tensor (1, n) is the vector of, "" where it is none: that of a layer of one input, say."""
    if len(vector.shape) != 2 or vector.shape[0] != 1 or not _VECTOR.search(vector.name.rpartition("/")[2]):
        return ""
    return next((one.name for one in others.values() if min(one.shape, default=1) > 1 and _belongs(vector, one)), "")


def _belongs(vector: Named, kernel: Named) -> bool:
    """Return whether a tensor is the vector of a kernel, by its place and its length."""
    folder, _, last = vector.name.rpartition("/")
    above, _, inner = folder.rpartition("/")
    parents = {kernel.name, kernel.name.rpartition("/")[0]}
    if vector.name == kernel.name or len(kernel.shape) < 2:
        return False
    beside = folder in parents or (above in parents and _FOLDER.search(inner) is not None)
    count = prod(vector.shape)
    vector_like = count == max(vector.shape, default=0)
    return bool(beside and vector_like and _VECTOR.search(last) and count in _sides(kernel.shape))


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows and columns a kernel has as a matrix."""
    return prod(shape[:-1]), shape[-1]


def _divided(kernel: Named, found: Geometry, vector: Named) -> Iterator[Geometry]:
    """Yield the readings of a division by the norm, from either side that u fits, with and without an iteration."""
    for on_outputs in (True, False):
        if _sides(kernel.shape)[on_outputs] == prod(vector.shape):
            for again in (True, False):
                factor = _factor(vector, on_outputs=on_outputs, again=again)
                one = g.scaled(found, factor, f"divided by the norm that {vector.name!r} estimates")
                yield one._replace(readings=())
                yield from one.readings


def _factor(vector: Named, *, on_outputs: bool, again: bool) -> Callable[[Array], Array]:
    def factor(kernel: Array) -> Array:
        W = kernel.reshape(-1, kernel.shape[-1]).T
        W = W if on_outputs else W.T
        u = vector.read().astype(np.float64).reshape(-1)
        image = _unit(u) @ W
        sigma = float(np.linalg.norm(W @ _unit(image) if again else image))
        require(sigma > 0, f"{vector.name!r} estimates a norm of 0")
        return np.asarray(kernel / sigma)

    return factor


def _unit(vector: Array) -> Array:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length) if length else vector
