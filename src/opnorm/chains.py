"""The runs of dense layers and activations in a network, each bounded as a whole."""

from collections import Counter
from collections.abc import Mapping
from itertools import product
from math import inf, prod
from typing import NamedTuple

from opnorm.certificates import up
from opnorm.checkpoints.records import Graph, Node
from opnorm.effects import Effect, Unbounded
from opnorm.kernel_products import standard
from opnorm.linear_rules import MATRICES
from opnorm.sector_bounds import Slopes, bound_chain

Effects = Mapping[str, Effect | Unbounded]


class Chain(NamedTuple):
    """A run of nodes from a matrix to a matrix, and two bounds of it."""

    first: str
    last: str
    source: str  # what the first node reads
    constant: float  # proved for the run as a whole; inf: no proof
    product: float  # of its nodes' constants


def find_chains(graph: Graph, effects: Effects) -> list[Chain]:
    """Return every longest run with two matrices or more, nothing else reading what stands inside it."""
    readers = Counter(name for node in graph.nodes for name in node.inputs) + Counter(graph.outputs)
    runs: dict[str, list[Node]] = {}  # by the name of the last node so far
    for node in graph.nodes:
        effect = effects[node.name]
        if isinstance(effect, Unbounded) or len(node.inputs) != 1:
            continue
        before = runs.get(node.inputs[0], []) if readers[node.inputs[0]] == 1 else []
        if _is_matrix(node) or (before and effect.slopes is not None):
            runs.pop(node.inputs[0], None) if before else None
            runs[node.name] = [*before, node]
    trimmed = [_until_matrix(run) for run in runs.values()]
    return [_bounded(run, effects) for run in trimmed if sum(map(_is_matrix, run)) > 1]


def _is_matrix(node: Node) -> bool:
    if node.kind not in MATRICES or node.options.get("alpha", 1.0) != 1.0:
        return False
    try:
        return standard(node)[0].ndim == 2
    except Unbounded:
        return False


def _until_matrix(run: list[Node]) -> list[Node]:
    return run[: max(i for i, node in enumerate(run) if _is_matrix(node)) + 1]


def _bounded(run: list[Node], effects: Effects) -> Chain:
    matrices, slopes = [], []
    for node in run:
        effect = effects[node.name]
        assert isinstance(effect, Effect)  # no others enter a run
        if _is_matrix(node):
            matrices.append(standard(node)[0].T)
            slopes.append((1.0, 1.0))  # of what follows: so far nothing
        else:
            slopes[-1] = _composed(slopes[-1], effect.slopes or (-inf, inf))
    constants = [effect.constant for node in run if isinstance(effect := effects[node.name], Effect)]
    total = up(prod(constants))
    whole = bound_chain(matrices, slopes[:-1])
    return Chain(run[0].name, run[-1].name, run[0].inputs[0], _with_rounding(whole, run, constants), total)


def _composed(first: Slopes, second: Slopes) -> Slopes:
    slopes = [a * b for a, b in product(first, second)]
    return min(slopes), max(slopes)


def _with_rounding(whole: float | None, run: list[Node], constants: list[float]) -> float:
    """Return the bound of the run before its kernels were multiplied out and rounded.

    A Jacobian is a product of matrices and slopes; changing factor i by e_i changes it by at most e_i times the others.
    """
    if whole is None:
        return inf
    pairs = zip(run, constants, strict=True)
    share = sum(float(node.options.get("rounding", 0.0)) / constant for node, constant in pairs if constant > 0)
    return up(whole + prod(constants) * share)
