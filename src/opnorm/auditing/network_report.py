"""The bound of a whole network as the audit reports it, from the brackets that its rows already hold."""

from collections.abc import Iterable
from typing import Any

from opnorm.auditing.measure import afford, reason_of
from opnorm.auditing.report import Row
from opnorm.auditing.settings import Settings
from opnorm.bounds.brackets import Bounds, bracket
from opnorm.bounds.deadlines import Deadline
from opnorm.bounds.memory import Memory
from opnorm.checkpoints.records import Graph, Weight
from opnorm.checks import real_array
from opnorm.networks.bound import Apply, NetworkBound, Step, network_bound
from opnorm.networks.effects import Unbounded

_SECONDS = 5.0  # for the bracket of a folded kernel, a batch normalization in it say; then a wider one, as true
_TOGETHER, _HURRIED = 10.0, 0.5  # when the network has taken so long, a folded kernel gets no more than this
_TIGHTENING = 0.5  # seconds for one chain or run; `lipschitz_bound` takes more


def report_network(
    graph: Graph, measured: Iterable[tuple[Weight, Row]], settings: Settings, apply: Apply
) -> dict[str, Any]:
    """Return the bound of the network, JSON-ready; `apply` as in `network_bound`."""
    known = {_key(w): Bounds(r.lower, r.upper) for w, r in measured if r.lower is not None and r.upper is not None}

    limit, together = settings.time_limit, Deadline.after(_TOGETHER)

    def bounds(weight: Weight) -> Bounds:
        seconds = (_HURRIED if together.passed else _SECONDS) if limit is None else limit
        return known.get(_key(weight)) or _bracketed(weight, settings, seconds)

    deadline = Deadline.after(None if limit is None else limit * max(1, len(graph.nodes)))
    try:
        return _as_dict(network_bound(graph, bounds, apply, deadline, _TIGHTENING))
    except Exception as error:  # graphs come from files; the rows stand without the network
        return _as_dict(NetworkBound(None, None, "none", (Step("the whole", "graph", None, reason_of(error)),)))


def _key(weight: Weight) -> tuple[str, int]:
    return weight.name, id(weight.geometry.operator)  # one kernel may be used with several strides


def _bracketed(weight: Weight, settings: Settings, seconds: float) -> Bounds:
    if weight.geometry.operator is None:
        raise Unbounded(weight.geometry.reason or f"what {weight.name} does is not known")
    afford(weight.shape, settings.memory_limit)
    operator = weight.geometry.operator(real_array(weight.read(), weight.name))
    return Bounds(*bracket(operator, None, Deadline.after(seconds), Memory(settings.memory_limit)))


def _as_dict(bound: NetworkBound) -> dict[str, Any]:
    steps = [{**step._asdict(), "share": share} for step, share in zip(bound.steps, bound.shares, strict=True)]
    return {
        "lower": bound.lower,
        "upper": bound.upper,
        "method": bound.method,
        "unknown": [f"{step.name} ({step.kind}): {step.rule}" for step in bound.unknown],
        "steps": steps,
        "pairs": [pair._asdict() for pair in bound.pairs],
        "notes": list(bound.notes),
    }
