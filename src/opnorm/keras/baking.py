"""A model written as plain layers: what constraints and wrappers made of its kernels, stored in the kernels."""

from collections.abc import Iterator
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import keras
from keras import ops

from opnorm.backends import Tensor
from opnorm.checks import require
from opnorm.keras.base import OperatorConstraint, require_layer
from opnorm.keras.regularizers import SpectralRegularizer
from opnorm.keras.sites import walk
from opnorm.keras.wrappers import SpectralNormalization, inside

_REMEDY = (
    "Bake the parts that are layers, Functional or Sequential models one by one, or let the class take such parts as "
    "arguments that its `get_config` returns."
)


def bake(model: keras.Layer) -> Any:
    """Return a new model that computes what `model` computes, made of plain layers: for export, files, quantization.

    Wherever they are, in nested models, `TimeDistributed`, attention, each `opnorm.SpectralNormalization` becomes the
    layer that it wraps, under the wrapper's name, with the normalized kernels stored; LoRA updates are scaled along
    and stay apart. Constraints and penalties of opnorm are gone. All other weights are copied exactly, layers keep
    their names and order, and `model` is left as it is. What is returned, and its files, do not need opnorm.

    What is returned can be exported at once, subclassed or not: it is built, and has been called on symbols.

    Carried are the layers and their weights. Compile it anew where it has to train; what is not part of the function
    in inference is new: optimizer and metrics, the seeds of `Dropout`. A layer shared by two nested models becomes
    one for each. Keras's own `SpectralNormalization` stays.

    Args:
        model: A built `keras.Model` or `keras.Layer`, subclassed or not, that its own `get_config` rebuilds.

    Raises:
        ValueError: When `model` is not built, cannot be rebuilt from its configuration, makes opnorm's objects in its
            own code, or calls one layer both wrapped and plain.

    Example:
        >>> opnorm.bake(model).export("folder")
    """
    require_layer(model)
    require(model.built, "model", "must be built before it is baked", model)
    values = _values(model)
    baked = _rebuilt(model)
    _require_plain(baked, model)
    _copy(model, baked, values)
    _call_once(baked, model)
    return baked


def _call_once(baked: keras.Layer, model: keras.Layer) -> None:
    """Call a model on symbols of the inputs that `model` was built for: Keras does not export what was never called."""
    if isinstance(baked, keras.Model):
        with suppress(Exception):  # code that wants numbers: Keras will ask for a first call, and say so
            args, named = _inputs(baked, model.get_build_config() or {})
            baked(*args, **named)


def _inputs(baked: Any, shapes: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return symbols as the arguments of the model's call; Functional and Sequential models know their own."""
    if getattr(baked, "inputs", None):
        return [baked.inputs[0] if isinstance(baked, keras.Sequential) else baked.input], {}
    if "input_shape" in shapes:
        return [_symbols(shapes["input_shape"], baked)], {}
    return [], {name.removesuffix("_shape"): _symbols(shape, baked) for name, shape in shapes["shapes_dict"].items()}


def _symbols(shape: Any, model: keras.Layer) -> Any:
    if isinstance(shape, dict):
        return {name: _symbols(part, model) for name, part in shape.items()}
    if shape and all(size is None or isinstance(size, int) for size in shape):
        return keras.KerasTensor((None, *shape[1:]), dtype=model.input_dtype)
    return [_symbols(part, model) for part in shape]


def _values(layer: keras.Layer) -> dict[int, Tensor]:
    """Return the value that each weight has when its layer is called, by the weight's id."""
    values = {id(weight): weight.value for weight in layer.weights}
    parts = [part for _, part, _ in walk(layer)]
    wrappers = [part for part in parts if isinstance(part, SpectralNormalization)]
    _require_one_use(layer, [part for part in parts if not isinstance(part, SpectralNormalization)], wrappers)
    for wrapper in wrappers:
        with wrapper.normalized():
            values |= _values(wrapper.layer)
    return values


def _require_one_use(model: keras.Layer, plain: list[keras.Layer], wrappers: list[SpectralNormalization]) -> None:
    """Raise if a layer inside a wrapper is used without it too, or by another one: its kernel has several values."""
    used = {id(part) for part in plain}
    for wrapper in wrappers:
        parts = {id(part): part for part in inside(wrapper.layer)}
        for key in parts.keys() & used:
            raise ValueError(
                f"Argument `model` must not use the layer '{parts[key].name}' both inside '{wrapper.name}' and outside "
                f"of it: no single kernel does both. Received: model={model!r}"
            )
        used |= parts.keys()


def _rebuilt(model: keras.Layer) -> Any:
    """Return a model of plain layers, with new weights."""
    types = {type(part) for part in inside(model)}
    custom = {kind.__name__: kind for kind in types if kind.__module__.partition(".")[0] != "keras"}
    try:
        config = _plain(keras.saving.serialize_keras_object(model))
        return keras.saving.deserialize_keras_object(config, custom_objects=custom, safe_mode=False)  # our own lambdas
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"Argument `model` must be rebuilt by its `get_config` and `from_config`, as by "
            f"`keras.models.clone_model`. {_REMEDY} Received: model={model!r}"
        ) from error


def _plain(config: Any) -> Any:
    """Return a serialized object without any of opnorm's, and not compiled."""
    if isinstance(config, list | tuple):
        return type(config)(map(_plain, config))
    if not isinstance(config, dict):
        return config
    kind = _class_of(config)
    if issubclass(kind, SpectralNormalization):
        return _plain(_unwrapped(config))
    if issubclass(kind, OperatorConstraint | SpectralRegularizer):
        return None
    return {name: _plain(value) for name, value in config.items() if name != "compile_config"}


def _class_of(config: dict[str, Any]) -> type:
    name = config.get("registered_name")
    found = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    return found if isinstance(found, type) else object


def _unwrapped(config: dict[str, Any]) -> dict[str, Any]:
    """Return the wrapped layer's configuration, in the wrapper's place: its name, and its calls in a Functional."""
    layer = config["config"]["layer"]
    trainable = config["config"]["trainable"] and layer["config"].get("trainable", True)
    place = {name: config[name] for name in ("name", "inbound_nodes") if name in config}
    settings = layer["config"] | {"name": config["config"]["name"], "trainable": trainable}
    return {**layer, **place, "config": settings}


def _require_plain(baked: keras.Layer, model: keras.Layer) -> None:
    """Raise if a class made opnorm's objects again, whatever its configuration said."""
    ours = OperatorConstraint, SpectralRegularizer
    left = [path for path, part, _ in walk(baked) if isinstance(part, SpectralNormalization)]
    left += [w.path for w in baked.weights if isinstance(w.constraint, ours) or isinstance(w.regularizer, ours)]
    if left:
        raise ValueError(
            f"Argument `model` must not make constraints or wrappers in its own code, which makes '{left[0]}' anew "
            f"whatever the configuration says. {_REMEDY} Received: model={model!r}"
        )


def _copy(source: keras.Layer, target: keras.Layer, values: dict[int, Tensor]) -> None:
    """Give `target` the weights of `source`, as `values` has them, and its vocabularies."""
    for old, new in _pairs(source, target):
        weights, copies = _weights(old), _weights(new)
        if [tuple(weight.shape) for weight in weights] != [tuple(copied.shape) for copied in copies]:
            raise ValueError(
                f"Argument `model` must be rebuilt by its configuration: '{old.name}' has other weights then. "
                f"{_REMEDY} Received: model={source!r}"
            )
        for weight, copied in zip(weights, copies, strict=True):
            copied.assign(ops.copy(values[id(weight)]))  # JAX donates a variable's buffer to its training step
        if hasattr(old, "save_assets"):
            _copy_vocabulary(old, new)
    for _, layer, _ in walk(target):
        if isinstance(layer, keras.layers.Normalization) and layer.built:
            layer.finalize_state()  # it computes with tensors made of its weights


def _pairs(old: Any, new: Any) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Yield each layer and its copy, of models their layers: one may be in several models."""
    while isinstance(old, SpectralNormalization):
        old = old.layer
    yield old, new
    for part, copied in zip(_listed(old), _listed(new), strict=False):  # weights are counted by `_copy`
        yield from _pairs(part, copied)


def _listed(layer: Any) -> list[keras.Layer]:
    return layer.layers if isinstance(layer, keras.Model) else []


def _weights(layer: keras.Layer) -> list[keras.Variable]:
    """Return the weights of `layer` but those of the layers that a model lists, and the vectors of wrappers inside."""
    wrappers = [part for part in inside(layer) if isinstance(part, SpectralNormalization)]
    vectors = {id(w) for one in wrappers for w in one.weights} - {id(w) for one in wrappers for w in one.layer.weights}
    listed = {id(weight) for part in _listed(layer) for weight in part.weights}
    return [weight for weight in layer.weights if id(weight) not in vectors | listed]


def _copy_vocabulary(old: Any, new: Any) -> None:
    """Copy what `StringLookup` and `TextVectorization` keep beside their weights."""
    with TemporaryDirectory() as folder:
        old.save_assets(folder)
        new.load_assets(folder)
