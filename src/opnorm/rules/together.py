"""Many rules applied to many kernels at once."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.rules.scaling import Scale
from opnorm.rules.targets import Levels


class Rule(Protocol):
    """What is done to a kernel after an update: hashable, pure, on tensors of any framework.

    In two steps: `find` looks at many kernels at once and changes none; `act` then changes one. So kernels can be
    written one by one, in place where a framework has it, with no copy of all of them.
    """

    def start(self, shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray | None:
        """Return the state for the first update of a kernel of `shape`, None where no state is needed."""

    def __hash__(self) -> int:
        """Rules are told apart, and compiled for, by what they are."""

    @property
    def converged(self) -> "Rule":
        """The rule for a single use from a fresh start."""

    @staticmethod
    def find(
        rules: Sequence[Any], kernels: Sequence[Tensor], states: Sequence[Tensor], levels: Levels = None
    ) -> tuple[list[Any], list[Any]]:
        """Return what `act` needs to know of each kernel, and the next states."""

    def act(self, kernel: Tensor, found: Any) -> Tensor:
        """Return the changed kernel."""


def find(
    rules: Sequence[Rule],
    kernels: Sequence[Tensor],
    states: Sequence[Tensor],
    levels: Levels = None,
) -> tuple[list[Any], list[Any]]:
    """Return what each rule's `act` needs to know of its kernel, and the next states; none of it has a gradient.

    Args:
        rules: One a kernel.
        kernels: Tensors of one framework, floating point.
        states: What `start` or the last call returned.
        levels: What each rule's target is multiplied by in this step: tensors without axes, not part of what is
            compiled; None for 1.
    """
    if not kernels:
        return [], []
    levels = [None] * len(kernels) if levels is None else list(levels)
    pair: tuple[list[Any], list[Any]] = of(kernels[0]).compiled(_find)(
        tuple(rules), (list(kernels), list(states), levels)
    )
    return pair


def updated(
    rules: Sequence[Rule],
    kernels: Sequence[Tensor],
    states: Sequence[Tensor],
    levels: Levels = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return every kernel as its rule makes it, and the next states; none of it is part of a gradient."""
    found, states = find(rules, kernels, states, levels)
    changed = [rule.act(of(k).detach(k), f) for rule, k, f in zip(rules, kernels, found, strict=True)]
    return changed, states


def overwrite(rule: Rule, kernel: Tensor, found: Any) -> None:
    """Change a PyTorch tensor to what the rule makes of it, in place where it is only multiplied.

    A half-precision kernel is multiplied in float32, in one copy of it.
    """
    if isinstance(rule, Scale) and kernel.dtype.itemsize >= 4:
        kernel.mul_(found)
    elif isinstance(rule, Scale):
        kernel.copy_(kernel.float().mul_(found))
    else:
        kernel.copy_(rule.act(kernel, found))


def _find(
    rules: tuple[Rule, ...], tensors: tuple[list[Tensor], list[Tensor], list[Tensor]]
) -> tuple[list[Any], list[Any]]:
    kernels = [of(kernel).detach(kernel) for kernel in tensors[0]]
    found: list[Any] = [None] * len(rules)
    following: list[Any] = [None] * len(rules)
    for kind, places in _by_kind(rules).items():
        chosen = [[several[i] for i in places] for several in (rules, kernels, *tensors[1:])]
        for i, *one in zip(places, *kind.find(*chosen), strict=True):
            found[i], following[i] = one
    return found, following


def _by_kind(rules: Sequence[Rule]) -> dict[Any, list[int]]:
    places = defaultdict(list)
    for place, rule in enumerate(rules):
        places[type(rule)].append(place)
    return places
