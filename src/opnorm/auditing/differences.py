"""Two checkpoints compared: the norms of both, and of what was added to each weight."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.auditing.adapted import Target, adapted, targets
from opnorm.auditing.adapter_config import foreign_kind, read_config
from opnorm.auditing.adapter_folders import adapters_in
from opnorm.auditing.adapter_names import as_in_base, is_bias
from opnorm.auditing.adapters import Update, find_updates
from opnorm.auditing.audits import opened, path_of
from opnorm.auditing.comparison import DiffReport, DiffRow
from opnorm.auditing.diff_rows import Weights, alone, compared
from opnorm.auditing.measure import afford, values_of
from opnorm.auditing.sandbox import Progress, diff_in_child
from opnorm.auditing.settings import Globs, Options, Settings, check_running
from opnorm.checkpoints.records import Checkpoint, Weight

Job = Callable[[], DiffRow]
_PEFT = "base_model."  # how every name in its files begins


def diff(
    base: Any,
    tuned: Any,
    *,
    include: Globs = None,
    exclude: Globs = None,
    tolerance: float | None = None,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    subspaces: bool = False,
    sandbox: bool = False,
    progress: Progress | None = None,
) -> DiffReport:
    """Return the norms of both checkpoints and of their difference, for tensors of the same name and shape.

    The tensors of an adapter (LoRA, LoCon, LoHa, LoKr, DoRA) are multiplied out: the difference of the base's weight.
    What an adapter leaves as it is has no row. Each file's layer is measured with its own geometry, and the difference
    is that of what the layers apply; where they use their weights in different ways there is none, with the reason.
    Tensors are subtracted in float64: exactly, unless they hold float64 themselves; where scales or variances were
    worked into them, the bracket allows for the rounding.

    Args:
        base: A path or a Keras model, as for `audit`.
        tuned: Likewise, or an adapter's file.
        include: Glob patterns of names.
        exclude: Likewise.
        tolerance: Aim for `upper / lower - 1`.
        time_limit: Seconds for each norm.
        memory_limit: As for `audit`.
        subspaces: Also compute singular vectors of matrices: the effective rank of each difference, how far its leading
            subspaces are the base's, and how many leading directions of the tuned matrix are none of the base's. It
            takes three singular value decompositions a matrix.
        sandbox: Likewise.
        progress: Called with the number of rows done and of all.

    Raises:
        CheckpointError: When a file cannot be read.
        ValueError: When an argument does not make sense.

    Example:
        >>> np.savez("base.npz", **{"dense/kernel": np.eye(3)})
        >>> np.savez("tuned.npz", **{"dense/kernel": 2 * np.eye(3)})
        >>> round(opnorm.diff("base.npz", "tuned.npz").rows[0].difference[0], 9)
        1.0
    """
    options = Options(include, exclude, tolerance, time_limit, memory_limit, subspaces=subspaces)
    options.checked()
    check_running(sandbox, progress)
    if sandbox:
        return diff_in_child(path_of("sandbox", base), path_of("sandbox", tuned), options._asdict(), progress)
    return compare(opened(base, "base"), opened(tuned, "tuned"), options, progress)


def compare(
    base: tuple[str, Checkpoint], tuned: tuple[str, Checkpoint], options: Options, progress: Progress | None = None
) -> DiffReport:
    """Return the comparison of two opened checkpoints, each with its file's name."""
    (base_file, first), (tuned_file, second) = base, tuned
    old, new = ({w.name: w for w in checkpoint.weights} for checkpoint in (first, second))
    new = as_in_base(new, old)
    place = tuned_file if Path(tuned_file).exists() else ""  # a model has none
    updates = targets(_updates(new, place), old)
    foreign = foreign_kind(read_config(place)) if any(name.startswith(_PEFT) for name in new) else ""
    kept = new.keys() | {name for name, _ in updates} if updates or foreign else old.keys()
    left = {name: weight for name, weight in old.items() if name in kept}
    jobs = [job for name, job in _jobs(left, new, updates, foreign, options.checked()) if options.chooses(name)]
    rows = []
    for job in jobs:
        rows.append(job())
        if progress is not None:
            progress(len(rows), len(jobs))
    folded = len(old) - len(left) - sum(map(is_bias, new))  # of which an adapter has its own
    notes = dict.fromkeys([*first.notes, *second.notes, *_notes(left, updates, folded)])
    common = len(old.keys() & new.keys()) + sum(name in old for name, _ in updates)
    return DiffReport(base_file, tuned_file, tuple(rows), tuple(notes), common)


def _updates(new: dict[str, Weight], place: str) -> list[Update]:
    """Return the updates in a file, or a folder and the folders in it, whose tensors are added to `new`."""
    found = find_updates(new, place)
    for adapter, weights in adapters_in(place):
        found += [update._replace(adapter=adapter) for update in find_updates(weights, f"{place}/{adapter}")]
        new |= {weight.name: weight for weight in weights.values()}
    return found


def _notes(kept: Weights, updates: list[Target], folded: int) -> Iterator[str]:
    yield from (update.note for _, update in updates if update.note)
    if folded > 0:
        yield f"{folded} other tensors of the base are as they were: the adapter has none for them"
    doubtful = sum(bool(weight.geometry.readings) for weight in kept.values())
    if doubtful:
        yield f"{doubtful} tensors may be of more than one kind of layer: the JSON says what each was taken for"


def _jobs(
    old: Weights, new: Weights, updates: list[Target], foreign: str, settings: Settings
) -> Iterator[tuple[str, Job]]:
    """Yield for each row its name and what makes it."""
    of: dict[str, list[Update]] = {}
    for name, update in updates:
        of.setdefault(name, []).append(update)
    parts = {part.name for _, update in updates for part in update.parts.values()}
    for name, weight in old.items():
        if name not in of:
            yield name, partial(_in_base, weight, new.get(name), settings)
        for update in of.get(name, ()):
            yield name, partial(_updated, weight, new.get(name), update, settings)
    for name, update in updates:
        if name not in old:
            yield name, partial(adapted, None, update, settings)
    others = (weight for name, weight in new.items() if name not in old and name not in parts)
    for weight in others:
        yield weight.name, partial(alone, weight, "tuned", settings, foreign)


def _in_base(a: Weight, b: Weight | None, settings: Settings) -> DiffRow:
    """Return the row of a weight of the base, given the tuned file's weight of its name."""
    return alone(a, "base", settings) if b is None else compared(a, b, settings)


def _updated(a: Weight, b: Weight | None, update: Update, settings: Settings) -> DiffRow:
    """Return the row of a weight's update, given also the tuned file's weight of its name.

    PEFT saves the weight itself beside the update of an embedding: as it is in the base, so without the update.
    """
    if b is not None and not _is_same(a, b, settings):
        both = "the file has another weight and an update of it: nothing says whether it is in the weight already"
        update = update._replace(trouble=both)
    return adapted(a, update, settings)


def _is_same(a: Weight, b: Weight, settings: Settings) -> bool:
    """Return whether two weights are equal, as far as they can be read; their norms say so otherwise."""
    try:
        afford((2, *a.shape), settings.memory_limit)
        return a.shape == b.shape and np.array_equal(values_of(a), values_of(b))
    except Exception:  # as in `measure`
        return False
