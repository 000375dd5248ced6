"""What a Keras config says that a call is given: tensors in the order of the parameters, and everything else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from opnorm.checkpoints.keras_layers import ATTENTION

_ATTENTION = ("query", "value", "key")
_FIRST = ("inputs", "x")  # of layers, and of operations with one tensor
_PAIR = ("x1", "x2")  # of operations with two


class NoGraphError(Exception):
    """The config does not say how the layers are joined."""


class Reference(NamedTuple):
    """One result of a call."""

    layer: str
    number: int
    result: int = 0

    @property
    def call(self) -> tuple[str, int]:
        """The call: layer name, index."""
        return self.layer, self.number


class Given(NamedTuple):
    """What a call is given."""

    tensors: tuple[Reference, ...]  # in the order in which the layer takes them
    arguments: Mapping[str, Any]  # the rest: by keyword, and under `args` by position
    keys: tuple[str, ...] = ()  # of the table that the tensors stand in, in their order
    unclear: str = ""  # why it is not known what becomes of them


def given(node: Any, kind: str) -> Given:
    """Return what a layer of a kind is given by one of its calls, in Keras 3's notation or that of Keras 1 and 2."""
    by_place, by_name = _written(node)
    if kind in ATTENTION:  # None may stand between what it is given
        by_name = {**dict(zip(_ATTENTION, by_place, strict=False)), **by_name}
        by_place = [value for value in by_place[len(_ATTENTION) :] if value is not None]
    order = _ATTENTION if kind in ATTENTION else (*_FIRST, *_PAIR)
    holding = [name for name in by_name if _holds(by_name[name])]
    known = sorted((name for name in holding if name in order), key=order.index)
    unknown = sorted(set(holding) - set(known))
    first = [value for value in by_place if _holds(value)]
    values = [*(first if kind not in ATTENTION else ()), *(by_name[name] for name in known)]
    others = [*(first if kind in ATTENTION else ()), *(by_name[name] for name in unknown)]
    plain = [value for value in by_place if not _holds(value)]
    return Given(
        tuple(tensor for value in (*values, *others) for tensor in tensors_in(value)),
        {
            **({"args": plain} if plain else {}),
            **{name: value for name, value in by_name.items() if value is not None and name not in holding},
        },
        _keys(values),
        _unclear(kind, len(first), known, unknown) or _mixture((*values, *others)),
    )


def _unclear(kind: str, count: int, known: Sequence[str], unknown: Sequence[str]) -> str:
    """Return why it is not told which parameters of a layer the tensors are, "" where it is.

    Args:
        kind: Of the layer.
        count: How many arguments with tensors have no name.
        known: The names of others that tell the parameter.
        unknown: The names of others that do not.
    """
    if unknown:
        return f"called with a tensor as `{unknown[0]}`"
    if kind in ATTENTION:
        return "called with tensors beside query, value and key" if count else ""
    alone = not count and len(known) == 1
    in_order = tuple(known) in ((), _PAIR) if not count else tuple(known) in ((), _PAIR[count:])
    return "" if alone or in_order else f"called with a tensor as `{known[0]}`"


def _mixture(values: Sequence[Any]) -> str:
    return "" if all(map(_is_pure, values)) else "called with a constant among its tensors"


def _is_pure(value: Any) -> bool:
    """Return whether an argument is a tensor, or a list or table of nothing but such."""
    if is_tensor(value):
        return True
    if isinstance(value, Mapping):
        return "class_name" not in value and all(map(_is_pure, value.values()))
    return isinstance(value, list) and all(map(_is_pure, value))


def _keys(values: Sequence[Any]) -> tuple[str, ...]:
    """Return the keys of the one table of tensors that a call was given; of what else has tables, no key."""
    tables = [value for value in values if isinstance(value, Mapping) and not is_tensor(value)]
    if not tables:
        return ()
    is_all = len(values) == 1 and all(map(is_tensor, tables[0].values()))
    return tuple(sorted(tables[0])) if is_all else ("",)


def _written(node: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call that have no name, and those that have one."""
    if is_new(node):
        return list(node.get("args") or []), dict(node.get("kwargs") or {})
    by_name: dict[str, Any] = {}
    value = _plain(node, by_name)
    return ([value[0]] if isinstance(value, list) and len(value) == 1 else [value]), by_name


def _plain(node: Any, by_name: dict[str, Any]) -> Any:
    """Return a call as Keras 1 and 2 write it without the named arguments, which each tensor has, and note those."""
    if _is_reference(node):
        by_name.update(node[3] if len(node) > 3 and isinstance(node[3], Mapping) else {})
        return node[:3]
    if isinstance(node, Mapping):
        return {key: _plain(value, by_name) for key, value in node.items()}
    return [_plain(value, by_name) for value in node] if isinstance(node, list) else node


def is_new(node: Any) -> bool:
    """Return whether a call is written as Keras 3 does."""
    return isinstance(node, Mapping) and "args" in node and set(node) <= {"args", "kwargs"}


def is_tensor(node: Any) -> bool:
    """Return whether an argument is one tensor."""
    return _is_reference(node) or (isinstance(node, Mapping) and node.get("class_name") == "__keras_tensor__")


def tensors_in(node: Any) -> Iterator[Reference]:
    """Yield the calls whose results an argument holds, of a table in the order of its keys, in which Keras takes it.

    Raises:
        NoGraphError: Where one is no reference.
    """
    if isinstance(node, Mapping):
        history = node.get("config", {}).get("keras_history") if node.get("class_name") == "__keras_tensor__" else None
        if history:
            yield _reference(history)
        else:
            yield from (found for key in sorted(node) for found in tensors_in(node[key]))
    elif _is_reference(node):
        yield _reference(node)
    elif isinstance(node, list):
        yield from (found for value in node for found in tensors_in(value))


def _holds(value: Any) -> bool:
    return any(True for _ in tensors_in(value))


def _is_reference(node: Any) -> bool:
    return isinstance(node, list) and len(node) in (3, 4) and isinstance(node[0], str) and type(node[1]) is int


def _reference(node: Any) -> Reference:
    if not _is_reference(node) or type(node[2]) is not int or node[2] < 0:
        raise NoGraphError
    return Reference(*node[:3])
