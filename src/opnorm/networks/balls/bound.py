"""A network's Lipschitz bound on a ball: the least of what its Jacobian there, its nodes there, and all inputs give."""

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from opnorm.bounds.certificates import down
from opnorm.bounds.deadlines import NEVER, Deadline
from opnorm.bounds.matrices import bracket_matrix
from opnorm.checkpoints.records import Graph
from opnorm.checks import Array
from opnorm.networks.balls.open_neurons import flat_of
from opnorm.networks.balls.values import SPARE
from opnorm.networks.balls.walk import Met, Network
from opnorm.networks.balls.whole import best_norm
from opnorm.networks.bound import TIGHTENING, Apply, NetworkBound, bound_joined
from opnorm.networks.effects import BoundWeight, Effect, Unbounded
from opnorm.networks.folding import fold, split
from opnorm.networks.linear_rules import bound_weight

MOST = 4096  # tangents along the input; networks with larger ones have none
OPEN = 512  # open neurons
_SHELLS = (0.25, 0.5, 0.75, 1.0)  # of the radius: what an inner ball tells is better than what the whole does
_WALKS = 10.0  # seconds after which no inner ball is begun any more
_ON_BALL = "the Jacobian on the ball"


def ball_bound(
    graph: Graph,
    points: Sequence[Array],
    radius: float,
    bounds: BoundWeight = bound_weight,
    deadline: Deadline | None = None,
    tightening: float = TIGHTENING,
    apply: Apply = map,
) -> NetworkBound:
    """Return a proved bound of `||f(y) - f(z)|| / ||y - z||` for all y, z no further than `radius` from a point.

    Args:
        graph: The network.
        points: The point: for each input of the network a batch of one.
        radius: In the 2-norm, all inputs as one vector.
        bounds: As in `network_bound`.
        deadline: As in `network_bound`; after it, and after some seconds, no inner ball is begun either.
        tightening: Seconds for the multipliers of open neurons, and of each chain or run half as many.
        apply: As in `network_bound`.

    Returns:
        A `NetworkBound` whose `lower`, where it is not None, is proved too: the norm of the Jacobian at the point.
    """
    deadline = deadline or NEVER
    network = Network(split(graph, gates=False), bounds, MOST, OPEN)
    soon = min(deadline, Deadline.after(_WALKS))
    centre = network.meet(points, 0.0)
    met = around(network, points, radius, soon)
    joined = fold(split(graph), deadline)
    half = tightening / 2  # twice the same chains and runs
    everywhere = bound_joined(joined, bounds, apply, deadline, half)
    known = _known(network, joined, met)
    local = bound_joined(joined, bounds, map, deadline, half, known) if known else everywhere
    on_ball = jacobian_norm(network, met, Deadline.after(tightening))
    ends = ((on_ball, _ON_BALL), (local.upper, local.method), (everywhere.upper, everywhere.method))
    finite = [(upper, method) for upper, method in ends if upper is not None]
    least, method = min(finite, default=(None, "none"))
    note = f"both ends are of the ball of radius {radius:g} around the given point"
    ended = network.ended(met) if on_ball is None else ""
    why = (f"not followed on the ball: {ended}",) if ended else ()
    notes = (note, *why, *(n for n in local.notes if "size" not in n and finite))
    return NetworkBound(_lower(network, centre), least, method, local.steps, notes)


def around(network: Network, points: Sequence[Array], radius: float, deadline: Deadline = NEVER) -> Met:
    """Return what is found on a ball, by way of smaller ones while there is time."""
    met: Met | None = None
    for share in _SHELLS if radius > 0 else ():
        if share < 1 and deadline.passed:
            continue
        met = network.meet(points, radius * share, met)
    return met or network.meet(points, radius)


def outputs(network: Network, met: Met) -> tuple[Array, Array, float] | None:
    """Return tangents, (tangents, entries), rests of entries and of the whole of all outputs; None: not known."""
    names = network.graph.outputs
    if any(name not in met.values for name in names):
        return None
    values = [met.values[name] for name in names]
    tangents = [flat_of(part) for part in met.space.aligned(values)]
    rest = np.concatenate([value.rest.ravel() for value in values])
    return np.concatenate(tangents, axis=1), rest, float(np.linalg.norm([value.whole for value in values])) * SPARE


def jacobian_norm(network: Network, met: Met, deadline: Deadline) -> float | None:
    """Return a proved bound of the norm of the Jacobian of all outputs, None where not all of it is known."""
    found = outputs(network, met)
    if found is None:
        return None
    tangents, _, whole = found
    neurons = met.space.open
    quick = neurons.norm(tangents) if len(neurons) else _tight(tangents)
    better = best_norm(neurons, tangents, deadline)
    upper = (min(quick, quick if better is None else better) + whole) * SPARE
    return upper if upper < inf else None


def _tight(tangents: Array) -> float:
    return bracket_matrix(tangents, 1e-9)[1] if tangents.size else 0.0


def _lower(network: Network, centre: Met) -> float | None:
    """Return a proved lower bound of the Jacobian's norm at the centre, None where it has none or is not known."""
    found = outputs(network, centre)
    if found is None or not found[0].size:
        return None
    straight, others = np.split(found[0], [centre.space.open.inputs])
    beside = centre.space.open.norm(np.concatenate([0 * straight, others])) if len(others) else 0.0
    return max(0.0, down(bracket_matrix(straight, 1e-9)[0] - (found[2] + beside) * SPARE))


def _known(network: Network, joined: Graph, met: Met) -> Mapping[str, Effect | Unbounded]:
    """Return what the ball tells of those nodes that joining left as they were."""
    kinds = {node.name: node.kind for node in network.graph.nodes}
    return {
        node.name: met.effects[node.name]
        for node in joined.nodes
        if node.name in met.effects and kinds[node.name] == node.kind
    }
