"""Two checkpoints compared: the norms of both, and of what was added to each weight."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from opnorm.auditing.adapters import Update, as_in_base, by_layer, called, find_updates, reason_against
from opnorm.auditing.audits import opened, path_of
from opnorm.auditing.comparison import BRACKETS, Bracket, Difference, DiffRow
from opnorm.auditing.effective import is_plain, rounding, subtracted
from opnorm.auditing.lora import Product, bracket_product, widened
from opnorm.auditing.measure import afford, measure, reason_of, values_of
from opnorm.auditing.norms import frobenius_norm
from opnorm.auditing.sandbox import Progress, diff_in_child
from opnorm.auditing.settings import Globs, Options, Settings, check_running
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Checkpoint, Geometry, Weight
from opnorm.checks import Array

Job = Callable[[], DiffRow]
Weights = Mapping[str, Weight]


def diff(
    base: Any,
    tuned: Any,
    *,
    include: Globs = None,
    exclude: Globs = None,
    tolerance: float | None = None,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    sandbox: bool = False,
    progress: Progress | None = None,
) -> Difference:
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
        sandbox: Likewise.
        progress: Called with the number of rows done and of all.

    Raises:
        CheckpointError: When a file cannot be read.
        ValueError: When an argument does not make sense.
    """
    options = Options(include, exclude, tolerance, time_limit, memory_limit)
    options.checked()
    check_running(sandbox, progress)
    if sandbox:
        return diff_in_child(path_of("sandbox", base), path_of("sandbox", tuned), options._asdict(), progress)
    return compare(opened(base), opened(tuned), options, progress)


def compare(
    base: tuple[str, Checkpoint], tuned: tuple[str, Checkpoint], options: Options, progress: Progress | None = None
) -> Difference:
    """Return the comparison of two opened checkpoints, each with its file's name."""
    (base_file, first), (tuned_file, second) = base, tuned
    old, new = ({w.name: w for w in checkpoint.weights} for checkpoint in (first, second))
    new = as_in_base(new, old)
    updates = _targets(find_updates(new, tuned_file), old)
    kept = new.keys() | {name for name, _ in updates} if updates else old.keys()
    left = {name: weight for name, weight in old.items() if name in kept}
    jobs = [job for name, job in _jobs(left, new, updates, options.checked()) if options.chooses(name)]
    rows = []
    for job in jobs:
        rows.append(job())
        if progress is not None:
            progress(len(rows), len(jobs))
    notes = dict.fromkeys([*first.notes, *second.notes, *_notes(left, updates, len(old) - len(left))])
    common = len(old.keys() & new.keys()) + sum(name in old for name, _ in updates)
    return Difference(base_file, tuned_file, tuple(rows), tuple(notes), common)


def _notes(kept: Weights, updates: list[tuple[str, Update]], folded: int) -> Iterator[str]:
    yield from (update.note for _, update in updates if update.note)
    if folded:
        yield f"{folded} other tensors of the base are as they were: the adapter has none for them"
    doubtful = sum(bool(weight.geometry.readings) for weight in kept.values())
    if doubtful:
        yield f"{doubtful} tensors may be of more than one kind of layer: the JSON says what each was taken for"


def _targets(updates: list[Update], base: Weights) -> list[tuple[str, Update]]:
    """Return each update with the name of its weight in the base, or with its layer's where there is none that fits."""
    layers = by_layer(base) if updates else {}
    result: list[tuple[str, Update]] = []
    for update in updates:
        fitting = (name for name in layers.get(called(update.layer), ()) if update.fits(base[name].shape))
        result.append((next(fitting, update.layer), update))
    layers_of: dict[str, set[str]] = {}
    for name, update in result:
        layers_of.setdefault(name, set()).add(update.layer)
    twice = "updates of it under several names: nothing says which are applied"
    return [(name, u._replace(trouble=twice) if len(layers_of[name]) > 1 else u) for name, u in result]


def _jobs(
    old: Weights, new: Weights, updates: list[tuple[str, Update]], settings: Settings
) -> Iterator[tuple[str, Job]]:
    """Yield for each row its name and what makes it."""
    targets = dict(updates)
    parts = {part.name for update in targets.values() for part in update.parts.values()}
    for name, weight in old.items():
        yield name, lambda a=weight: _in_base(a, new.get(a.name), targets.get(a.name), settings)  # type: ignore[misc]
    for name, update in updates:
        if name not in old:
            yield name, lambda u=update: _adapted(None, u, settings)  # type: ignore[misc]
    for name, weight in new.items():
        if name not in old and name not in parts:
            yield name, lambda b=weight: _alone(b, "tuned", settings)  # type: ignore[misc]


def _in_base(a: Weight, b: Weight | None, update: Update | None, settings: Settings) -> DiffRow:
    """Return the row of a weight of the base, given the tuned file's weight of its name and its update there."""
    if update is not None:
        both = "the file has the weight and an update of it: nothing says whether it is in the weight already"
        return _adapted(a, update if b is None else update._replace(trouble=both), settings)
    return _alone(a, "base", settings) if b is None else _compared(a, b, settings)


def _compared(a: Weight, b: Weight, settings: Settings) -> DiffRow:
    if a.shape != b.shape:
        return DiffRow(a.name, a.shape, "shapes differ", reason=f"{list(a.shape)} in base, {list(b.shape)} in tuned")
    plain, a, b = _as_known(a, b, settings)
    delta, error, reason = _change_of(a, b, plain, settings)
    several = [a, b] if delta is None else [a, b, delta]
    row = _row(a, several, "compared", settings, None if delta is None else [0.0, 0.0, error])
    first, second = _described(a.geometry), _described(b.geometry)
    row = row if first == second else row._replace(geometry=f"{first} in base, {second} in tuned")
    return row._replace(status="failed", reason=reason) if reason and row.status in ("compared", "skipped") else row


def _as_known(a: Weight, b: Weight, settings: Settings) -> tuple[bool, Weight, Weight]:
    """Return whether both layers apply just their weights' numbers, and the weights, each with its own geometry.

    Of two that do, one whose geometry is a guess is taken for what the other file knows.
    """
    try:
        afford(a.shape, settings.memory_limit)
    except MemoryError:  # which the row says
        return False, a, b
    plain = is_plain(a.geometry, a.shape) and is_plain(b.geometry, b.shape)
    if plain and a.geometry.assumed:
        a = a._replace(geometry=b.geometry)
    elif plain and b.geometry.assumed:
        b = b._replace(geometry=a.geometry)
    return plain, a, b


def _change_of(a: Weight, b: Weight, plain: bool, settings: Settings) -> tuple[Weight | None, float, str]:
    """Return a weight whose geometry is the change, and how far it may be from it; or None, and why there is none."""
    first, second = a.geometry.operator, b.geometry.operator
    if first is None or second is None:
        return None, 0.0, "" if first is second else "in one file it is a linear map, in the other none is known"
    try:
        afford(a.shape, settings.memory_limit)
        x, y = values_of(a), values_of(b)
        base, tuned = first(x), second(y)
        operator = subtracted(tuned, base)
        error = 0.0 if plain or (np.array_equal(x, y) and not frobenius_norm(operator)) else rounding(tuned, base)
    except Exception as found:  # as in `measure`
        return None, 0.0, reason_of(found)
    geometry = a.geometry._replace(operator=lambda _: operator)
    return a._replace(read=lambda: _subtract(y, x), dtype="float64", geometry=geometry), error, ""


def _adapted(a: Weight | None, update: Update, settings: Settings) -> DiffRow:
    """Return the row of an adapter: the norm of the update, and with the base's weight that of what is applied."""
    name, shape = (update.layer, update.shape) if a is None else (a.name, a.shape)
    if update.trouble:
        return DiffRow(name, shape, "failed", reason=update.trouble)
    try:
        afford(shape, settings.memory_limit)
        if a is None:
            return _without_base(update, shape, settings)
        if not a.dtype.startswith(("float", "bfloat")) or a.dtype.startswith("float8"):
            return DiffRow(name, shape, "failed", reason=f"the base stores it as {a.dtype}: the sum is not formed")
        merged, factors = update.merged(values_of(a)), update.factors()
        if factors is not None and len(shape) == 2:
            return _row(a, [a, _with(a, merged)], update.kind, settings, [0.0, merged.error], bracket_product(*factors))
        added = _change(update, merged, a)
        several = [a, _with(a, merged), _with(a, added)]
        return _row(a, several, update.kind, settings, [0.0, merged.error, added.error])
    except Exception as error:  # as in `measure`
        return DiffRow(name, shape, "failed", reason=reason_of(error))


def _change(update: Update, merged: Product, a: Weight) -> Product:
    """Return what was added to a weight: of DoRA, which scales the weight too, the difference."""
    return merged.plus(-values_of(a)) if update.kind == "DoRA" else update.added(a.shape)


def _without_base(update: Update, shape: tuple[int, ...], settings: Settings) -> DiffRow:
    """Return the row of an update of a weight that the base does not have."""
    missing = "the base has no weight of this name and shape"
    if update.kind == "DoRA":
        return DiffRow(update.layer, shape, "failed", reason=f"{missing}, which it scales")
    factors = update.factors()
    if factors is not None:
        return DiffRow(update.layer, shape, update.kind, difference=bracket_product(*factors), reason=missing)
    added = update.added(shape)
    geometry = g.channels_first("Conv", shape, g.Sliding(), assumed=True) if len(shape) > 2 else g.rows("Linear")
    weight = Weight(update.layer, shape, "float64", lambda: added.values, geometry)
    row = _row(weight, [weight], update.kind, settings, [added.error])
    return row._replace(base=None, difference=row.base, reason=row.reason or missing)


def _with(weight: Weight, product: Product) -> Weight:
    return weight._replace(read=lambda: product.values, dtype="float64")


def _alone(weight: Weight, where: str, settings: Settings) -> DiffRow:
    reason = reason_against(weight.name) if where == "tuned" else ""
    if reason:
        return DiffRow(weight.name, weight.shape, "failed", reason=reason)
    row = _row(weight, [weight], f"only in {where}", settings)
    return row if where == "base" else row._replace(base=None, tuned=row.base)


def _row(
    weight: Weight,
    several: list[Weight],
    status: str,
    settings: Settings,
    errors: list[float] | None = None,
    difference: Bracket | None = None,
) -> DiffRow:
    """Return a row with the brackets of `several`: of the base, of the tuned weight, and of their difference.

    Args:
        weight: The weight that the row is of.
        several: At most three weights to measure, each its own or the main reading of it.
        status: What the row says where all of them are bounded.
        settings: How they are measured.
        errors: How far each, in the Frobenius norm, may be from what it stands for.
        difference: The bracket of the difference where it is known already.
    """
    measured = [measure(one._replace(constraint=None, geometry=_main(one.geometry)), settings)[0] for one in several]
    found = [None if row.lower is None or row.upper is None else (row.lower, row.upper) for row in measured]
    if errors:
        taps = prod(weight.shape[2:])
        found = [
            widened(ends, error, taps) if ends and error else ends for ends, error in zip(found, errors, strict=True)
        ]
    failed = [row for row in measured if row.status != "bounded"]
    brackets: dict[str, Any] = dict(zip(BRACKETS, found, strict=False))
    brackets |= {"difference": difference} if difference else {}
    text = _described(several[0].geometry)
    row = DiffRow(weight.name, weight.shape, failed[0].status if failed else status, geometry=text, **brackets)
    reason = failed[0].reason if failed else ""
    if row.base and row.difference and row.base[0] > 0:
        row = row._replace(relative=row.difference[1] / row.base[0])
    return row._replace(reason=reason)


def _described(geometry: Geometry) -> str:
    others = "; ".join(reading.text for reading in geometry.readings)
    assumed = f" (assumed{f', it may be: {others}' if others else ''})" if geometry.assumed else ""
    return f"{geometry.text}{assumed}"


def _main(geometry: Geometry) -> Geometry:
    return geometry._replace(readings=())


def _subtract(tuned: Array, base: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of two infinities; the row then names the NaN
        return tuned - base
