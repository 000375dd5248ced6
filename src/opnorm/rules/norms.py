"""The norms of many kernels, each as the operator that it stands for, found together from below."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.backends import Tensor, of
from opnorm.iterations.frequencies import Strides, convolution_shape, sliding, start_shape, survey
from opnorm.iterations.maps import Maps, joined, stacked, unstacked
from opnorm.iterations.matrices import Axis, matrix_maps, output_shape, to_matrix
from opnorm.iterations.power import Search, random_directions, settled_power_iteration
from opnorm.iterations.subspace import settled_pair_iteration, settled_subspace_iteration

_SPARE = 2**16  # entries of padding that cost nothing: 256 KiB of float32


class Operator(NamedTuple):
    """Which operator a kernel stands for; the words are those of `opnorm.SpectralNorm`."""

    operator: str = "matrix"
    axis: Axis = -1
    strides: Strides = 1
    groups: int = 1

    def slides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape `(*spatial, cin / groups, cout)` of a kernel of `shape`, for a convolution."""
        return convolution_shape(shape, self.axis)


class Question(NamedTuple):
    """What is asked of one kernel."""

    operator: Operator
    search: Search
    climbs: int = 1  # searches between the grid's frequencies, for a convolution: 1 to 4
    blockwise: bool = False  # whether each block's norm counts by itself


def first_vectors(operator: Operator, shape: tuple[int, ...], count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return the vectors that a search on a kernel of `shape` starts from: isotropic, unit length, float32.

    Their shape is `(count, columns)`, `(count, groups, columns)` where there are several blocks, with no more vectors
    than a block has singular values; for a convolution `(1, groups * frequencies, 2 * columns)`.
    """
    if operator.operator == "convolution":
        return random_directions((1, *start_shape(operator.slides(shape), operator.strides, operator.groups)), seed)
    groups, columns = output_shape(shape, operator.axis, operator.groups)
    count = min(count, columns, prod(shape) // (groups * columns))  # a block has no more singular values
    return random_directions((count, *((groups,) if groups > 1 else ()), columns), seed)


def find_norms(
    questions: Sequence[Question], kernels: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the norm of each block of each kernel, `(groups,)`, from below, and the next vectors.

    Kernels are searched together where they ask alike; what is found of each is what it would be alone, but for
    rounding. A block that is zero or not finite has norm 0 and keeps its vectors.

    Args:
        questions: One a kernel.
        kernels: Of any floating-point dtype.
        vectors: From `first_vectors` or the last call; their dtype is that of the search.
    """
    norms: list[Tensor] = [None] * len(kernels)
    following: list[Tensor] = [None] * len(kernels)
    for places in _alike(_key(*one) for one in zip(questions, vectors, strict=True)):
        chosen = [(questions[i], kernels[i], vectors[i]) for i in places]
        search = _slide if chosen[0][0].operator.operator == "convolution" else _multiply
        for i, (norm, vector) in zip(places, search(*zip(*chosen, strict=True)), strict=True):
            norms[i], following[i] = norm, vector
    return norms, following


def _key(question: Question, vectors: Tensor) -> Hashable:
    return question.operator.operator, question.search, question.climbs, int(vectors.shape[0]), vectors.dtype


def _alike(keys: Iterable[Hashable]) -> list[list[int]]:
    places = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return list(places.values())


Answers = list[tuple[Tensor, Tensor]]


def _slide(questions: Sequence[Question], kernels: Sequence[Tensor], vectors: Sequence[Tensor]) -> Answers:
    question = questions[0]
    several = [_sliding(*one) for one in zip(questions, kernels, vectors, strict=True)]
    iterate = partial(settled_power_iteration, search=question.search)
    return [(found.sigma, found.vectors) for found in survey(several, iterate, vectors, question.climbs)]


def _sliding(question: Question, kernel: Tensor, vectors: Tensor) -> Tensor:
    xp, operator = of(kernel), question.operator
    shape = operator.slides(xp.shape(kernel))
    wide = xp.reshape(xp.cast(kernel, xp.dtype(vectors)), shape)
    return sliding(wide, operator.strides, operator.groups, question.blockwise)


def _multiply(questions: Sequence[Question], kernels: Sequence[Tensor], vectors: Sequence[Tensor]) -> Answers:
    maps = [_matrix(*one) for one in zip(questions, kernels, vectors, strict=True)]
    starts = [of(v).reshape(v, (v.shape[0], m.blocks, m.columns)) for m, v in zip(maps, vectors, strict=True)]
    answers: Answers = [(None, None)] * len(maps)
    for places in _padded(maps):
        together = joined([maps[i] for i in places])
        start = stacked([starts[i] for i in places], together.columns)
        iterate = settled_pair_iteration if start.shape[0] <= 2 else settled_subspace_iteration
        found = iterate(together, start, questions[0].search)
        several = [maps[i] for i in places]
        pieces = unstacked(found.sigma, several, [1] * len(several)), unstacked(found.vectors, several)
        for i, sigma, following in zip(places, *pieces, strict=True):
            xp = of(sigma)
            answers[i] = xp.reshape(sigma, (-1,)), xp.reshape(following, xp.shape(vectors[i]))
    return answers


def _matrix(question: Question, kernel: Tensor, vectors: Tensor) -> Maps:
    xp, operator, dtype = of(kernel), question.operator, of(vectors).dtype(vectors)

    def wide() -> Maps:
        matrix = to_matrix(xp.cast(kernel, dtype), operator.axis, operator.groups)
        return matrix_maps(matrix, question.blockwise)

    if xp.dtype(kernel) == dtype:
        return wide()
    parts = matrix_maps(to_matrix(kernel, operator.axis, operator.groups), question.blockwise).parts
    # Widened for each product, one kernel at a time: no copy of all of them in float32 is held.
    return Maps(lambda u: wide().times(u), lambda v: wide().transposed(v), parts)


def _padded(maps: Sequence[Maps]) -> list[list[int]]:
    """Return which operators are joined: their vectors, padded, take about twice their own room at most.

    Coupled blocks stay alone, and so do those whose norm one step finds: neither shares the others' loop.
    """
    order = sorted(range(len(maps)), key=lambda i: (_kind(maps[i], i), maps[i].rows + maps[i].columns), reverse=True)
    batches: list[list[int]] = []
    for i in order:
        last = batches[-1] if batches else []
        fits = last and _kind(maps[last[0]], last[0]) == _kind(maps[i], i)
        if fits and _room([maps[j] for j in [*last, i]]):
            last.append(i)
        else:
            batches.append([i])
    return batches


def _kind(maps: Maps, place: int) -> tuple[int, int]:
    exact = min(maps.rows, maps.columns) == 1
    return (2, place) if maps.coupled and not exact else (1 if exact else 0, 0)


def _room(several: Sequence[Maps]) -> bool:
    blocks = sum(maps.blocks for maps in several)
    padded = blocks * (max(maps.rows for maps in several) + max(maps.columns for maps in several))
    return padded <= 2 * sum(maps.blocks * (maps.rows + maps.columns) for maps in several) + _SPARE
