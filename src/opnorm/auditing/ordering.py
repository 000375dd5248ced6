"""The order in which rows are shown: blocks 2 before 10, the largest first, or as the file has them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from math import prod
from numbers import Integral
from typing import Any, NamedTuple

Row = Mapping[str, Any]
_NUMBER = re.compile(r"([0-9]{1,18})")  # what it splits has its numbers at the odd places
_NUMBERS = 16  # of a name that count: names come from files, and work grows with the square


class Sort(StrEnum):
    """What rows are sorted by; names stand in their natural order, of numbers the largest are first."""

    name = "name"
    norm = "norm"
    rank = "rank"
    size = "size"
    file = "file"


class DiffSort(StrEnum):
    """What the rows of a comparison are sorted by."""

    name = "name"
    difference = "difference"
    relative = "relative"
    file = "file"


class View(NamedTuple):
    """Which rows are shown, and how they are sorted."""

    all_rows: bool = False  # those too that are otherwise folded to a count
    sort: str | None = None  # None: `depth_order`, and with `top` the largest first
    top: int | None = None  # at most so many

    def checked(self, sorts: type[StrEnum], largest: str) -> "View":
        """Return the view with its order filled in: `largest` where only a number of rows was asked for.

        Raises:
            ValueError: When an argument does not make sense, with its name and value.
        """
        names = [str(one) for one in sorts]
        counted = isinstance(self.top, Integral) and not isinstance(self.top, bool) and self.top >= 1
        _require(isinstance(self.all_rows, bool), "all_rows", "must be True or False", self.all_rows)
        _require(self.sort is None or self.sort in names, "sort", f"must be one of {', '.join(names)}", self.sort)
        _require(self.top is None or counted, "top", "must be a positive integer", self.top)
        return self._replace(sort=self.sort or (largest if self.top else None))


def _require(holds: bool, name: str, must: str, value: object) -> None:
    if not holds:
        from opnorm.checks import require  # brings NumPy, which a report that is only shown does without

        require(holds, name, must, value)


def depth_order(names: Sequence[str]) -> list[int]:
    """Return the places of `names` by depth: as the file has them, with blocks 2 before 10.

    A file that lists its tensors in the order of its layers is left alone. In one that is sorted as text, or not at
    all, names are sorted by their numbers, and by the first appearance of the texts between numbers.
    """
    parts = [_split(name) for name in names]
    if _numbers_ascend(parts):
        return list(range(len(names)))
    ranks: dict[tuple[str, ...], int] = {}
    keys = [[_rank(part, place, ranks) for place in range(len(part))] for part in parts]
    return sorted(range(len(names)), key=lambda i: (keys[i], i))


def _split(name: str) -> list[str]:
    return _NUMBER.split(name, maxsplit=_NUMBERS)


def _numbers_ascend(parts: Sequence[Sequence[str]]) -> bool:
    """Return whether no number comes after a larger one that follows the same text."""
    last: dict[tuple[str, ...], int] = {}
    for part in parts:
        for place in range(1, len(part), 2):
            before, value = tuple(part[:place]), int(part[place])
            if value < last.get(before, value):
                return False
            last[before] = value
    return True


def _rank(part: Sequence[str], place: int, ranks: dict[tuple[str, ...], int]) -> int:
    """Return a number as it is, and of a text when it first appeared, whatever the numbers before it."""
    if place % 2:
        return int(part[place])
    texts = tuple(part[: place + 1 : 2])
    return ranks.setdefault(texts, len(ranks))


def _by_name(row: Row) -> list[str | int]:
    return [int(text) if place % 2 else text for place, text in enumerate(_split(row["name"]))]


def _largest(number: Callable[[Row], float | None]) -> Callable[[Row], tuple[bool, float]]:
    """Return a key by which the largest number comes first, and what is not known last."""

    def key(row: Row) -> tuple[bool, float]:
        value = number(row)
        return (value is None, 0.0 if value is None else -value)

    return key


_KEYS: Mapping[str, Callable[[Row], Any]] = {
    "name": _by_name,
    "norm": _largest(lambda row: row["upper"]),
    "rank": _largest(lambda row: row["stable_rank"]),
    "size": _largest(lambda row: prod(row["shape"])),
    "difference": _largest(lambda row: row["difference"] and row["difference"]["upper"]),
    "relative": _largest(lambda row: row["relative"]),
}


def arranged(rows: Iterable[Row], sort: str | None) -> list[Row]:
    """Return the rows in the order `sort`, one of `Sort` or `DiffSort`; None is `depth_order`."""
    rows = list(rows)
    if sort is None:
        return [rows[i] for i in depth_order([row["name"] for row in rows])]
    return rows if sort == "file" else sorted(rows, key=_KEYS[sort])
