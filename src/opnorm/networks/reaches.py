"""How far each value of a graph moves, node after node, with the runs of it that were bounded as a whole."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf, log2
from typing import NamedTuple

from opnorm.checkpoints.records import Graph, Node
from opnorm.networks.distances import Reach, added, side_by_side, source, through
from opnorm.networks.effects import Effect, Unbounded
from opnorm.networks.together import together

Effects = Mapping[str, Effect | Unbounded]


class Chain(NamedTuple):
    """A part of a network that one value goes into and one comes out of, and two bounds of it."""

    first: str
    last: str
    source: str  # what the first node reads
    constant: float  # proved for the run as a whole; inf: no proof
    product: float  # of its nodes' constants, sums where branches meet


def propagate(graph: Graph, effects: Effects, chains: Iterable[Chain] = ()) -> dict[str, Reach]:
    """Return the reach of each value that has one, node after node; of a node's and its chains' the smallest."""
    ending: dict[str, list[Chain]] = defaultdict(list)
    for chain in chains:
        if chain.constant < chain.product:
            ending[chain.last].append(chain)
    reaches = {name: source(i, len(graph.inputs)) for i, name in enumerate(graph.inputs)}
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        effect = effects[node.name]
        sources = [reaches[name] for name in node.inputs if name in reaches]
        if isinstance(effect, Unbounded) or not sources or len(sources) < len(node.inputs):
            continue
        own = through(added(sources) if effect.adds else _beside(node, reaches, nodes), effect.constant)
        others = [through(reaches[chain.source], chain.constant) for chain in ending[node.name]]
        reaches[node.name] = min([own, *others], key=_logarithm) if others else own
    return reaches


def _beside(node: Node, reaches: Mapping[str, Reach], nodes: Mapping[str, Node]) -> Reach:
    """Return the reach of a node's inputs side by side: the smaller one of theirs and of what they were made of."""
    plain = side_by_side([reaches[name] for name in node.inputs])
    if len(node.inputs) == 1:
        return plain
    origins = together(node.inputs, nodes)
    known = all(name in reaches for name in origins)
    return min(plain, side_by_side([reaches[name] for name in origins]), key=_logarithm) if known else plain


def _logarithm(reach: Reach) -> float:
    """Return the binary logarithm of a reach's norm, which may be beyond float64."""
    mantissa = reach._replace(exponent=0).norm
    return reach.exponent + log2(mantissa) if mantissa > 0 else -inf
