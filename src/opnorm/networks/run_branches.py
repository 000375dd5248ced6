"""The nodes of a run where branches meet: sums, values side by side, maxima and minima of two."""

from collections.abc import Callable, Sequence

from opnorm.bounds.certificates import UNIT
from opnorm.checkpoints.records import Node
from opnorm.networks.run_collector import Collector, times
from opnorm.networks.run_moves import joined
from opnorm.networks.run_tensors import NotUnderstoodError, Tensor
from opnorm.networks.shape_rules import MAXIMA, MINIMA
from opnorm.networks.together import is_plain


def met(run: Collector, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Return what a node makes of several tensors.

    Raises:
        NotUnderstoodError: When it is of another kind, or they are not on the same pixels.
    """
    alike = {tensor._replace(name="", channels=0, clean=True) for tensor in inputs}
    if len(alike) > 1 or not is_plain(node) or node.kind not in _RULES:
        raise NotUnderstoodError(node.name)
    return _RULES[node.kind](run, node, inputs)._replace(clean=all(tensor.clean for tensor in inputs))


def _added(run: Collector, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    _require_channels(node, inputs)
    share = 1 / len(inputs) if node.kind in ("Average", "Mean") else 1.0
    signs = [-1.0 if i and node.kind.startswith("Sub") else 1.0 for i in range(len(inputs))]
    return run.map(inputs[0], [times(sign * share, t, UNIT) for t, sign in zip(inputs, signs, strict=True)])


def _extreme(run: Collector, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    _require_channels(node, inputs)
    if len(inputs) != 2:
        raise NotUnderstoodError(node.name)
    return run.extreme(inputs[0], inputs[1], 0.5 if node.kind in MAXIMA else -0.5)


def _require_channels(node: Node, inputs: Sequence[Tensor]) -> None:
    if len({t.channels for t in inputs}) > 1:
        raise NotUnderstoodError(node.name)


_RULES: dict[str, Callable[[Collector, Node, Sequence[Tensor]], Tensor]] = {
    **dict.fromkeys(("Add", "Subtract", "Sub", "Sum", "Average", "Mean"), _added),
    **dict.fromkeys(("Concatenate", "Concat"), joined),
    **dict.fromkeys((*MAXIMA, *MINIMA), _extreme),
}
