"""Constants in the graph of a SavedModel: tensors that no variable holds, and that the model applies all the same."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.frozen_graph import Constant, constants, entry_of
from opnorm.checkpoints.guesses import FLOATS, unique
from opnorm.checkpoints.records import Geometry, Weight
from opnorm.checkpoints.saved_objects import Saved, graph_in
from opnorm.checkpoints.tf_checkpoint import joined_uses
from opnorm.checkpoints.tf_types import dtype_of
from opnorm.checkpoints.tf_uses import Reading, readings_of
from opnorm.checkpoints.wire import Window

_ADDS = {"Add", "AddV2", "AddN", "BiasAdd", "Sub", "Maximum", "Minimum", "Select", "SelectV2"}
_SHOWN = 3  # kinds of operations in a reason
_BLOCK = 2**20  # bytes


def constant_weights(
    file: Path, saved: Saved, captured: Mapping[str, tuple[str, ...]], taken: Iterable[str]
) -> list[Weight]:
    """Return a weight for each constant of more than one axis; one that several functions repeat is there once.

    Args:
        file: The `saved_model.pb`.
        saved: What is in it.
        captured: What the last arguments of functions are, by these: constants of the graph by their names.
        taken: Names of variables.
    """
    names: dict[tuple[object, ...], list[str]] = {}
    found: dict[tuple[object, ...], Constant] = {}
    with file.open("rb") as opened:
        data = Window(opened, file.stat().st_size)
        key: tuple[object, ...]
        for name, constant in constants(data, graph_in(data)):
            if _may_be_a_kernel(constant):
                key = (constant.shape, constant.kind, constant.stored, _digest(data, constant))
                found.setdefault(key, constant)
                names.setdefault(key, []).append(name)
    used = set(taken)
    read = readings_of(saved.bodies, captured)
    weights = []
    for key, constant in found.items():
        entry = entry_of(file, unique(_label(names[key]), used), constant)
        met = [one for name in names[key] for one in read.get(name, ())]
        geometry = g.unknown("constant", entry.reason) if entry.reason else _geometry(met, constant.shape)
        weights.append(Weight(*entry.named, geometry))
    return weights


def _may_be_a_kernel(constant: Constant) -> bool:
    dtype = dtype_of(constant.kind)
    return dtype is not None and str(dtype) in FLOATS and sum(count > 1 for count in constant.shape) > 1


def _digest(data: Window, constant: Constant) -> bytes:
    found, end = blake2b(digest_size=16), constant.start + constant.size
    for at in range(constant.start, end, _BLOCK):
        found.update(data.read(at, min(at + _BLOCK, end)))
    return found.digest()


def _label(names: Sequence[str]) -> str:
    """Return the shortest name, without the function that it stands in: that has a number of TensorFlow's."""
    shortest = min(names, key=len)
    function, _, rest = shortest.partition("/")
    return rest if function.startswith("__") and rest else shortest


def _geometry(met: Sequence[Reading], shape: tuple[int, ...]) -> Geometry:
    """Return what all operations that read a constant do with it, or the reason why that is not known."""
    kinds = sorted({one.operation.kind for one in met})
    if kinds and set(kinds) <= _ADDS:
        return g.nothing("constant", "a constant of the graph that is added or compared, not multiplied")
    maps = [one.use(shape) if one.use else None for one in met]
    known = [one for one in maps if one is not None]
    if known and len(known) == len(maps):
        return joined_uses(known)
    shown = ", ".join(kinds[:_SHOWN]) + (" and others" if len(kinds) > _SHOWN else "")
    how = f"goes into {shown}, and what that makes of it" if kinds else "stands in its graph, and what it does there"
    return g.unknown("constant", f"a constant that {how} is not worked out")
