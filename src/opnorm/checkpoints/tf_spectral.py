"""Kernels beside the vector of a spectral normalization, as the networks of TensorFlow 1 have it: read as either.

Whether the layer divides its kernel by u's estimate of the norm in each call, or the kernel was divided before it was
saved, is not in the file. Implementations differ in whether they do another power iteration, and on which side u is.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array

_VECTOR = re.compile(r"(^|_)u(_?(var|vec|vector|hat))?(_\d+)?$|^(spectral_norm_u|vector_u|sn_u)$", re.IGNORECASE)
_SEVERAL = 3  # vectors that one kernel may have
_BESIDE = 64  # tensors that are looked at for each kernel
_FOLDER = re.compile(r"^(spectral_?norm\w*|sn|power_iteration)$", re.IGNORECASE)


def find_vectors(tensors: Mapping[str, Named]) -> dict[str, list[Named]]:
    """Return, by the name of a kernel, the vectors of spectral normalizations that stand beside or below it."""
    by_place: dict[str, list[Named]] = {}
    for vector in tensors.values():
        folder, _, last = vector.name.rpartition("/")
        above, _, inner = folder.rpartition("/")
        if _VECTOR.search(last) and prod(vector.shape) == max(vector.shape, default=0):
            by_place.setdefault(above if _FOLDER.search(inner) else folder, []).append(vector)
    found = {}
    for kernel in tensors.values() if by_place else ():
        if len(kernel.shape) > 1:
            beside = [*by_place.get(kernel.name, ()), *by_place.get(kernel.name.rpartition("/")[0], ())][:_BESIDE]
            sides = _sides(kernel.shape)
            own = [one for one in beside if one.name != kernel.name and prod(one.shape) in sides]
            if own:
                found[kernel.name] = own
    return found


def kernels_of(vectors: Mapping[str, list[Named]]) -> dict[str, str]:
    """Return, by the name of a vector that is stored as (1, n), its kernel."""
    pairs = ((one, kernel) for kernel, several in vectors.items() for one in several)
    return {one.name: kernel for one, kernel in pairs if len(one.shape) == 2 and one.shape[0] == 1}


def normalized(kernel: Named, found: Geometry, vectors: Sequence[Named]) -> Geometry:
    """Return the geometry of a kernel with the readings of a layer that divides it by its estimated norm in each call.

    Args:
        kernel: The kernel.
        found: What is done with it as it is stored.
        vectors: Those that may belong to it.
    """
    if not vectors or found.operator is None:
        return found
    if len(vectors) > _SEVERAL:
        return g.unknown("unknown", f"{len(vectors)} vectors of spectral normalizations stand beside it", assumed=True)
    readings = tuple(reading for vector in vectors for reading in _divided(kernel, found, vector))
    text = f"{found.text}; or divided by its norm in each call, since {vectors[0].name!r} stands beside it"
    return found._replace(text=text, assumed=True, readings=(*found.readings, *readings))


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
