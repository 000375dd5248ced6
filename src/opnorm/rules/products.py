"""The norm of what two kernels make together: of an attention's query and key, which bounds its logits."""

from typing import NamedTuple

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.iterations.matrices import product_maps
from opnorm.iterations.power import Search, random_directions
from opnorm.iterations.subspace import settled_pair_iteration

_SEARCH = Search(steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)  # what `SpectralNorm` does by default


class Product(NamedTuple):
    """The norm of W_q W_k^T, the largest of all heads."""

    norm: Tensor  # without axes, from below; nan if a kernel is not finite
    vectors: Tensor


def first_product_vectors(query: tuple[int, ...], key: tuple[int, ...]) -> np.ndarray:
    """Return the vectors that the first search starts from, `(count, heads, in)`, for kernels of these shapes."""
    return random_directions((min(2, query[2], query[0], key[0]), query[1], key[0]), (0,))


def product_norm(query: Tensor, key: Tensor, vectors: Tensor) -> Product:
    """Return the norm of the bilinear form x W_q W_k^T y of each head, the largest of them, and the next vectors.

    The logits of a head are at most |x| |y| times it, before they are divided by the root of the head's size.

    Args:
        query: `(in, heads, size)`, of any floating-point dtype.
        key: `(in, heads, size)`.
        vectors: From `first_product_vectors` or the last call.
    """
    found: Product = of(query).compiled(_product_norm)(None, (query, key, vectors))
    return found


def _product_norm(_: None, tensors: tuple[Tensor, Tensor, Tensor]) -> Product:
    xp, vectors = of(tensors[2]), tensors[2]
    query, key = (xp.cast(kernel, xp.dtype(vectors)) for kernel in tensors[:2])
    found = settled_pair_iteration(product_maps(query, key), vectors, _SEARCH)
    finite = xp.all_of(xp.isfinite(query)) & xp.all_of(xp.isfinite(key))
    largest = xp.reshape(xp.largest(found.sigma, (0, 1, 2)), ())
    return Product(xp.where(finite, largest, float("nan")), found.vectors)
