"""The registry: every convolution that the laws of `test_convolution.py` are checked on. One line adds a family."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
from explicit import explicit_matrix, norm

from opnorm.operators.convolution import Convolution

_PAIRS = {1: ((2, 1),), 2: ((2, 1), (0, 3)), 3: ((1, 1), (0, 2), (1, 0))}  # as PyTorch and ONNX give them


@dataclass(frozen=True)
class Case:
    spans: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    groups: int
    padding: object
    kind: str
    seed: int

    def __str__(self):
        text = "x".join(map(str, self.spans)) + " on " + "x".join(map(str, self.sizes))
        padding = self.padding if isinstance(self.padding, str) else "pairs"
        steps = f"stride {self.strides} dilation {self.dilation_rate} groups {self.groups}"
        return f"{text} {padding} {steps} {self.kind}".replace(" ", "_")

    @cached_property
    def kernel(self):
        rng = np.random.default_rng(self.seed)
        channels = (int(rng.integers(1, 4)), self.groups * int(rng.integers(1, 4)))
        kernel = rng.standard_normal((*self.spans, *channels))
        if self.kind == "smooth":  # one sign: the norm sits at frequency zero
            return np.abs(kernel)
        if self.kind == "rough":  # alternating signs: the norm sits at the highest frequency
            return np.abs(kernel) * (-1.0) ** np.indices(self.spans).sum(axis=0)[..., None, None]
        if self.kind == "sparse":
            return kernel * (rng.random(kernel.shape) < 0.3)
        return kernel

    @cached_property
    def geometry(self):
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
        }

    @cached_property
    def operator(self):
        return Convolution(self.kernel, self.sizes, **self.geometry)

    @cached_property
    def matrix(self):
        return explicit_matrix(self.kernel, self.sizes, groups=self.groups, **_without(self.geometry, "groups"))

    @cached_property
    def truth(self):
        return norm(self.matrix)


def _without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


def _family(spans, sizes, strides, dilations, paddings):
    """Yield the product of everything that fits, the kinds of kernel in turn."""
    kinds = ("gaussian", "smooth", "rough", "gaussian", "sparse")
    choices = product(spans, sizes, strides, dilations, (1, 2), paddings)
    for seed, (span, size, stride, dilation, groups, padding) in enumerate(choices):
        rank = len(size)
        reach = max((k - 1) * dilation + 1 - n for k, n in zip(span, size, strict=True))
        if padding == "valid" and reach > 0:
            continue  # smaller than the kernel: an error, tested on its own
        padding = _PAIRS[rank] if padding == "pairs" else padding
        if isinstance(padding, tuple) and reach > 1:
            continue
        yield Case(span, size, (stride,) * rank, (dilation,) * rank, groups, padding, kinds[seed % 5], seed)


@lru_cache
def all_cases():
    line = _family(
        [(1,), (2,), (3,), (4,), (5,)], [(7,), (16,)], (1, 2, 3), (1, 2), ("same", "valid", "causal", "pairs")
    )
    plane = _family(
        [(1, 1), (2, 2), (3, 3), (2, 3), (5, 5)], [(5, 6), (7, 4)], (1, 2, 3), (1, 2), ("same", "valid", "pairs")
    )
    space = _family([(2, 2, 2), (3, 3, 3), (1, 3, 2)], [(4, 3, 5)], (1, 2), (1, 2), ("same", "valid", "pairs"))
    uneven = [
        Case((3, 4), (8, 7), (1, 2), (2, 1), 1, "same", "gaussian", 1),
        Case((3, 2), (9, 8), (3, 1), (1, 3), 2, "valid", "smooth", 2),
        Case((4, 1), (8, 5), (2, 3), (1, 1), 1, "same", "rough", 3),
        Case((1, 5), (3, 9), (1, 4), (1, 2), 3, "same", "gaussian", 4),
    ]
    return [*line, *plane, *space, *uneven]
