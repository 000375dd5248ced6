"""A part of a network as tensors, maps and functions between them, brought to steps of `covariances`.

On one torus all tensors of an image have one stationary covariance, a matrix a frequency. A map with strides leads to a
coarser torus, one that reads all pixels to a vector: behind it nothing of the finer one may be needed any more, so that
such maps wait until they can be taken together.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.bounds.certificates import UNIT, gamma
from opnorm.checks import Array
from opnorm.networks.covariances import Bend, Cap, Channels, Linear, Program, Step
from opnorm.networks.torus import Frequencies, Taps

Slope = float | Array  # of all entries, or of each channel


class Part(NamedTuple):
    """What a tensor gets from another one."""

    source: str
    taps: Taps
    row: int = 0  # of the first channel it is added to


class Map(NamedTuple):
    """A tensor that is a sum of sliding maps of others."""

    name: str
    channels: int
    parts: tuple[Part, ...]
    strides: tuple[int, ...] = ()  # other than ones: its torus is coarser
    lands: bool = False  # it is a vector: every pixel is read

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return tuple(part.source for part in self.parts)


class Function(NamedTuple):
    """A tensor that is a function of another one, entry by entry, all slopes between `low` and `high`."""

    name: str
    source: str
    low: Slope = 0.0
    high: Slope = 1.0

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensor that it reads."""
        return (self.source,)


class Shorter(NamedTuple):
    """A tensor with `||z_c||^2 <= square ||h_c||^2` for every channel c of another one, h."""

    name: str
    source: str
    square: float
    strides: tuple[int, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensor that it reads."""
        return (self.source,)


Piece = Map | Function | Shorter


class Run(NamedTuple):
    """A part of a network with one tensor that goes in and one that comes out."""

    entry: str
    channels: int  # of the entry
    steps: tuple[Piece, ...]
    exit: str
    size: tuple[int, ...]  # of the coarsest torus; none: vectors
    work: float = 0.0  # multiplications of the recursion, about


class NotStationaryError(Exception):
    """Tensors on two tori are needed at once."""


Group = Sequence[Piece]  # several maps together, or one of the others


def compiled(run: Run, frequencies: Frequencies, weights: Array) -> Program:
    """Return the steps of a run at frequencies of its coarsest torus.

    Args:
        run: What is compiled.
        frequencies: Of the coarsest torus.
        weights: How many frequencies each stands for; behind the torus their mean counts.

    Raises:
        NotStationaryError: When it has no such steps.
    """
    groups = list(scheduled(run))
    levels = [frequencies]
    for group in reversed(groups):
        if not isinstance(group[0], Function) and prod(group[0].strides) > 1:
            levels.append(levels[-1].finer(group[0].strides))
    start = np.broadcast_to(np.eye(run.channels), (len(levels[-1].places), run.channels, run.channels))
    steps: list[Step] = []
    live = {run.entry: run.channels}
    for i, group in enumerate(groups):
        needed = {source for later in groups[i + 1 :] for step in later for source in step.sources} | {run.exit}
        found, live = _found(group, live, needed, levels, weights)
        steps += found
        levels = levels[:-1] if _leaves(group[0]) else levels
        levels = levels or [Frequencies(np.zeros((1, 0), np.int64), ())]
    return Program(start, steps)


def _found(
    group: Group, live: Mapping[str, int], needed: Set[str], levels: Sequence[Frequencies], weights: Array
) -> tuple[list[Step], dict[str, int]]:
    """Return the steps of a group, and what is live behind it."""
    first = group[0]
    kept = {name: n for name, n in live.items() if name in needed}
    if isinstance(first, Function) and not _is_even(first, kept):
        return _function(first, live, kept)
    if kept and (_leaves(first) or not isinstance(first, Map)) and not isinstance(first, Function):
        raise NotStationaryError(f"{', '.join(kept)} is needed behind {first.name}")
    if not isinstance(first, Map):
        steps: list[Step] = [] if list(live) == [first.source] else [_only(live, first.source)]
        square = first.square if isinstance(first, Shorter) else float(np.max(first.high)) ** 2
        fold = prod(first.strides) if isinstance(first, Shorter) else 1
        return [*steps, Cap(square, fold)], {first.name: live[first.source]}
    if first.lands and len(levels) > 1:
        raise NotStationaryError(f"{first.name} reads pixels that others still stride over")
    maps = {step.name: step.channels for step in group if isinstance(step, Map)}
    return [_linear(group, live, kept, levels[-1], weights)], {**kept, **maps}


def _leaves(step: Piece) -> bool:
    """Return whether a step is on another torus than what it reads."""
    return not isinstance(step, Function) and (prod(step.strides) > 1 or (isinstance(step, Map) and step.lands))


def _is_even(step: Function, kept: Mapping[str, int]) -> bool:
    """Return whether the slopes are in [-b, b], which is best said without the sign, and nothing else is needed."""
    return not kept and np.ndim(step.high) == 0 and bool(np.all(np.negative(step.low) == step.high))


def _only(live: Mapping[str, int], name: str) -> Linear:
    """Return the step that forgets all tensors but one."""
    return Linear(_rows(live, (name,)), np.zeros(0, np.intp), np.zeros((1, 0, 0)), np.zeros((0, 0)), 0.0)


def scheduled(run: Run) -> Iterator[Group]:
    """Yield all steps in an order in which maps to another torus come as late as may be, and together."""
    known, left = {run.entry}, list(run.steps)
    while left:
        ready = [step for step in left if known.issuperset(step.sources)]
        staying = [step for step in ready if not isinstance(step, Shorter) and not _leaves(step)]
        group = staying[:1] or _alike(ready)
        if not group:
            raise NotStationaryError("its steps have no order")
        yield group
        known.update(step.name for step in group)
        left = [step for step in left if step.name not in known]


def _alike(ready: Sequence[Piece]) -> list[Piece]:
    """Return the maps that lead to the torus to which the first one leads; without maps the first step."""
    maps = [step for step in ready if isinstance(step, Map)]
    return [step for step in maps if (step.strides, step.lands) == (maps[0].strides, maps[0].lands)] or [*ready[:1]]


def _rows(live: Mapping[str, int], names: Sequence[str] | Mapping[str, int]) -> Channels:
    """Return the numbers of the rows of some tensors."""
    starts = dict(zip(live, np.cumsum([0, *live.values()]), strict=False))
    found = [np.arange(starts[name], starts[name] + live[name]) for name in names]
    return np.concatenate([np.zeros(0, np.intp), *found]).astype(np.intp)


def _linear(
    group: Group, live: Mapping[str, int], kept: Mapping[str, int], frequencies: Frequencies, weights: Array
) -> Linear:
    maps = [step for step in group if isinstance(step, Map)]
    read = {part.source: live[part.source] for step in maps for part in step.parts}
    columns = dict(zip(read, np.cumsum([0, *read.values()]), strict=False))
    rows, count = np.cumsum([0, *(step.channels for step in maps)]), sum(read.values())
    parts = [
        (row + part.row, columns[part.source], part.taps)
        for row, step in zip(rows, maps, strict=False)
        for part in step.parts
    ]
    found = [frequencies.matrices(taps) for _, _, taps in parts]
    matrix = np.zeros((max(map(len, found)), rows[-1], count), np.result_type(*found))
    size = np.zeros(matrix.shape[1:])
    for (row, column, taps), values in zip(parts, found, strict=True):
        here = slice(row, row + values.shape[1]), slice(column, column + values.shape[2])
        matrix[:, *here] += values
        size[here] += taps.size
    error = max(taps.rounding for _, _, taps in parts) + gamma(4 * len(parts))
    keep, chosen = _rows(live, kept), _rows(live, read)
    if maps[0].lands:
        matrix = matrix * np.sqrt(weights / weights.sum())[:, None, None]
        return _landing(Linear(keep, chosen, matrix, size, error + gamma(8), len(weights), real=True), weights)
    fold = prod(maps[0].strides)
    return Linear(keep, chosen, matrix / np.sqrt(fold), size / np.sqrt(fold), error + gamma(8), fold)


def _landing(step: Linear, weights: Array) -> Linear:
    """Return the step with magnitudes for every frequency: of a weight of two, at most the root of two over all."""
    return step._replace(size=step.size * float(np.sqrt(weights.max() / weights.sum())) * (1 + gamma(8)))


def _function(step: Function, live: Mapping[str, int], kept: Mapping[str, int]) -> tuple[list[Step], dict[str, int]]:
    """Return the steps of a function, and what is live behind it.

    With slopes in [a, b] it is `a h + (b - a) u(h)`, u with slopes in [0, 1]: the same condition in other words.
    """
    count = live[step.source]
    low, high = (np.broadcast_to(np.asarray(slope, float), count) for slope in (step.low, step.high))
    across = {**kept, step.source: count} if low.any() else kept
    bend = Bend(_rows(live, across), _rows(live, (step.source,)))
    after = {**across, step.name: count}
    if not low.any() and (high == 1).all():
        return [bend], after
    both = (step.source, step.name) if low.any() else (step.name,)
    matrix = np.concatenate([np.diag(low), np.diag(high - low)][-len(both) :], axis=1)
    linear = Linear(_rows(after, kept), _rows(after, both), matrix[None], np.abs(matrix), 2 * UNIT)
    return [bend, linear], {**kept, step.name: count}
