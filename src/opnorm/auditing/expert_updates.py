"""PEFT's updates of a parameter with three axes: a low-rank pair for each expert, all in one pair of matrices."""

from opnorm.auditing.adapter_config import Config, scale_of
from opnorm.auditing.adapters import Update
from opnorm.auditing.forms import BY_EXPERT
from opnorm.checkpoints.records import Weight


def of_experts(update: Update, shape: tuple[int, ...]) -> Update | None:
    """Return the update as one of experts whose weights are stored in that shape, None where it is none.

    A is (experts * rank, inputs) and B (outputs, rank * experts), the rank running slower in B and faster in A.

    Args:
        update: A pair of matrices.
        shape: (experts, outputs, inputs), or with the inputs first.
    """
    if not _is_pair(update) or len(shape) != 3 or update.parts["down"].shape[0] % max(1, shape[0]):
        return None
    down, up = update.parts["down"], update.parts["up"]
    outputs_first = shape[1:] == (up.shape[0], down.shape[1])
    inputs_first = shape[1:] == (down.shape[1], up.shape[0])
    if not (outputs_first or inputs_first):
        return None
    A, B = _inputs_of_each(down, shape[0]), _outputs_of_each(up, shape[0])
    both = outputs_first and inputs_first
    trouble = "experts with as many inputs as outputs: nothing says which axis is the inputs'" if both else ""
    parts = {"mlx_a": A, "mlx_b": B} if outputs_first else {"mlx_a": _swapped(B), "mlx_b": _swapped(A)}
    scale, note = scale_of(update.layer, BY_EXPERT, {"mlx_a": A}, update.config)
    return update._replace(form=BY_EXPERT, parts=parts, scale=scale, note=note, trouble=update.trouble or trouble)


def targets_parameters(config: Config | None) -> bool:
    """Return whether some of an adapter's updates are of parameters, and not of a layer's weight."""
    return bool(config and config.get("target_parameters"))


def _is_pair(update: Update) -> bool:
    roles = set(update.parts)
    return roles == {"up", "down"} and all(len(part.shape) == 2 for part in update.parts.values())


def _inputs_of_each(down: Weight, experts: int) -> Weight:
    shape = (experts, down.shape[0] // experts, down.shape[1])
    return down._replace(shape=shape, read=lambda: down.read().reshape(shape))


def _outputs_of_each(up: Weight, experts: int) -> Weight:
    outputs, ranks = up.shape
    rank = ranks // experts
    shape = (experts, outputs, rank)
    return up._replace(shape=shape, read=lambda: up.read().reshape(outputs, rank, experts).transpose(2, 0, 1))


def _swapped(weight: Weight) -> Weight:
    first, second, third = weight.shape
    return weight._replace(shape=(first, third, second), read=lambda: weight.read().swapaxes(1, 2))
