"""A kernel multiplied by one factor, so that its norm is a target, or at most that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opnorm.backends import TINY, Tensor, of
from opnorm.iterations.matrices import spread
from opnorm.iterations.power import Search, converged
from opnorm.rules.norms import Operator, Question, find_norms, first_vectors
from opnorm.rules.targets import Levels, levelled, unit


@dataclass(frozen=True)
class Scale:
    """W <- W * value / sigma, or with `cap` W <- W / max(1, sigma / value); a zero kernel stays zero.

    Args:
        value: The target, positive.
        cap: Whether a kernel inside the ball is left alone, bit for bit.
        operator: What sigma is the norm of.
        search: How far sigma is looked for.
        companion: Whether a second vector follows the second singular value.
        blockwise: Whether each block is scaled by its own norm, instead of all by the largest.
        climbs: See `Question`.
        rms: Whether the target is `value * sqrt(out / in)` of a matrix, or of each of its blocks.
    """

    value: float
    cap: bool
    operator: Operator
    search: Search
    companion: bool = True
    blockwise: bool = False
    climbs: int = 1
    rms: bool = False

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
        """Return the state for the first update of a kernel of `shape`."""
        return first_vectors(self.operator, shape, 2 if self.companion else 1, seed)

    @property
    def converged(self) -> "Scale":
        """The same rule, with sigma found to convergence."""
        return replace(self, search=converged(self.search), climbs=3)

    @staticmethod
    def find(
        rules: Sequence["Scale"], kernels: Sequence[Tensor], states: Sequence[Tensor], levels: Levels = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factor for each kernel, to be broadcast over its entries, and the next states."""
        questions = [Question(rule.operator, rule.search, rule.climbs, rule.blockwise) for rule in rules]
        norms, following = find_norms(questions, kernels, states)
        factors = [
            rule._factor(*one) for rule, *one in zip(rules, norms, kernels, levels or [None] * len(rules), strict=True)
        ]
        return factors, following

    def act(self, kernel: Tensor, factor: Tensor) -> Tensor:
        """Return `factor * kernel`, multiplied in float32, or in float64 for a float64 kernel."""
        xp = of(kernel)
        kind = "float64" if xp.dtype(kernel) == "float64" else xp.dtype(factor)
        return xp.cast(xp.cast(kernel, kind) * xp.cast(factor, kind), xp.dtype(kernel))

    def _factor(self, norms: Tensor, kernel: Tensor, level: Tensor) -> Tensor:
        xp = of(norms)
        sigma = norms if self.blockwise else xp.largest(norms, (0,))
        value = self.value * unit(self.rms, xp.shape(kernel), self.operator.axis, self.operator.groups)
        value = levelled(value, level, norms)
        acts = sigma > value * (1.0 if self.cap else TINY)
        factor = xp.where(acts, value / (sigma + TINY), 1.0)
        if xp.shape(factor)[0] == 1:
            return xp.reshape(factor, ())
        return spread(factor, xp.shape(kernel), self.operator.axis)
