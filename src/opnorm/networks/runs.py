"""The parts of a network that are bounded as a whole: residual blocks, branches side by side, large convolutions.

A run goes from one value through which everything passes to another; what is between them is understood node by node
(`run_steps`). Chains of matrices are left to `chains`, which has a multiplier for each neuron; those with small
convolutions are bounded both ways, for here there are fewer multipliers, and an answer sooner.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import inf, prod
from typing import Any, NamedTuple

import numpy as np

from opnorm.bounds.certificates import up
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checkpoints.records import Graph, Node
from opnorm.networks.effects import Effect, Unbounded
from opnorm.networks.joint_bounds import Quick, better_bound, quick_bound
from opnorm.networks.linear_rules import MATRICES
from opnorm.networks.programs import Function, Map, Run, compiled
from opnorm.networks.reaches import Chain, Effects, propagate
from opnorm.networks.run_steps import IN_ORDER, Builder
from opnorm.networks.run_tensors import SLIDING, entry_of
from opnorm.networks.torus import half
from opnorm.networks.turns import in_turn

_NODES = 2000  # of one run
_ENTRIES = 2**24  # of its matrices at half the pixels' frequencies, complex: 128 MiB, and some copies of them
_WEIGHTS = 2**27  # numbers of the kernels of one run: 1 GiB


class Segment(NamedTuple):
    """The nodes between one value through which everything passes and the next."""

    source: str
    nodes: tuple[Node, ...]

    @property
    def last(self) -> str:
        """The value that comes out."""
        return self.nodes[-1].name


class _Place(NamedTuple):
    """Where a run is among the segments."""

    begin: int
    end: int
    work: float


def find_runs(
    graph: Graph, effects: Effects, deadline: Deadline = NEVER, tightening: float | None = None
) -> list[Chain]:
    """Return every longest run with two kernels and a function between them that is no chain of matrices.

    All have the quick bound before the multipliers of any are improved: that is worth most.

    Args:
        graph: The network, folded.
        effects: Of its nodes.
        deadline: Of all runs together, which share the time: what is found by then is proved.
        tightening: Seconds for each run at most. None: no limit.
    """
    parts = list(segments(graph))
    found: dict[_Place, Quick] = {}
    for place in sorted(_places(parts, effects, deadline), key=lambda place: place.work):
        quick = _tried(quick_bound, parts, place, effects, min(deadline, Deadline.after(tightening)))
        found.update({} if quick is None else {place: quick})
    wholes = {place: quick.bound for place, quick in found.items()}
    for place, soon in in_turn(list(found)[::-1], deadline):
        left = None if tightening is None else tightening - found[place].seconds
        better = _tried(better_bound, parts, place, effects, found[place], min(soon, Deadline.after(left)))
        wholes[place] = min((bound for bound in (wholes[place], better) if bound is not None), default=None)
    return [
        _chain(parts[place.begin : place.end], effects, whole)
        for place, whole in sorted(wholes.items())
        if whole is not None
    ]


def _tried(
    bound: Callable[..., Any], parts: Sequence[Segment], place: _Place, effects: Effects, *arguments: Any
) -> Any:
    """Return `bound` of a run and other arguments, None where it fails: without a run its nodes have their bounds."""
    try:
        run = _longest(parts, place.begin, effects)[1]  # anew: all runs may be larger than memory
        return None if run is None else bound(run, *arguments)
    except Exception:  # settings and weights come from files
        return None


def _places(parts: Sequence[Segment], effects: Effects, deadline: Deadline) -> Iterator[_Place]:
    begin = 0
    while begin < len(parts) and not deadline.passed:
        try:
            taken, run = _longest(parts, begin, effects)
        except Exception:  # settings and weights come from files
            taken, run = 1, None
        if run is not None:
            yield _Place(begin, begin + taken, run.work)
        begin += max(taken, 1)


def segments(graph: Graph) -> Iterator[Segment]:
    """Yield the parts between values through which everything passes that reaches an output."""
    nodes = _read_nodes(graph)
    last = {name: i for i, node in enumerate(nodes) for name in node.inputs} | dict.fromkeys(graph.outputs, len(nodes))
    live, gathered = {name for name in graph.inputs if name in last}, []
    source = next(iter(live)) if len(live) == 1 else None
    for i, node in enumerate(nodes):
        gathered.append(node)
        live = {name for name in (*live, node.name) if last[name] > i}
        if live == {node.name}:
            if source is not None:
                yield Segment(source, tuple(gathered))
            source, gathered = node.name, []


def _read_nodes(graph: Graph) -> list[Node]:
    """Return the nodes that reach an output."""
    read, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if node.name in read:
            kept.append(node)
            read.update(node.inputs)
    return kept[::-1]


def _longest(parts: Sequence[Segment], begin: int, effects: Effects) -> tuple[int, Run | None]:
    """Return how many segments the run takes that begins with this one, and the run: None where there is none."""
    kernel = _first_kernel(parts[begin])
    if kernel is None:
        return 0, None
    most = _most(parts, begin, effects)
    if _is_chain([node for part in parts[begin : begin + most] for node in part.nodes], effects):
        return most, None
    try:
        builder = Builder(parts[begin].source, entry_of(parts[begin].source, kernel))
    except Exception:  # not understood, or not read: settings and weights come from files
        return 0, None
    taken, steps = _added(builder, parts[begin : begin + most], effects)
    if not taken:
        return 0, None
    run = builder.run(parts[begin + taken - 1].last)
    return taken, _worth(run._replace(steps=run.steps[:steps]))


def _added(builder: Builder, parts: Sequence[Segment], effects: Effects) -> tuple[int, int]:
    """Return how many segments and steps there are up to the last map of those that were understood."""
    taken = steps = 0
    for count, part in enumerate(parts, 1):
        before = len(builder.steps)
        try:
            for node in part.nodes:
                builder.add(node, effects[node.name])  # type: ignore[arg-type]
            if len(part.nodes) > 1:
                _require_stationary(builder, part, before)
        except Exception:  # as above
            break
        if builder.entries > _ENTRIES:
            break
        if builder.steps and isinstance(builder.steps[-1], Map):
            taken, steps = count, len(builder.steps)
    return taken, steps


def _require_stationary(builder: Builder, part: Segment, before: int) -> None:
    """Raise NotStationaryError where a segment has no program, which one frequency of it tells."""
    entry, exit = builder.tensors[part.source], builder.tensors[part.last]
    size = (1,) * len(entry.sizes)
    compiled(Run(entry.name, entry.channels, tuple(builder.steps[before:]), exit.name, size), *half(size))


def _worth(run: Run) -> Run | None:
    """Return the run if a function stands between two maps, or beside a path around it: what it takes to gain."""
    maps = [i for i, step in enumerate(run.steps) if isinstance(step, Map)]
    between = any(isinstance(step, Function) for step in run.steps[maps[0] : maps[-1]])
    beside = any(isinstance(step, Function) and step.source == run.entry for step in run.steps)
    return run if between or (beside and sum(run.entry in step.sources for step in run.steps) > 1) else None


def _most(parts: Sequence[Segment], begin: int, effects: Effects) -> int:
    """Return how many segments a run may have, as far as that is told without their weights."""
    nodes = weights = 0
    for count, part in enumerate(parts[begin : begin + _NODES]):
        nodes += len(part.nodes)
        weights += sum(prod(weight.shape) for node in part.nodes for weight in node.weights.values())
        unbounded = any(isinstance(effects[node.name], Unbounded) for node in part.nodes)
        if nodes > _NODES or weights > _WEIGHTS or unbounded:
            return count
    return len(parts[begin : begin + _NODES])


def _first_kernel(segment: Segment) -> Node | None:
    """Return the first kernel that reads what goes in, or what scales and functions make of it."""
    same = {segment.source}
    for node in segment.nodes:
        if same.issuperset(node.inputs):
            if node.kind in (*MATRICES, *SLIDING):
                return node
            same.add(node.name)
    return None


def _is_chain(nodes: Sequence[Node], effects: Effects) -> bool:
    """Return whether `chains` bounds the same nodes, with a multiplier for each neuron."""
    readers = Counter(name for node in nodes for name in node.inputs)
    plain = all(len(node.inputs) == 1 for node in nodes) and max(readers.values(), default=0) <= 1
    return plain and all(_is_link(node, effects[node.name]) for node in nodes)


def _is_link(node: Node, effect: Effect | Unbounded) -> bool:
    return node.kind in (*MATRICES, *IN_ORDER) or (isinstance(effect, Effect) and effect.slopes is not None)


def _chain(parts: Sequence[Segment], effects: Effects, whole: float) -> Chain:
    nodes = tuple(node for part in parts for node in part.nodes)
    graph = Graph(nodes, (parts[0].source,), (parts[-1].last,))
    reaches = propagate(graph, effects)
    plain = reaches[parts[-1].last].norm if parts[-1].last in reaches else inf
    constant = up(whole + _rounding(nodes, effects) * plain)
    return Chain(nodes[0].name, parts[-1].last, parts[0].source, constant, plain)


def _rounding(nodes: Sequence[Node], effects: Effects) -> float:
    """Return what rounded kernels may have changed the run's constant by, in parts of the sum over all its paths.

    A kernel with a norm of c is off by at most e. On a path no kernel counts twice: its product of norms grows by at
    most the product of all 1 + e / c.
    """
    logarithm = 0.0
    for node in nodes:
        error, effect = float(node.options.get("rounding", 0.0)), effects[node.name]
        if error > 0 and isinstance(effect, Effect):
            logarithm += error / effect.constant if effect.constant > 0 else inf
    return float(np.expm1(logarithm)) * (1 + 2.0**-40)
