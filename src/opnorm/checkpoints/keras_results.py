"""What Keras calls give when they give several values, or part of one: `ops.split` and slices."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import index
from typing import Any

from opnorm.checkpoints.files import require
from opnorm.checkpoints.keras_shapes import Shape, Size
from opnorm.checkpoints.records import Node

_SPLIT, _ITEM = "keras.ops.Split", "keras.ops.GetItem"
_SLICE, _ELLIPSIS = "__slice__", "__ellipsis__"  # class names of entries of a key
_WHOLE = {"class_name": _SLICE, "config": {}}


def result_node(node: Node, result: int) -> Node:
    """Return the node of one result of a call, whose first result is `node`.

    A part of a split is a node of its own, as is a slice, in ONNX's words: a Split with its `split`, a Slice whose
    `cuts` are one for each axis. Of other layers does not hold of further results what holds of the first.
    """
    name = f"{node.name}:{result}" if result else node.name
    if node.kind == _SPLIT:
        return node._replace(name=name, kind="Split", options=_split(node.options, result))
    if result:
        return Node(name, f"result {result + 1} of {node.kind}", node.inputs, {}, {})
    cuts = _cuts(node) if node.kind == _ITEM and len(node.inputs) == 1 else None
    return node if cuts is None else node._replace(kind="Slice", options={**_plain(node.options), "cuts": cuts})


def picked_shape(node: Node) -> Shape | None:
    """Return the shape of part of a value, None for other nodes, and where it is not known."""
    shapes = node.options.get("input_shapes") or (None,)
    if node.kind not in ("Split", "Slice", _ITEM) or shapes[0] is None:
        return None
    try:
        if node.kind == _ITEM:
            return _without_numbered(_entries(node) or (), list(shapes[0]))
        return _picked(node.options, list(shapes[0]))
    except (ArithmeticError, LookupError, TypeError, ValueError):  # configs come from files
        return None


def _picked(options: Mapping[str, Any], shape: list[Size]) -> Shape | None:
    if "cuts" in options:
        cuts = zip(shape, options["cuts"], strict=False)
        cut = [size if places == slice(None) else len(range(index(size))[places]) for size, places in cuts]  # type: ignore[arg-type]
        return (*cut, *shape[len(cut) :])
    shape[options["axis"]] = options["split"][options["part"]]
    return tuple(shape)


def _without_numbered(entries: Sequence[int | slice], shape: list[Size]) -> Shape | None:
    """Return what a key leaves of a shape: an axis of which it takes one entry by its number is gone."""
    for size, entry in zip(shape, entries, strict=False):
        if isinstance(entry, int):
            range(index(size))[entry]  # type: ignore[arg-type]  # raises where there is none
    kept = [
        size if entry == slice(None) else len(range(index(size))[entry])  # type: ignore[arg-type]
        for size, entry in zip(shape, entries, strict=False)
        if isinstance(entry, slice)
    ]
    return (*kept, *shape[len(entries) :]) if entries and len(entries) <= len(shape) else None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "arguments"}


def _split(options: Mapping[str, Any], part: int) -> dict[str, Any]:
    told, axis = options.get("indices_or_sections"), options.get("axis", 0)
    kept = {"input_shapes": options.get("input_shapes"), "axis": axis, "part": part}
    try:
        sizes = _sizes(told, options["input_shapes"][0][axis])
        require(min(sizes) >= 0, "parts that overlap, as NumPy takes them")
    except (ArithmeticError, LookupError, TypeError, ValueError):  # as above, or the axis is open
        return kept
    return {**kept, "split": sizes}


def _sizes(told: Any, size: Size) -> list[int]:
    if isinstance(told, int):
        return [index(size) // told] * told if told <= index(size) else []  # type: ignore[arg-type]
    ends: Sequence[int] = [0, *map(index, told), index(size)]  # type: ignore[arg-type]
    return [after - before for before, after in pairwise(ends)]


def _cuts(node: Node) -> tuple[slice, ...] | None:
    """Return the slices of a key, one an axis, None where it holds anything else."""
    entries = _entries(node)
    cuts = [entry for entry in entries or () if isinstance(entry, slice)]
    return tuple(cuts) if entries is not None and len(cuts) == len(entries) else None


def key_of(node: Node) -> list[Any] | None:
    """Return the entries of the key with which a tensor is cut, as Keras writes them; None where there are others."""
    arguments = node.options.get("arguments") or {}
    keys: Sequence[Any] = arguments.get("args") or ()
    if len(keys) != 1 or len(arguments) != 1:
        return None
    entries = keys[0] if isinstance(keys[0], list) else list(keys)
    return entries if all(type(entry) is int or _class_of(entry) in (_SLICE, _ELLIPSIS) for entry in entries) else None


def _class_of(entry: Any) -> Any:
    return entry.get("class_name") if isinstance(entry, Mapping) else None


def _entries(node: Node) -> list[int | slice] | None:
    """Return the numbers and slices of a key, one an axis, None where it holds anything else."""
    (shape,), entries = node.options.get("input_shapes") or (None,), key_of(node)
    if entries is None:
        return None
    kinds = [_class_of(entry) for entry in entries]
    if kinds.count(_ELLIPSIS) == 1 and shape is not None:  # as many whole axes as are not named
        place = kinds.index(_ELLIPSIS)
        whole: list[Any] = [_WHOLE] * (len(shape) + 1 - len(entries))
        entries = [*entries[:place], *whole, *entries[place + 1 :]]
    found = [_entry(entry) for entry in entries]
    return None if None in found else [entry for entry in found if entry is not None]


def _entry(entry: Any) -> int | slice | None:
    if type(entry) is int:
        return entry
    if _class_of(entry) != _SLICE:
        return None
    ends = [entry["config"].get(end) for end in ("start", "stop", "step")]
    return slice(*ends) if all(end is None or type(end) is int for end in ends) else None
