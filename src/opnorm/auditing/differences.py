"""Two checkpoints compared: the norms of both, and of what was added to each weight."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from os import fspath
from typing import Any, NamedTuple

import numpy as np

from opnorm.auditing.audits import Globs, Progress, is_chosen, opened
from opnorm.auditing.lora import Pair, base_name, bracket_product, factors, find_pairs, update_shape
from opnorm.auditing.measure import Settings, measure, values_of
from opnorm.auditing.report import SCHEMA, finite
from opnorm.checkpoints.records import CheckpointError, Weight
from opnorm.checks import Array

Bracket = tuple[float, float]
Job = Callable[[], "DiffRow"]


class DiffRow(NamedTuple):
    """One tensor of either checkpoint."""

    name: str
    shape: tuple[int, ...]
    status: str  # "compared", "LoRA", "only in base", "only in tuned", "shapes differ", "skipped", "failed"
    base: Bracket | None = None  # brackets of operator norms
    tuned: Bracket | None = None
    difference: Bracket | None = None
    relative: float | None = None  # upper end of the difference / lower end of the base
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """The rows of a comparison, in the order of the base."""

    base: str
    tuned: str
    rows: tuple[DiffRow, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `to_json` writes it."""
        rows = [row._asdict() | {key: _ends(row._asdict()[key]) for key in _BRACKETS} for row in self.rows]
        tool = f"opnorm {version('opnorm')}"
        names = {"base": self.base, "tuned": self.tuned, "notes": self.notes}
        return dict(finite({"schema": SCHEMA, "tool": tool, **names, "rows": rows}))

    def to_json(self) -> str:
        """Return the comparison as JSON, ASCII."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_text(self) -> str:
        """Return the rows as aligned columns, names in full."""
        from opnorm.auditing.text import plain_diff

        return plain_diff(self.to_dict())

    def __rich__(self) -> Any:
        """Return the comparison as Rich draws it."""
        from opnorm.auditing.text import diff_table

        return diff_table(self.to_dict())


_BRACKETS = ("base", "tuned", "difference")


def _ends(bracket: Bracket | None) -> dict[str, float] | None:
    return None if bracket is None else {"lower": bracket[0], "upper": bracket[1]}


def diff(
    base: Any,
    tuned: Any,
    *,
    include: Globs = None,
    exclude: Globs = None,
    tolerance: float | None = None,
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> Difference:
    """Return the norms of both checkpoints and of their difference, for tensors of the same name and shape.

    Pairs of a LoRA adapter (`X.lora_A.weight` and `X.lora_B.weight`, or `lora_down` and `lora_up`) are the difference
    of the base's `X.weight`. Tensors are subtracted in float64: exactly, unless they hold float64 themselves.

    Args:
        base: A path or a Keras model, as for `audit`.
        tuned: Likewise, or an adapter's file.
        include: Glob patterns of names.
        exclude: Likewise.
        tolerance: Aim for `upper / lower - 1`.
        time_limit: Seconds for each norm.
        progress: Called with the number of rows done and of all.

    Raises:
        CheckpointError: When a file cannot be read.
    """
    (base_file, first), (tuned_file, second) = opened(base), opened(tuned)
    old, new = ({w.name: w for w in checkpoint.weights} for checkpoint in (first, second))
    pairs = find_pairs(new, fspath(tuned) if hasattr(tuned, "__fspath__") or isinstance(tuned, str) else "")
    settings = Settings(tolerance, time_limit)
    chosen = [job for name, job in _jobs(old, new, pairs, settings) if is_chosen(name, include, exclude)]
    rows = []
    for job in chosen:
        rows.append(job())
        if progress is not None:
            progress(len(rows), len(chosen))
    notes = dict.fromkeys((*first.notes, *second.notes, *(pair.note for pair in pairs if pair.note)))
    return Difference(base_file, tuned_file, tuple(rows), tuple(notes))


def _jobs(
    old: Mapping[str, Weight], new: Mapping[str, Weight], pairs: list[Pair], settings: Settings
) -> Iterator[tuple[str, Job]]:
    """Yield for each row its name and what makes it."""
    targets = {base_name(pair, old): pair for pair in pairs}
    parts = {name for p in pairs for name in (p.up.name, p.down.name, f"{p.stem}.alpha")}
    for name, weight in old.items():
        if name in new:
            yield name, lambda a=weight, b=new[name]: _compared(a, b, settings)  # type: ignore[misc]
        elif name in targets:
            yield name, lambda a=weight, p=targets[name]: _adapted(a, p, settings)  # type: ignore[misc]
        else:
            yield name, lambda a=weight: _alone(a, "base", settings)  # type: ignore[misc]
    for pair in pairs:
        if base_name(pair, old) is None:
            yield pair.stem, lambda p=pair: _adapted(None, p, settings)  # type: ignore[misc]
    for name, weight in new.items():
        if name not in old and name not in parts:
            yield name, lambda b=weight: _alone(b, "tuned", settings)  # type: ignore[misc]


def _compared(a: Weight, b: Weight, settings: Settings) -> DiffRow:
    if a.shape != b.shape:
        return DiffRow(a.name, a.shape, "shapes differ", reason=f"{list(a.shape)} in base, {list(b.shape)} in tuned")
    geometry = b.geometry if a.geometry.assumed else a.geometry
    delta = a._replace(read=lambda: _subtract(values_of(b), values_of(a)))
    return _row(a, [w._replace(geometry=geometry) for w in (a, b, delta)], "compared", settings)


def _adapted(a: Weight | None, pair: Pair, settings: Settings) -> DiffRow:
    """Return the row of a LoRA pair: the norm of the update, and with the base's weight that of the sum."""
    shape, name = update_shape(pair), pair.stem if a is None else a.name
    try:
        B, A = factors(pair)
        update = bracket_product(B, A)
        if a is None:
            return DiffRow(
                name, shape, "LoRA", difference=update, reason="the base has no weight of this name and shape"
            )
        merged = a._replace(read=lambda: values_of(a) + (B @ A).reshape(shape))
        if len(shape) == 2:
            return _row(a, [a, merged], "LoRA", settings, update)
        return _row(a, [a, merged, a._replace(read=lambda: (B @ A).reshape(shape))], "LoRA", settings)
    except (CheckpointError, ValueError) as error:
        return DiffRow(name, shape, "failed", reason=str(error))


def _alone(weight: Weight, where: str, settings: Settings) -> DiffRow:
    row = _row(weight, [weight], f"only in {where}", settings)
    return row if where == "base" else row._replace(base=None, tuned=row.base)


def _row(
    weight: Weight, several: list[Weight], status: str, settings: Settings, difference: Bracket | None = None
) -> DiffRow:
    """Return a row with the brackets of `several`: of the base, of the tuned weight, and of their difference."""
    measured = [measure(one._replace(constraint=None), settings)[0] for one in several]
    found = [None if row.lower is None or row.upper is None else (row.lower, row.upper) for row in measured]
    failed = [row for row in measured if row.status != "bounded"]
    brackets = dict(zip(_BRACKETS, found, strict=False)) | ({"difference": difference} if difference else {})
    row = DiffRow(weight.name, weight.shape, failed[0].status if failed else status, **brackets)  # type: ignore[arg-type]
    reason = failed[0].reason if failed else ""
    if row.base and row.difference and row.base[0] > 0:
        row = row._replace(relative=row.difference[1] / row.base[0])
    return row._replace(reason=reason)


def _subtract(tuned: Array, base: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of two infinities; the row then names the NaN
        return tuned - base
