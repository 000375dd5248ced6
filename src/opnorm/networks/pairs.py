"""How fast the difference of two logits can change: a proved Lipschitz constant for each pair of classes.

Three bounds, of which the least counts: sqrt(2) times that of all logits together; the distance of the two rows of the
last kernel times the bound of all before it; and, for a few classes, the network with `e_i - e_j` joined to its last
kernel, its chain bounded as a whole.
"""

from collections.abc import Callable, Collection
from math import inf, sqrt

import numpy as np
from scipy.sparse.linalg import aslinearoperator
from scipy.spatial.distance import cdist

from opnorm.bounds.brackets import Bounds
from opnorm.bounds.certificates import gamma, up
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.threads import one_blas_thread
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.records import Geometry, Graph, Node, Weight
from opnorm.checks import Array
from opnorm.networks.bound import TIGHTENING, bound_joined
from opnorm.networks.effects import BoundWeight
from opnorm.networks.folding import join, names, places
from opnorm.networks.kernel_products import form_of
from opnorm.networks.linear_rules import MATRICES, bound_weight

_CLASSES = 20  # up to which each pair has a bound of its own: 190 pairs
Progress = Callable[[int, int], None]


def remembered(bound: BoundWeight = bound_weight) -> BoundWeight:
    """Return a function that bounds weights with a memory: a kernel is met more than once."""
    known: dict[tuple[str, int], tuple[Weight, Bounds]] = {}  # a weight that is kept shares its identity with no other

    def bounds(weight: Weight) -> Bounds:
        key = weight.name, id(weight.geometry.operator)
        if key not in known:
            known[key] = weight, bound(weight)
        return known[key][1]

    return bounds


def pair_constants(
    graph: Graph,
    upper: float,
    classes: int,
    chosen: Collection[int],
    bounds: BoundWeight,
    deadline: Deadline,
    progress: Progress | None = None,
) -> Array:
    """Return L, (classes, classes): `f_i - f_j` has Lipschitz constant at most `L[i, j]`; the diagonal is 0.

    Args:
        graph: The network, split and folded, with one output: the logits.
        upper: A proved bound of all logits together.
        classes: How many logits there are.
        chosen: The classes whose pairs are needed; others have the quick bounds.
        bounds: As in `network_bound`.
        deadline: After it the quick bounds count for the pairs that are left.
        progress: Called with the number of pairs done and of all, after each.
    """
    constants = np.minimum(up(sqrt(2) * upper), _by_rows(graph, classes, bounds))
    pairs = [(i, j) for i in range(classes) for j in range(i) if i in chosen or j in chosen]
    with one_blas_thread():  # matrices are small, and threads would wait for each other
        for k, (i, j) in enumerate(pairs if classes <= _CLASSES else []):
            if deadline.passed:
                break
            seconds = min(TIGHTENING, deadline.left / (len(pairs) - k))
            found = bound_joined(_difference(graph, i, j, classes), bounds, map, deadline, seconds).upper
            constants[i, j] = constants[j, i] = min(constants[i, j], inf if found is None else found)
            if progress is not None:
                progress(k + 1, len(pairs))
    np.fill_diagonal(constants, 0.0)
    return constants


def _by_rows(graph: Graph, classes: int, bounds: BoundWeight) -> Array:
    """Return the distances of the rows of the last kernel times the bound of what comes before it."""
    last = _last(graph)
    if last is None or last.kind not in MATRICES or "last" not in places(last):
        return np.full((classes, classes), inf)
    before = Graph(tuple(node for node in graph.nodes if node is not last), graph.inputs, last.inputs)
    upper = bound_joined(before, bounds).upper
    if upper is None:
        return np.full((classes, classes), inf)
    rows = form_of(last).values.T
    rounding = 2 * float(last.options.get("rounding", 0.0))
    return (_distances(rows) + rounding) * up(upper)


def _distances(rows: Array) -> Array:
    """Return upper bounds of the distances of rows."""
    peak = float(np.max(np.abs(rows), initial=0.0)) or 1.0
    scaled = rows / peak
    apart = cdist(scaled, scaled) * (1 + gamma(2 * rows.shape[1] + 20))
    return np.asarray((apart + 1e-140 * (cdist(scaled, scaled, "chebyshev") > 0)) * peak)  # for squares that underflow


def _last(graph: Graph) -> Node | None:
    """Return the node that makes the output, None where something else reads it too."""
    last = next((node for node in graph.nodes if node.name == graph.outputs[0]), None)
    shared = last is not None and any(last.name in node.inputs for node in graph.nodes)
    return None if shared else last


def _difference(graph: Graph, i: int, j: int, classes: int) -> Graph:
    """Return the network whose output is the difference of logits i and j."""
    column = np.zeros((classes, 1))
    column[i], column[j] = 1.0, -1.0
    taken = names(graph)
    name = unique(f"logit {i} - logit {j}", taken)
    geometry = Geometry("Dense", "matrix (in, out)", lambda values: aslinearoperator(values.T))
    kernel = Weight(name, column.shape, "float64", lambda: column, geometry)
    node = Node(name, "Dense", graph.outputs, {}, {"kernel": kernel})
    last = _last(graph)
    joined = None if last is None else join(last, node)
    if joined is None:
        return Graph((*graph.nodes, node), graph.inputs, (name,))
    joined = joined._replace(name=unique(joined.name, taken))
    nodes = (*(n for n in graph.nodes if n is not last), joined)
    return Graph(nodes, graph.inputs, (nodes[-1].name,))
