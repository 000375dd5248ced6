"""A Lipschitz bound of a whole network in the 2-norm, from its graph and the proved norms of its kernels.

What each node does to a distance is a rule of its kind; this file puts the nodes together (`docs/lipschitz.md`).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import inf, log
from types import MappingProxyType
from typing import Any, NamedTuple

import opnorm.networks.reduction_rules  # noqa: F401 - its rules are registered
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.checkpoints.records import CheckpointError, Graph, Node
from opnorm.networks.chains import find_chains
from opnorm.networks.distances import side_by_side
from opnorm.networks.effects import RULES, BoundWeight, Effect, Unbounded, is_training
from opnorm.networks.folding import fold, split
from opnorm.networks.linear_rules import bound_weight, of_activation
from opnorm.networks.neighbours import Pair, neighbours
from opnorm.networks.reaches import Chain, propagate
from opnorm.networks.runs import find_runs
from opnorm.networks.shape_rules import MEETINGS
from opnorm.tables import aligned, frame, html_lines, html_table, number, printable

_EITHER_WAY = (*MEETINGS, "Mul", "Multiply", "Div", "MatMul", "Gemm", "Where")  # their first input may be the constant
_NAMED = 4  # steps without a constant that a prompt names
_CHAIN = "chain"  # the kind of a step for a run that was bounded as a whole
_COLUMNS = ("name", "kind", "constant", "share", "rule")
_NUMBERS = ("constant", "share")


class Step(NamedTuple):
    """One node of a network, or several that were joined, and what it does to a distance."""

    name: str
    kind: str
    constant: float | None  # None: no finite constant
    rule: str  # why this number, or why none


class NetworkBound(NamedTuple):
    """The Lipschitz constant of a network in the 2-norm, as an interval: `lower <= constant <= upper`."""

    lower: float | None  # None: not asked for, or not to be had
    upper: float | None  # proved; None: unknown, for the reasons in `unknown`
    method: str  # what gave `upper`
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()  # neighbouring kernels, the pair whose product of norms gives most away first

    @property
    def ratio(self) -> float | None:
        """How far apart the ends are: `upper / lower`, None when one is missing."""
        return self.upper / self.lower if self.upper is not None and self.lower else None

    @property
    def unknown(self) -> tuple[Step, ...]:
        """The nodes without a finite constant."""
        return tuple(step for step in self.steps if step.constant is None)

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Of each step the logarithm of its constant, over the sum of all magnitudes: where the bound comes from.

        Above 0 it stretches, below 0 it shrinks. None for runs bounded as a whole, and for what has no logarithm.
        """
        logs = [log(step.constant) if step.constant and step.kind != _CHAIN else None for step in self.steps]
        total = sum(abs(one) for one in logs if one is not None)
        return tuple(None if one is None else one / total if total else 0.0 for one in logs)

    def to_text(self) -> str:
        """Return the bound, and a line for each step: what it does to a distance, or why that is not known."""
        rows = [[printable(text) for text in row] for row in self._rows()]
        notes = [f"note: {printable(note)}\n" for note in self.notes]
        table = [aligned(_COLUMNS, rows, _NUMBERS), "\n"] if rows else []
        return "".join([*table, *(f"{line}\n" for line in (self._summary(), *self._apart())), *notes])

    def to_pandas(self) -> Any:
        """Return the steps as a pandas DataFrame; a constant that is not known is NaN. Needs pandas."""
        return frame([step._asdict() for step in self.steps], Step._fields, ("constant",))

    def __repr__(self) -> str:
        return f"NetworkBound({self._summary()}; {len(self.steps)} steps: .to_text() lists them)"

    def _repr_html_(self) -> str:
        lines = html_lines([self._summary(), *self._apart()])
        return lines + html_table(_COLUMNS, self._rows(), _NUMBERS) + html_lines(self.notes)

    def _rows(self) -> list[list[str]]:
        shares = ["-" if share is None else f"{share:.0%}" for share in self.shares]
        pairs = zip(self.steps, shares, strict=True)
        return [[step.name, step.kind, number(step.constant), share, step.rule] for step, share in pairs]

    def _apart(self) -> list[str]:
        """Return a line on the pair of neighbours that costs most, none where there is no pair."""
        return [f"costliest neighbours: {pair.text}" for pair in self.pairs[:1]]

    def _summary(self) -> str:
        ends = f"lower={number(self.lower)}, upper={number(self.upper)}"
        return f"{ends}, by {self.method}" if self.upper is not None else f"{ends}: {self._why_unknown()}"

    def _why_unknown(self) -> str:
        names = [f"{step.name} ({step.kind})" for step in self.unknown]
        more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
        told = f"no constant of {', '.join(names[:_NAMED] + more)}" if names else "; ".join(self.notes)
        return printable(told or "an output is not reached")


TIGHTENING = 10.0  # seconds for one chain or run, which all but long and wide ones do not need
_TOGETHER = 2  # times as many for all of a network
Readers = Mapping[str, Set[str]]  # by name of a value: the kinds of nodes that read it
_INPUTS = 2**27  # numbers in all quadratic forms of the inputs: 1 GiB
Apply = Callable[[Callable[[Node], Effect | Unbounded], Sequence[Node]], Iterable[Effect | Unbounded]]


def network_bound(
    graph: Graph,
    bounds: BoundWeight = bound_weight,
    apply: Apply = map,
    deadline: Deadline = NEVER,
    tightening: float | None = TIGHTENING,
) -> NetworkBound:
    """Return a proved upper bound of a network's Lipschitz constant, and the constant of each of its nodes.

    All inputs together are one vector, and so are all outputs. Linear neighbours are joined before their norm is taken,
    activations of layers are nodes of their own.

    Args:
        graph: The network.
        bounds: The proved bracket of a weight's norm; a table of known ones saves time. Also called with products of
            weights.
        apply: Bounds the nodes, most of the work: `map`, or something that does it in parallel.
        deadline: After it no more nodes are joined, nor bounded together: the bound is larger, and as true.
        tightening: Seconds for each chain or run, and twice as many for all together; with less the bound is larger,
            and as true.

    Returns:
        A `NetworkBound` without a lower end. `upper` is None when a node on the way has no finite constant.
    """
    joined = fold(split(graph), deadline)
    bound = bound_joined(joined, bounds, apply, deadline, tightening)
    return bound._replace(pairs=neighbours(joined, deadline))


def bound_joined(
    graph: Graph,
    bounds: BoundWeight = bound_weight,
    apply: Apply = map,
    deadline: Deadline = NEVER,
    tightening: float | None = TIGHTENING,
    known: Mapping[str, Effect | Unbounded] = MappingProxyType({}),
) -> NetworkBound:
    """Return what `network_bound` does, of a network that was split and folded already.

    Of nodes in `known` the effect there counts, as of those inputs that are looked at; a reason there only where the
    node's rule has no constant either.
    """
    readers = _readers(graph)
    found = apply(lambda node: _known_effect(node, known) or _effect(node, graph, readers, bounds), graph.nodes)
    effects = {
        node.name: known.get(node.name, effect) if isinstance(effect, Unbounded) else effect
        for node, effect in zip(graph.nodes, found, strict=True)
    }
    if len(graph.inputs) ** 2 * len(effects) > _INPUTS:
        note = f"{len(graph.inputs)} inputs are too many for a bound"
        return NetworkBound(None, None, "none", tuple(_step(node, effects[node.name]) for node in graph.nodes), (note,))
    soon = min(deadline, Deadline.after(None if tightening is None else _TOGETHER * tightening))
    chains = find_chains(graph, effects, soon, tightening)
    chains += find_runs(graph, effects, soon, tightening)
    reaches = propagate(graph, effects, chains)
    reached = [reaches[name] for name in graph.outputs if name in reaches]
    upper = side_by_side(reached).norm if reached and len(reached) == len(graph.outputs) else None
    notes = _sizes(effects.values()) if upper is not None else ()
    notes += () if upper is None or upper < inf else ("the bound is larger than float64 can hold",)
    used = [chain for chain in chains if chain.constant < chain.product]
    steps = [_step(node, effects[node.name]) for node in graph.nodes] + [_chain_step(chain) for chain in used]
    method = "product of the layers' norms" + (", runs of them as a whole" if used else "")
    return NetworkBound(None, upper if upper != inf else None, method, tuple(steps), notes)


def _sizes(effects: Iterable[Effect | Unbounded]) -> tuple[str, ...]:
    """Return the note that says for which sizes of images the upper end holds; none where there are no images."""
    sized = {effect.sized for effect in effects if isinstance(effect, Effect)}
    if True in sized:
        named = "the upper end holds for inputs of the size that the model names or was traced with"
        return (f"{named}: at others it may be larger",)
    every = "the upper end holds for inputs of every size that its kernels and windows fit into"
    return (every,) if False in sized else ()


def _readers(graph: Graph) -> Readers:
    readers: dict[str, set[str]] = defaultdict(set)
    for node in graph.nodes:
        for name in node.inputs:
            readers[name].add(node.kind)
    return readers


def _known_effect(node: Node, known: Mapping[str, Effect | Unbounded]) -> Effect | None:
    effect = known.get(node.name)
    return effect if isinstance(effect, Effect) and effect.constant < inf else None


def _effect(node: Node, graph: Graph, readers: Readers, bounds: BoundWeight) -> Effect | Unbounded:
    """Return the effect of a node, or why it has none: whatever fails, it is this node that has no constant."""
    try:
        return _ruled(node, graph, readers, bounds)
    except (Unbounded, CheckpointError) as reason:
        return Unbounded(str(reason))
    except KeyError as missing:
        return Unbounded(f"its file does not say its {missing.args[0]}")
    except MemoryError:
        return Unbounded("it does not fit into memory")
    except Exception as error:  # settings come from files, and rules trust them
        return Unbounded(f"its settings or weights make no sense: {error}")


def _ruled(node: Node, graph: Graph, readers: Readers, bounds: BoundWeight) -> Effect:
    if is_training(node):
        raise Unbounded("it is called in training mode")
    if "0" in node.weights and node.kind not in _EITHER_WAY:
        raise Unbounded("its first input is a constant, and another one steers it")
    effect = RULES.get(node.kind, of_activation)(node, bounds)
    if len(node.inputs) > 1 and node.kind not in MEETINGS:
        raise Unbounded("a second input, such as a mask, steers it")
    if effect.discrete:
        _require_tokens(node, graph, readers)
    if not 0 <= effect.constant < inf:
        raise Unbounded(f"its settings give the constant {effect.constant}")
    return effect


def _require_tokens(node: Node, graph: Graph, readers: Readers) -> None:
    kinds = set().union(*(readers[name] for name in node.inputs))
    if not set(node.inputs) <= set(graph.inputs) or kinds != {node.kind} or set(node.inputs) & set(graph.outputs):
        raise Unbounded("its tokens are computed, or read by something else than tables")


def _step(node: Node, effect: Effect | Unbounded) -> Step:
    if isinstance(effect, Unbounded):
        return Step(node.name, node.kind, None, str(effect))
    return Step(node.name, node.kind, effect.constant, effect.rule)


def _chain_step(chain: Chain) -> Step:
    text = f"proved as a whole, in place of the product {chain.product:.6g} from {chain.first} on"
    return Step(f"{chain.first} ... {chain.last}", _CHAIN, chain.constant, text)
