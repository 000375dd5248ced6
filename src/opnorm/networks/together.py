"""Values that are no longer side by side than what they were made of: parts of one value, a maximum and a minimum.

Side by side the squares of distances add up, as if the values knew nothing of each other. But parts that share no entry
are at most as long as the value they are of; `max(a, b)` beside `min(a, b)` are a and b sorted, which brings two
vectors nearer to each other, as are the largest and the smallest entry of a group; and of a distance `relu(x)` and
`relu(-x)` have a share each: both are monotone, and their difference is x.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from opnorm.checkpoints.records import Node
from opnorm.networks.activations import parse
from opnorm.networks.effects import called_with
from opnorm.networks.picks import pick_of
from opnorm.networks.reduction_rules import reduced_axes, reduced_count
from opnorm.networks.shape_rules import MAXIMA, MINIMA, MOVED

_MOST = 64  # values side by side that are looked at, and steps back
_SET = 2**16  # places that are compared one by one
Nodes = Mapping[str, Node]  # by name


def together(names: Sequence[str], nodes: Nodes) -> list[str]:
    """Return names of values that, side by side, move at least as far as those named.

    Args:
        names: Of the inputs of a node that puts them side by side.
        nodes: Those before it.
    """
    found: list[str] | None = list(names)
    for _ in range(_MOST if len(names) <= _MOST else 0):
        names = [_origin(name, nodes) for name in found or names]
        found = _without_parts(names, nodes) or _without_pair(names, nodes)
        if found is None:
            break
    return list(names)


def _origin(name: str, nodes: Nodes) -> str:
    """Return the value whose entries `name` only has in another order or shape."""
    while name in nodes and nodes[name].kind in MOVED and len(nodes[name].inputs) == 1:
        (name,) = nodes[name].inputs
    return name


def _without_parts(names: Sequence[str], nodes: Nodes) -> list[str] | None:
    """Return the names with one value for parts of it that share no entry, None where there are no such parts."""
    groups: dict[tuple[str, int], dict[int, range]] = defaultdict(dict)
    for i, name in enumerate(names):
        pick = pick_of(nodes[name]) if name in nodes else None
        if pick is not None:
            group = groups[nodes[name].inputs[0], pick.axis]
            if not any(_meet(pick.places, places) for places in group.values()):
                group[i] = pick.places
    for (source, _), group in groups.items():
        if len(group) > 1:
            return [source, *(name for i, name in enumerate(names) if i not in group)]
    return None


def _meet(a: range, b: range) -> bool:
    """Return whether two ranges may have a place in common."""
    if not a or not b or max(a[0], a[-1]) < min(b[0], b[-1]) or max(b[0], b[-1]) < min(a[0], a[-1]):
        return False
    return len(a) + len(b) > _SET or not set(a).isdisjoint(b)


def _without_pair(names: Sequence[str], nodes: Nodes) -> list[str] | None:
    """Return the names with what two of them were made of in their place, None where there are no such two."""
    for i, k in combinations(range(len(names)), 2):
        a, b = (nodes.get(names[j]) for j in (i, k))
        sources = (_sources(a, b, nodes) or _sources(b, a, nodes)) if a is not None and b is not None else ()
        if sources:
            return [*sources, *(name for j, name in enumerate(names) if j not in (i, k))]
    return None


def is_plain(node: Node) -> bool:
    """Return whether a node combines its inputs with nothing else."""
    return not node.weights and not called_with(node)


def _sources(a: Node, b: Node, nodes: Nodes) -> tuple[str, ...]:
    """Return what two nodes were made of, if side by side they are no longer than it; else nothing."""
    if a.kind in MAXIMA and b.kind in MINIMA and len(a.inputs) == 2 and sorted(a.inputs) == sorted(b.inputs):
        return a.inputs if is_plain(a) and is_plain(b) else ()
    if a.kind == "ReduceMax" and b.kind == "ReduceMin" and a.inputs == b.inputs:
        count = reduced_count(a)  # of one entry alone, both are it
        return a.inputs if count is not None and count > 1 and reduced_axes(a) == reduced_axes(b) else ()
    opposite = nodes.get(b.inputs[0]) if is_relu(a) and is_relu(b) else None
    return a.inputs if opposite is not None and is_negative(opposite) and opposite.inputs == a.inputs else ()


def is_relu(node: Node) -> bool:
    """Return whether a node is `max(x, 0)` of one input, and nothing else."""
    name, options = parse(node.options.get("activation")) if node.kind == "Activation" else (node.kind, node.options)
    changed = name == "ReLU" and (
        options.get("max_value") is not None or options.get("negative_slope") or options.get("threshold")
    )
    return name in ("relu", "Relu", "ReLU") and not changed and is_plain(node) and len(node.inputs) == 1


def is_negative(node: Node) -> bool:
    """Return whether a node is `-x`."""
    return node.kind in ("Neg", "Negative") and is_plain(node) and len(node.inputs) == 1
