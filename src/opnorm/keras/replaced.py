"""What a live model's layers do and their configs do not say: activations not Keras's own, methods that were replaced.

Keras writes a function by its bare name wherever it has one of that name itself, and a layer by its class.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_ITS_OWN = {"build", "quantize", "loss"}  # that Keras itself puts in the place of methods: no part of what is computed
_OTHERWISE = ("gelu",)  # functions of `keras.ops` with other defaults than the activation of their name


def told(entry: Any, layers: Iterable[Any]) -> Any:
    """Return a config in which what some live layers really do has names that are not Keras's.

    Args:
        entry: The JSON of a model or layer: `{"class_name": ..., "config": ...}`.
        layers: The layers and operations that it is of; of several with one name none may do anything else.
    """
    by_name: dict[str, list[Any]] = defaultdict(list)
    for layer in layers:
        by_name[str(layer.name)].append(layer)
    return _told(entry, by_name)


def _told(entry: Any, by_name: Mapping[str, list[Any]]) -> Any:
    if isinstance(entry, list):
        return [_told(one, by_name) for one in entry]
    if not isinstance(entry, dict):
        return entry
    entry = {key: _told(value, by_name) for key, value in entry.items()}
    config = entry.get("config")
    if not isinstance(entry.get("class_name"), str) or not isinstance(config, dict):
        return entry
    layers = by_name.get(str(config.get("name", entry.get("name"))), [])
    activations = {key: _foreign(key, layers) for key in config if key.endswith("activation")}
    entry["config"] = {**config, **{key: value for key, value in activations.items() if value is not None}}
    replaced = next((name for layer in layers for name in _replaced(layer)), None)
    if replaced is not None:
        entry |= {"class_name": f"{entry['class_name']} whose `{replaced}` was replaced", "registered_name": None}
    return entry


def _replaced(layer: Any) -> Iterator[str]:
    """Yield the methods of an instance that are not those of its class."""
    own = {name for name, value in vars(layer).items() if callable(value)} - _ITS_OWN
    yield from sorted(name for name in own if callable(getattr(type(layer), name, None)))


def _foreign(key: str, layers: Iterable[Any]) -> Mapping[str, Any] | None:
    """Return the config of the first activation that is none of Keras's; None where all are."""
    found = (getattr(layer, key, None) for layer in layers)
    function = next((one for one in found if not _is_known(one)), None)
    if function is None:
        return None
    name = str(getattr(function, "__name__", type(function).__name__))
    module = str(getattr(function, "__module__", ""))
    told = module if module.split(".")[0] not in ("keras", "tf_keras", "builtins", "") else f"not Keras's, of {module}"
    return {"class_name": "function", "module": told, "config": name}


def _is_known(function: Any) -> bool:
    """Return whether an activation is a layer, whose class its config tells, or the function of Keras's of its name."""
    import keras

    if function is None or isinstance(function, str | keras.Layer):
        return True
    name = getattr(function, "__name__", "")
    by_operation = name not in _OTHERWISE and getattr(keras.ops, name, None) is function
    return by_operation or getattr(keras.activations, name, None) is function
