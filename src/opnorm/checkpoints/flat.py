"""Files that are a flat list of tensors: which of them make the weight of one layer, and what the others may do."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.config import read_config
from opnorm.checkpoints.files import guarded, require
from opnorm.checkpoints.guesses import Named, guess, unique
from opnorm.checkpoints.made import File
from opnorm.checkpoints.quantized import find_quantized
from opnorm.checkpoints.records import Weight
from opnorm.checkpoints.reparametrized import find_reparametrized
from opnorm.checkpoints.settled import settler

_NAME = 1000  # characters: patterns are searched in every name


class Entry(NamedTuple):
    """A tensor of a file."""

    named: Named
    reason: str = ""  # why its numbers cannot be read


def unread(path: Path, name: str, shape: tuple[int, ...], dtype: str, reason: str) -> Entry:
    """Return a tensor whose numbers cannot be read, and why: reading it raises CheckpointError."""
    return Entry(Named(name, shape, dtype, guarded(path, require, False, reason)), reason)  # type: ignore[arg-type]


def flat_weights(path: Path, entries: Sequence[Entry]) -> tuple[Weight, ...]:
    """Return the weights of a file's tensors, in their order: one for each.

    Where several tensors make the weight of a layer, one of them stands for it, with the values that the layer applies;
    the others are parts of it. A tensor that cannot be read, or is not understood, is unknown, and says why. What the
    `config.json` beside the file settles is not assumed; of a quantized model that is what its codes stand for.
    """
    for entry in entries:
        require(len(entry.named.name) <= _NAME, f"a tensor of it has a name of {len(entry.named.name)} characters")
    tensors = {entry.named.name: entry.named for entry in entries if not entry.reason}
    config = read_config(path)
    settle = settler(config, tensors)
    file = File(path, tensors, settle)
    made = find_quantized(file) | find_reparametrized(file)
    weights, taken = [], {entry.named.name for entry in entries}
    for tensor, reason in entries:
        known = made.get(tensor.name)
        guessed = guess(tensor, tensors)
        geometry = known.geometry if known else guessed if config.quantization else settle(tensor, guessed)
        weight = Weight(*tensor, g.unknown("unknown", reason) if reason else geometry)
        if known and known.weight:
            name = tensor.name if known.weight.name == tensor.name else unique(known.weight.name, taken)
            weight = Weight(*known.weight._replace(name=name), geometry)
        weights.append(weight._replace(read=known.read) if known and known.read else weight)
    return tuple(weights)
