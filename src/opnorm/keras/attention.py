"""The products of an attention layer's query and key kernels, whose norm bounds its logits."""

from collections.abc import Iterable, Iterator
from math import nan
from typing import Any

import keras
import numpy as np
from keras import ops

from opnorm.backends import Tensor
from opnorm.bounds.pairs import bracket_heads
from opnorm.keras.sites import walk
from opnorm.rules import first_product_vectors, product_norm

Pair = tuple[Any, Any]  # two layers with kernels (in, heads, size)


_ATTENTIONS = keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention


class Logits:
    """The kernels of an attention's queries and keys, under a name, and the vectors of the last estimate."""

    ball: float | None = None

    def __init__(self, name: str, pair: Pair) -> None:
        self.name = name
        self._pair = pair
        query, key = self._kernels
        self._vectors: Tensor = ops.convert_to_tensor(first_product_vectors(tuple(query.shape), tuple(key.shape)))

    @property
    def _kernels(self) -> tuple[Tensor, Tensor]:
        query, key = (ops.stop_gradient(ops.convert_to_tensor(layer.kernel)) for layer in self._pair)
        return query, ops.repeat(key, query.shape[1] // key.shape[1], axis=1)  # a key of grouped queries serves several

    def estimate(self) -> float:
        """Return the norm of W_q W_k^T, of all heads the largest, from below, from the vectors of the last call."""
        norm, self._vectors = product_norm(*self._kernels, self._vectors)
        return float(norm)

    def proved(self) -> tuple[float, float]:
        """Return it between two proved numbers; both are nan for kernels that are not finite."""
        query, key = (np.asarray(ops.convert_to_numpy(ops.cast(one, _wide(one)))) for one in self._kernels)
        sound = bool(np.all(np.isfinite(query)) and np.all(np.isfinite(key)))
        return bracket_heads(query.astype(float), key.astype(float)) if sound else (nan, nan)


def attentions(model: keras.Layer, kernels: Iterable[Any]) -> Iterator[Logits]:
    """Yield the logits of each attention layer of `model`, both of whose kernels are among these variables."""
    known = {id(kernel) for kernel in kernels}
    for _, layer, _ in walk(model):
        parts = {part.name: part for _, part, parent in walk(layer) if parent is layer}
        if isinstance(layer, _ATTENTIONS) and {"query", "key"} <= parts.keys():
            pair: Any = (parts["query"], parts["key"])
            if all(id(one.kernel) in known for one in pair):
                yield Logits(pair[0].kernel.path.removesuffix("/query/kernel") + "/query_key", pair)


def _wide(tensor: Tensor) -> str:
    return "float64" if keras.backend.standardize_dtype(tensor.dtype) == "float64" else "float32"
