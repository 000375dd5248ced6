"""What a comparison of two checkpoints found, and the forms in which it is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from opnorm.auditing.changes import summarized
from opnorm.auditing.ordering import DiffSort, View
from opnorm.auditing.prompt import Shown
from opnorm.auditing.report import SCHEMA, finite
from opnorm.auditing.screen import Sheet
from opnorm.auditing.sheets import of_diff
from opnorm.auditing.text import plain_diff
from opnorm.tables import frame

Bracket = tuple[float, float]
BRACKETS = ("base", "tuned", "difference")


class DiffRow(NamedTuple):
    """One tensor of either checkpoint."""

    name: str
    shape: tuple[int, ...]
    status: str  # "compared", an adapter's kind, "only in base", "only in tuned", "shapes differ", "skipped", "failed"
    base: Bracket | None = None  # brackets of operator norms
    tuned: Bracket | None = None
    difference: Bracket | None = None
    relative: float | None = None  # upper end of the difference / lower end of the base
    reason: str = ""
    geometry: str = ""  # what the layer does with the weight, and where that is assumed
    adapter: str = ""  # the name of the adapter, where its file names it
    rank: int | None = None  # of what a low-rank adapter adds, at most
    subspaces: Mapping[str, Any] | None = None  # see `auditing.subspaces`; only when asked for


@dataclass(frozen=True, repr=False)
class DiffReport(Shown):
    """The rows of a comparison, in the order of the base."""

    sorts = DiffSort
    largest = "difference"

    base: str
    tuned: str
    rows: tuple[DiffRow, ...]
    notes: tuple[str, ...] = ()
    common: int = 0  # the weights of the base that the other file has, or has an adapter for

    @property
    def nothing_common(self) -> str:
        """Return why there is nothing to compare; "" where there is something."""
        if self.common and self.rows:
            return ""
        if self.common or not self.rows:
            return "nothing to compare: no tensor was chosen"
        failed = next((row for row in self.rows if "adapter" in row.reason), None)
        if failed is not None:
            return f"nothing to compare: {self.tuned!r} has {failed.name!r}: {failed.reason}"
        first, last = self.rows[0], self.rows[-1]  # the base's come first; beside an adapter they are left out
        have = f"they have {first.name!r} and {last.name!r}"
        if first.base is None and first.status not in ("only in base", "skipped"):
            have = f"the latter has {first.name!r}"
        return f"nothing to compare: {self.base!r} and {self.tuned!r} share no name; {have}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `to_json` writes it."""
        rows = [row._asdict() | {key: _ends(row._asdict()[key]) for key in BRACKETS} for row in self.rows]
        tool = f"opnorm {version('opnorm')}"
        names = {"base": self.base, "tuned": self.tuned, "notes": self.notes, "common": self.common}
        return dict(finite({"schema": SCHEMA, "tool": tool, **names, "rows": rows, "summary": summarized(rows)}))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "DiffReport":
        """Return the comparison that `to_dict` wrote."""
        rows = [
            DiffRow(**row | {"shape": tuple(row["shape"])} | {key: _bracket(row[key]) for key in BRACKETS})
            for row in document["rows"]
        ]
        notes = tuple(document["notes"])
        return cls(document["base"], document["tuned"], tuple(rows), notes, document["common"])

    def to_json(self) -> str:
        """Return the comparison as JSON, ASCII."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_text(self, *, all_rows: bool = False, sort: str | None = None, top: int | None = None) -> str:
        """Return the rows as aligned columns, one line a tensor, names in full.

        Args:
            all_rows: An optimizer's state too, which is a count otherwise.
            sort: By "name", "difference", "relative" or "file", the base's own order; of numbers the largest first.
                Unless given the file's order with blocks 2 before 10.
            top: At most so many rows, the largest differences unless `sort` is given.

        Raises:
            ValueError: When an argument does not make sense.
        """
        return plain_diff(self.to_dict(), self._view(all_rows, sort, top))

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame, each end of a bracket a column: `base_lower`. Needs pandas."""
        rows = [_flat(row) for row in self.to_dict()["rows"]]
        ends = [f"{key}_{end}" for key in BRACKETS for end in ("lower", "upper")]
        return frame(rows, [*(key for key in DiffRow._fields if key not in BRACKETS), *ends], [*ends, "relative"])

    def _sheet(self, view: View) -> Sheet:
        return of_diff(self.to_dict(), view)

    def _title(self) -> str:
        return f"DiffReport of {self.tuned} and {self.base}"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the JSON with the ends of its brackets as items of their own."""
    ends = {f"{key}_{end}": row[key] and row[key][end] for key in BRACKETS for end in ("lower", "upper")}
    return {**{key: value for key, value in row.items() if key not in BRACKETS}, **ends}


def _ends(bracket: Bracket | None) -> dict[str, float] | None:
    return None if bracket is None else {"lower": bracket[0], "upper": bracket[1]}


def _bracket(ends: Mapping[str, float] | None) -> Bracket | None:
    return None if ends is None else (ends["lower"], ends["upper"])
