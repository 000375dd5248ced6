"""What an audit found: one row for every tensor, and the forms in which it is read."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from math import isfinite
from typing import Any, NamedTuple

from opnorm.auditing.ordering import Sort, View
from opnorm.auditing.parts import Part, told
from opnorm.auditing.prompt import Shown
from opnorm.auditing.screen import Sheet
from opnorm.auditing.sheets import of_report
from opnorm.auditing.text import plain
from opnorm.tables import frame, printable

SCHEMA = 1  # of the JSON; it grows when a key changes its meaning or goes
_FORMULA = tuple(
    "=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
_BREAKS = tuple(
    "\t\r\n"
)  # a text cell that starts with one of these, or with a formula's sign, may be run by a spreadsheet

NUMBERS = ("lower", "upper", "matrix_norm", "frobenius", "stable_rank", "rms_norm", "seconds")  # of a row

Reading = tuple[str, float | None, float | None]  # what is done with the tensor, and the ends of the bracket


class Row(NamedTuple):
    """One tensor of a checkpoint. Numbers are None where they are not known, and `reason` then says why."""

    name: str
    kind: str  # the layer that holds it, or "unknown"
    shape: tuple[int, ...]
    dtype: str
    geometry: str  # what is done with the tensor, for people
    assumed: bool  # the geometry is a guess from shape and name
    status: str = "failed"  # "bounded"; "skipped": no linear map; "failed": has or may have a norm that is not known
    lower: float | None = None  # lower <= operator norm <= upper
    upper: float | None = None
    reason: str = ""
    method: str = ""
    matrix_norm: float | None = None  # upper end for the kernel as a matrix (-1, channels out), the largest of a group
    frobenius: float | None = None  # of that matrix; where there is none, of the stored tensor
    stable_rank: float | None = None  # frobenius^2 / norm^2 of that matrix, never below the truth
    rms_norm: float | None = None  # upper * sqrt(inputs / outputs): the norm between root-mean-square norms
    flags: tuple[str, ...] = ()  # of "nan", "inf", "zero", "time limit"
    constraint: Mapping[str, Any] | None = None  # name, operator, value, and met: "yes", "no" or "unknown"
    seconds: float = 0.0
    readings: tuple[Reading, ...] = ()  # where the geometry is assumed: what else the layer may do with the tensor
    parts: tuple[Part, ...] = ()  # experts of a stack, projections and heads that share a matrix: each by itself


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The rows of an audit in the order of the file.

    Args:
        file: What was audited.
        format: Its format.
        rows: One for every tensor that was asked for.
        notes: What was not understood, not run, or left out.
        network: The bound of the whole network, where the file tells its graph.
        spectra: Singular values by tensor, largest first, as (index, value) pairs; only when asked for.
    """

    sorts = Sort
    largest = "norm"

    file: str
    format: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    network: dict[str, Any] | None = None
    spectra: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as `to_json` writes it: no NaN and no infinity, None instead."""
        document = {
            "schema": SCHEMA,
            "tool": f"opnorm {version('opnorm')}",
            "file": self.file,
            "format": self.format,
            "notes": list(self.notes),
            "rows": [row._asdict() for row in self.rows],
            "network": self.network,
        }
        return dict(finite(document))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], spectra: Mapping[str, Any]) -> "Report":
        """Return the report that `to_dict` wrote, with its spectra."""
        rows = tuple(Row(**{key: _tuples(value) for key, value in row.items()}) for row in document["rows"])
        values = {name: _tuples(points) for name, points in spectra.items()}
        return cls(document["file"], document["format"], rows, tuple(document["notes"]), document["network"], values)

    def to_json(self) -> str:
        """Return the report as JSON of schema 1, ASCII."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """Return the rows as CSV; text that a spreadsheet would run as a formula starts with an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(Row._fields)
        for row in self.to_dict()["rows"]:
            writer.writerow([_cell(value) for value in row.values()])
        return text.getvalue()

    def to_html(self) -> str:
        """Return the report as one HTML document that loads nothing; needs jinja2."""
        from opnorm.auditing.html import render

        return render(self.to_dict(), self.spectra)

    def to_text(self, *, all_rows: bool = False, sort: str | None = None, top: int | None = None) -> str:
        """Return the rows as aligned columns, one line a tensor, names in full.

        Args:
            all_rows: An optimizer's state too, which is a count otherwise.
            sort: By "name", "norm", "rank" (stable rank), "size" or "file", the file's own order; of numbers the
                largest first. Unless given the file's order with blocks 2 before 10.
            top: At most so many rows, the largest norms unless `sort` is given.

        Raises:
            ValueError: When an argument does not make sense.
        """
        return plain(self.to_dict(), self._view(all_rows, sort, top))

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame; numbers that are not known are NaN. Needs pandas."""
        return frame(self.to_dict()["rows"], Row._fields, NUMBERS)

    def _sheet(self, view: View) -> Sheet:
        return of_report(self.to_dict(), view)

    def _title(self) -> str:
        return f"Report on {self.file} ({self.format})"


def finite(value: Any) -> Any:
    """Return `value` as JSON can hold it: what is not finite becomes None, whatever its depth."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _cell(value: Any) -> str | float:
    if value is None:
        return ""
    if isinstance(value, float):
        return value
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = told(value)  # the JSON has all
    if isinstance(value, list):
        value = json.dumps(value) if any(isinstance(item, list) for item in value) else " ".join(map(str, value))
    text = str(value)
    return printable(f"'{text}" if text.startswith(_BREAKS) or text.lstrip().startswith(_FORMULA) else text)
