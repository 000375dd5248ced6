"""A constraint fitted to a kernel: the rule, and the kernel as the rule reads it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opnorm.backends import Tensor as AnyTensor
from opnorm.checks import require, to_positive
from opnorm.rules import Clip, Constraint, Orthogonalize, Rule, find, overwrite
from opnorm.torch.geometry import KernelGeometry
from opnorm.torch.shards import is_sharded, overwrite_shards
from opnorm.torch.sites import Kernel


class Fitted(NamedTuple):
    """A constraint with a kernel's geometry."""

    constraint: Constraint
    geometry: KernelGeometry
    rule: Rule
    start: np.ndarray | None  # the rule's first state

    def view(self, parameter: Tensor) -> Tensor:
        """Return the parameter as the rule reads it, in the same memory."""
        return self.geometry.view(parameter, self.constraint.operator)

    def level(self, step: int | None) -> float | Tensor | None:
        """Return the number that multiplies the norm in a step; None where it is the same in all.

        Raises:
            ValueError: When it is not positive, or needs a step that is not given.
        """
        target = self.constraint.target
        return to_positive("value", float(target.at(step))) if target.moves else target.level

    def state(self, held: AnyTensor, parameter: Tensor) -> Tensor | None:
        """Return the state `held`, in float32 beside the parameter; the first one if that does not fit the rule."""
        if self.start is None:
            return None
        if isinstance(held, Tensor) and tuple(held.shape) == self.start.shape:
            return held.to(parameter.device, torch.float32)
        return torch.tensor(self.start, device=parameter.device)


def fit(constraint: Constraint, kernel: Kernel, index: int = 0) -> Fitted:
    """Return the constraint with the kernel's geometry; kernels with different indices get different first vectors.

    Raises:
        ValueError: When the kernel does not fit its geometry.
    """
    geometry = kernel.geometry.asked(constraint.blockwise)
    _require_matrix(kernel, geometry, constraint)
    own = constraint.of(geometry.operator(constraint.operator), geometry.blockwise)
    start = own.initial_state(geometry.view(kernel.tensor, constraint.operator), index)
    return Fitted(own, geometry, own.rule, start)


def _require_matrix(kernel: Kernel, geometry: KernelGeometry, constraint: Constraint) -> None:
    """Raise for what cannot be done on the shards of a DTensor, as FSDP2 has them."""
    slides = constraint.operator == "convolution" and geometry.strides is not None
    must = "must be of kernels that are one matrix, not of blocks or what slides, where these are sharded"
    one = not slides and geometry.groups == 1
    require(one or not is_sharded(kernel.tensor), "rule", must, f"{constraint} for {kernel.path}")
    raises = isinstance(constraint.rule, Clip) and constraint.rule.min_value > 0
    must = "must have no `min_value` where kernels are sharded"
    require(not (raises and is_sharded(kernel.tensor)), "rule", must, f"{constraint} for {kernel.path}")


def overwrite_all(
    rules: Sequence[Rule],
    kernels: Sequence[Tensor],
    states: Sequence[Tensor | None],
    levels: Sequence[float | Tensor | None],
) -> list[Tensor | None]:
    """Change all kernels in place, as their rules say, those of one device together, and return the next states."""
    following = list(states)
    for places in by_device(kernels):
        due = [rules[i] for i in places]
        found, after = find(due, *([several[i] for i in places] for several in (kernels, states, levels)))
        for i, what, state in zip(places, found, after, strict=True):
            _overwrite(rules[i], kernels[i], what)
            following[i] = state
    return following


def _overwrite(rule: Rule, kernel: Tensor, what: AnyTensor) -> None:
    if isinstance(rule, Clip | Orthogonalize) and is_sharded(kernel):
        overwrite_shards(rule, kernel, what)
    else:
        overwrite(rule, kernel, what)


def by_device(kernels: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of the kernels on each device: the layers of a model may be spread over several."""
    places = defaultdict(list)
    for place, kernel in enumerate(kernels):
        places[kernel.device].append(place)
    return list(places.values())
