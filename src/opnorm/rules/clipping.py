"""A kernel whose singular values above a bound are lowered to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.iterations.clipping import clip
from opnorm.iterations.convolution_clipping import Ball, clip_convolution
from opnorm.iterations.power import Search, converged
from opnorm.rules.norms import Operator, first_vectors
from opnorm.rules.projecting import projected, wide

# What `SpectralNorm` does by default.
_USUAL = Search(steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)


@dataclass(frozen=True)
class Clip:
    """W = U S V^T <- U min(S, max_value) V^T, of each block; of a convolution nearly so.

    Args:
        max_value: The largest singular value allowed, positive.
        operator: What the singular values are of.
        search: How far the norm of a convolution is looked for ...
        climbs: ... and how often between the grid's frequencies.
    """

    max_value: float
    operator: Operator
    search: Search = _USUAL
    climbs: int = 1

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray | None:
        """Return None, for a convolution the first vectors; raise if the operator does not fit the shape."""
        vectors = first_vectors(self.operator, shape, 1, seed[1:])  # the same in every run: nothing is drawn for it
        return vectors if self.operator.operator == "convolution" else None

    @property
    def converged(self) -> "Clip":
        """The same rule, with the norm of a convolution found to convergence."""
        return replace(self, search=converged(self.search), climbs=3)

    @staticmethod
    def find(
        rules: Sequence["Clip"], kernels: Sequence[Tensor], states: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the clipped kernel of each convolution, None for a matrix, and the next states."""
        found = [rule._slid(*one) for rule, *one in zip(rules, kernels, states, strict=True)]
        return [kernel for kernel, _ in found], [state for _, state in found]

    def act(self, kernel: Tensor, found: Tensor) -> Tensor:
        """Return the clipped kernel."""
        if found is not None:
            return found
        return projected(kernel, self.operator, clip, self.max_value)

    def _slid(self, kernel: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.operator.operator == "matrix":
            return None, None
        xp = of(kernel)
        shape, ball = xp.shape(kernel), Ball(self.max_value, self.operator.strides, self.operator.groups)
        slides = xp.reshape(wide(kernel), self.operator.slides(shape))
        clipped, state = clip_convolution(slides, state, ball, self.search, self.climbs)
        return xp.cast(xp.reshape(clipped, shape), xp.dtype(kernel)), state
