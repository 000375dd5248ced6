"""A kernel whose singular values above a bound are lowered to it, and those below another are raised."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.iterations.clipping import clip, clip_between
from opnorm.iterations.convolution_clipping import Ball, clip_convolution
from opnorm.iterations.matrices import output_shape, spread
from opnorm.iterations.power import Search, converged
from opnorm.rules.norms import Operator, Question, find_norms, first_vectors
from opnorm.rules.projecting import projected, wide
from opnorm.rules.targets import Levels, levelled, unit

_UNSEEN, _LEAST = 0.1, 3e-3  # of the margin, and of the norm at least: what a search from below may miss
_VECTORS = 8  # dozens of singular values stand at the last cut: any of them may be the next to leave the ball
# What `SpectralNorm` does by default.
_USUAL = Search(steps=1, extra_steps=100, tolerance=1e-4, perturbation=1e-3)


class Due(NamedTuple):
    """What `Clip.act` has to know of a matrix."""

    blocks: Tensor  # which to clip, `(groups,)`; None for all
    level: Tensor


@dataclass(frozen=True)
class Clip:
    """W = U S V^T <- U min(S, max_value) V^T, of each block; of a convolution nearly so.

    With a `min_value`, U max(min_value, min(S, max_value)) V^T: see `iterations.clipping.clip_between`.

    Args:
        max_value: The largest singular value allowed, positive.
        operator: What the singular values are of.
        margin: How far below `max_value`, relative, a norm that exceeds it is clipped; at least 0, below 1.
        search: How far the norm of a convolution, or of any kernel if there is a margin, is looked for ...
        climbs: ... and how often between the grid's frequencies.
        min_value: The smallest singular value, of a matrix without a margin; 0 leaves them as they are.
        rms: Whether both values are times sqrt(out / in) of a matrix, or of each of its blocks.
    """

    max_value: float
    operator: Operator
    margin: float = 0.0
    search: Search = _USUAL
    climbs: int = 1
    min_value: float = 0.0
    rms: bool = False

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray | None:
        """Return None, for a convolution or with a margin the first vectors; raise if the operator does not fit."""
        if self._slides or self.margin:
            return first_vectors(self.operator, shape, _VECTORS, seed[1:])  # the same in every run
        output_shape(shape, self.operator.axis, self.operator.groups)
        return None

    @property
    def converged(self) -> "Clip":
        """The same rule, with norms found to convergence."""
        return replace(self, search=converged(self.search), climbs=3)

    @staticmethod
    def find(
        rules: Sequence["Clip"], kernels: Sequence[Tensor], states: Sequence[Tensor], levels: Levels = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the clipped kernel of each convolution, of each matrix what is `Due`, and the next states."""
        levels = levels or [None] * len(rules)
        found: list[Tensor] = [Due(None, level) for level in levels]
        following = list(states)
        watched = [i for i, rule in enumerate(rules) if rule.margin and not rule._slides]
        questions = [Question(rules[i].operator, rules[i].search, blockwise=True) for i in watched]
        norms = find_norms(questions, [kernels[i] for i in watched], [states[i] for i in watched])
        for i, norm, state in zip(watched, *norms, strict=True):
            allowed = levelled(rules[i]._allowed * rules[i]._unit(kernels[i]), levels[i], norm)
            found[i], following[i] = Due(norm > allowed, levels[i]), state
        for i, rule in enumerate(rules):
            if rule._slides:
                found[i], following[i] = rule._slid(kernels[i], states[i], levels[i])
        return found, following

    def act(self, kernel: Tensor, found: Tensor) -> Tensor:
        """Return the clipped kernel."""
        if self._slides:
            return found
        if found.blocks is None:
            return self._clipped(kernel, found.level)
        return of(kernel).compiled(_clipped_where)(self, (kernel, *found))

    @property
    def _slides(self) -> bool:
        return self.operator.operator == "convolution"

    @property
    def _allowed(self) -> float:
        return (1 - max(_UNSEEN * self.margin, _LEAST)) * self.max_value

    def ends(self, kernel: Tensor) -> tuple[float, float]:
        """Return the largest and the smallest singular value of a matrix after an update, at level 1."""
        size = self._unit(kernel)
        return (1 - self.margin) * self.max_value * size, self.min_value * size

    def _unit(self, kernel: Tensor) -> float:
        return unit(self.rms, of(kernel).shape(kernel), self.operator.axis, self.operator.groups)

    def _clipped(self, kernel: Tensor, level: Tensor) -> Tensor:
        most, least = self.ends(kernel)
        if not least:
            return projected(kernel, self.operator, clip, most, level=level)
        return projected(kernel, self.operator, clip_between, most, least, level=level)

    def _slid(self, kernel: Tensor, state: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        xp, operator = of(kernel), self.operator
        most = levelled(self.max_value, level, state)
        shape, ball = xp.shape(kernel), Ball(most, operator.strides, operator.groups, self.margin)
        slides = xp.reshape(wide(kernel), operator.slides(shape))
        clipped, state = clip_convolution(slides, state, ball, self.search, self.climbs)
        return xp.cast(xp.reshape(clipped, shape), xp.dtype(kernel)), state


def _clipped_where(rule: Clip, tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    kernel, blocks, level = tensors
    xp = of(kernel)

    def lowered() -> Tensor:
        inside = rule._clipped(kernel, level)
        which = spread(xp.cast(blocks, "float32"), xp.shape(kernel), rule.operator.axis)
        return xp.where(which > 0, inside, kernel)

    return xp.cond(xp.any_of(blocks), lowered, lambda: kernel)
