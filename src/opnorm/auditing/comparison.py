"""What a comparison of two checkpoints found, and the forms in which it is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from opnorm.auditing.report import SCHEMA, finite

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


@dataclass(frozen=True)
class Difference:
    """The rows of a comparison, in the order of the base."""

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
        first, last = self.rows[0].name, self.rows[-1].name  # the base's come first
        return f"nothing to compare: {self.base!r} and {self.tuned!r} share no name; they have {first!r} and {last!r}"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `to_json` writes it."""
        rows = [row._asdict() | {key: _ends(row._asdict()[key]) for key in BRACKETS} for row in self.rows]
        tool = f"opnorm {version('opnorm')}"
        names = {"base": self.base, "tuned": self.tuned, "notes": self.notes, "common": self.common}
        return dict(finite({"schema": SCHEMA, "tool": tool, **names, "rows": rows}))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Difference":
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

    def to_text(self, *, all_rows: bool = False) -> str:
        """Return the rows as aligned columns, names in full; with `all_rows` an optimizer's state too."""
        from opnorm.auditing.text import plain_diff

        return plain_diff(self.to_dict(), all_rows=all_rows)

    def drawn(self, *, all_rows: bool = False) -> Any:
        """Return the comparison as Rich draws it."""
        from opnorm.auditing.text import diff_table

        return diff_table(self.to_dict(), all_rows=all_rows)

    __rich__ = drawn


def _ends(bracket: Bracket | None) -> dict[str, float] | None:
    return None if bracket is None else {"lower": bracket[0], "upper": bracket[1]}


def _bracket(ends: Mapping[str, float] | None) -> Bracket | None:
    return None if ends is None else (ends["lower"], ends["upper"])
