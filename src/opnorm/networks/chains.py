"""The runs of dense layers, small convolutions and activations in a network, each bounded as a whole."""

from collections import Counter
from itertools import pairwise
from math import inf, prod
from typing import NamedTuple

import numpy as np

from opnorm.bounds.certificates import up
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checkpoints.records import Graph, Node
from opnorm.checks import Array
from opnorm.networks.effects import Effect, Slopes, Unbounded
from opnorm.networks.folding import places
from opnorm.networks.kernel_products import form_of
from opnorm.networks.linear_rules import CONVOLUTIONS, MATRICES, kernel_of
from opnorm.networks.reaches import Chain, Effects
from opnorm.networks.run_steps import IN_ORDER
from opnorm.networks.sector_bounds import bound_chain
from opnorm.networks.sizes import matrix_of, small_at_size
from opnorm.networks.turns import in_turn
from opnorm.operators.convolution import Convolution

_ENTRIES = 2**27  # of the matrices of one run: 1 GiB


class _Link(NamedTuple):
    node: Node
    effect: Effect
    shape: tuple[int, ...] | None  # of its matrix; None: an activation


def find_chains(
    graph: Graph, effects: Effects, deadline: Deadline = NEVER, tightening: float | None = None
) -> list[Chain]:
    """Return every longest run with two matrices or more, nothing else reading what stands inside it.

    Args:
        graph: The network, folded.
        effects: Of its nodes.
        deadline: Of all runs together, which share the time: what is found by then is proved.
        tightening: Seconds for each run at most. None: no limit.
    """
    readers = Counter(name for node in graph.nodes for name in node.inputs) + Counter(graph.outputs)
    runs: dict[str, list[_Link]] = {}  # by the name of the last node so far
    for node in graph.nodes:
        effect = effects[node.name]
        if isinstance(effect, Unbounded) or len(node.inputs) != 1:
            continue
        before = runs.get(node.inputs[0], []) if readers[node.inputs[0]] == 1 else []
        linear = _linear(node)
        link = _Link(node, effect, None if linear is None else linear.shape)
        if link.shape and before and _outputs(before) != link.shape[1]:  # of a position, or of a whole example
            before = []
        if link.shape or (before and _slopes(link) is not None):
            if before:
                del runs[node.inputs[0]]
            before.append(link)
            runs[node.name] = before
    trimmed = [_until_matrix(run) for run in runs.values()]
    several = [run for run in trimmed if sum(link.shape is not None for link in run) > 1]
    turns = in_turn(sorted(several, key=_work, reverse=True), deadline)
    return [_bounded(run, min(soon, Deadline.after(tightening))) for run, soon in turns]


def _work(run: list[_Link]) -> float:
    """Return the multiplications of a factorization of each matrix, times three: a product takes as many."""
    return sum(float(sum(link.shape)) ** 3 for link in run if link.shape)


def _outputs(run: list[_Link]) -> int:
    return int(next(link.shape[0] for link in reversed(run) if link.shape))


def _slopes(link: _Link) -> Slopes | None:
    """Return the slopes of a function of each entry, None for what is none; entries may only be arranged anew."""
    moved = link.node.kind in IN_ORDER and link.node.options.get("data_format") != "channels_first"
    return (1.0, 1.0) if moved else link.effect.slopes


def _linear(node: Node) -> Array | Convolution | None:
    """Return what a dense node, (outputs, inputs), or a small convolution applies, None for other nodes."""
    try:
        if node.kind in CONVOLUTIONS:
            return small_at_size(node, kernel_of(node))
        return form_of(node).values.T if node.kind in MATRICES and "last" in places(node) else None
    except Exception:  # not one matrix, or not read
        return None


def _until_matrix(run: list[_Link]) -> list[_Link]:
    return run[: max(i for i, link in enumerate(run) if link.shape) + 1]


def _bounded(run: list[_Link], deadline: Deadline) -> Chain:
    slopes: list[Slopes] = []
    rows = 0
    for link in run:
        if link.shape:
            rows = link.shape[0]
            slopes.append((1.0, 1.0))  # of what follows: so far nothing
        else:
            slopes[-1] = _composed(slopes[-1], _fitted(_slopes(link) or (-inf, inf), rows))
    whole = _whole(run, slopes[:-1], deadline)
    names = run[0].node.name, run[-1].node.name, run[0].node.inputs[0]
    return Chain(*names, _with_rounding(whole, run), up(prod(link.effect.constant for link in run)))


def _whole(run: list[_Link], slopes: list[Slopes], deadline: Deadline) -> float | None:
    """Return the proved bound of the run as one, None where it has none, or needs too much memory or time."""
    matrices: list[Array] = []
    for link in run:
        if deadline.passed or sum(kept.size for kept in matrices) > _ENTRIES:
            return None
        linear = _linear(link.node) if link.shape else None
        if linear is not None:
            matrices.append(matrix_of(link.node, linear) if isinstance(linear, Convolution) else linear)
    if any(b.shape[1] != a.shape[0] for a, b in pairwise(matrices)):  # no network that could run
        return None
    if not deadline.affords(2.0 * _work(run)):  # each matrix takes a few factorizations
        return None
    return bound_chain(matrices, slopes, deadline)


def _composed(first: Slopes, second: Slopes) -> Slopes:
    ends = [np.multiply(a, b) for a in first for b in second]
    return np.minimum.reduce(np.broadcast_arrays(*ends)), np.maximum.reduce(np.broadcast_arrays(*ends))


def _fitted(slopes: Slopes, rows: int) -> Slopes:
    """Return the slopes of the rows of a matrix: what differs between positions, or stands in another order, as one."""
    low, high = np.asarray(slopes[0]), np.asarray(slopes[1])
    if low.size == rows or (low.ndim and low.shape[-1] == rows):
        return low.reshape(-1, rows).min(axis=0), high.reshape(-1, rows).max(axis=0)
    return float(low.min()), float(high.max())


def _with_rounding(whole: float | None, run: list[_Link]) -> float:
    """Return the bound of the run before its kernels were multiplied out and rounded.

    A Jacobian is a product of matrices and slopes; changing factor i by e_i changes it by at most e_i times the others.
    """
    if whole is None:
        return inf
    constants = [link.effect.constant for link in run]
    errors = [float(link.node.options.get("rounding", 0.0)) for link in run]
    share = sum(error / constant for error, constant in zip(errors, constants, strict=True) if constant > 0)
    return up(whole + prod(constants) * share)
