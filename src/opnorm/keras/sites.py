"""Every kernel of a model, with its layer, its geometry and the path that names it."""

from collections.abc import Iterator, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import keras

from opnorm.keras.geometry import KernelGeometry, is_registered, kernels


@singledispatch
def normalizes_its_kernel(layer: Any) -> bool:
    """Return whether `layer` normalizes a kernel in its forward pass, so that a constraint of it would act twice."""
    return isinstance(layer, keras.layers.SpectralNormalization)


class Kernel(NamedTuple):
    """A kernel of a model.

    Args:
        path: The names of the layers that hold it, from the model down, and its own: `"encoder/dense/kernel"`.
        layer: The layer that it belongs to.
        geometry: What the layer makes of it.
        parent: The layer that `layer` is part of, None for the model itself.
    """

    path: str
    layer: keras.Layer
    geometry: KernelGeometry
    parent: keras.Layer | None

    @property
    def variable(self) -> keras.Variable | None:
        """The variable; None before the layer is built."""
        return getattr(self.layer, self.geometry.name) if self.layer.built else None

    @property
    def names(self) -> Iterator[str]:
        """The kernel's path in the model and Keras's, and the paths of the layers on the way to it."""
        for path in {self.path, self.variable.path if self.variable is not None else self.path}:
            parts = path.split("/")
            yield from ("/".join(parts[: end + 1]) for end in range(len(parts)))

    @property
    def place(self) -> tuple[keras.Layer, str]:
        """The layer, and the attribute that holds the kernel."""
        return self.layer, self.geometry.name


class PassedOver(NamedTuple):
    """A weight that may be a kernel but is not known as one, or a layer of such weights; and the reason.

    Of a layer that normalizes its kernel it has the layer.
    """

    path: str
    shape: tuple[int, ...] | None
    reason: str
    layer: keras.Layer | None = None


def find_kernels(model: keras.Layer) -> list[Kernel | PassedOver]:
    """Return every kernel of `model`, in the order of its layers, and the weights that are passed over.

    Biases, and the weights of normalization layers and of PReLU, are neither.

    Raises:
        ValueError: When a layer must be built before its kernels are known.
    """
    return [one for path, layer, parent in walk(model) for one in _of_layer(path, layer, parent)]


def walk(model: keras.Layer) -> Iterator[tuple[str, keras.Layer, keras.Layer | None]]:
    """Yield the path, the layer and its parent for `model`, whose path is empty, and every layer inside, each once."""
    seen: set[int] = set()
    todo: list[tuple[str, keras.Layer, keras.Layer | None]] = [("", model, None)]
    while todo:
        path, layer, parent = todo.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield path, layer, parent
        if not normalizes_its_kernel(layer):
            todo += [(f"{path}/{part.name}".lstrip("/"), part, layer) for part in reversed(_parts(layer))]


def unlike(names: list[str]) -> list[str]:
    """Return the names, of equal ones all but the first numbered."""
    earlier = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{name}_{count}" if count else name for name, count in zip(names, earlier, strict=True)]


def _parts(layer: keras.Layer) -> list[keras.Layer]:
    """Return the layers held by `layer` itself, among its attributes: only a model lists its layers in public."""
    listed = layer.layers if isinstance(layer, keras.Model) else []
    return [*listed, *_layers_in(vars(layer))]


def _layers_in(value: Any) -> Iterator[keras.Layer]:
    if isinstance(value, keras.Layer):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _layers_in(item)


def _of_layer(path: str, layer: keras.Layer, parent: keras.Layer | None) -> Sequence[Kernel | PassedOver]:
    if normalizes_its_kernel(layer):
        return [PassedOver(path, None, f"{type(layer).__name__} normalizes its kernel in the forward pass", layer)]
    if not layer.built and _hides_its_weights(layer):
        return [PassedOver(path, None, "not built: what weights it will have is not known")]
    try:
        geometries = kernels(layer)
    except ValueError as error:
        if not layer.built:
            raise
        return _passed_over(path, _own_weights(layer, 2), str(error))
    obstacle = _obstacle(layer)
    if obstacle:
        return [PassedOver(_join(path, one.name), None, obstacle) for one in geometries]
    known = [Kernel(_join(path, one.name), layer, one, parent) for one in geometries]
    return known + _passed_over(path, _others(layer, known), "no rule: register the layer's type with `opnorm.kernels`")


def _passed_over(path: str, weights: list[keras.Variable], reason: str) -> list[Kernel | PassedOver]:
    return [PassedOver(_join(path, weight.name), tuple(weight.shape), reason) for weight in weights]


def _join(path: str, name: str) -> str:
    return f"{path}/{name}".lstrip("/")


def _hides_its_weights(layer: keras.Layer) -> bool:
    """Return whether a layer that is not built may make kernels in its `build`; raise for a type not of Keras."""
    hides = type(layer).build is not keras.Layer.build and not any(is_registered(part) for _, part, _ in walk(layer))
    if hides and type(layer).__module__.partition(".")[0] != "keras":
        raise ValueError(
            f"Argument `model` must be built: {layer!r} may make kernels when it is. Call it on data first."
        )
    return hides


def _obstacle(layer: keras.Layer) -> str:
    """Return why no kernel of the layer is the matrix that it applies; empty if it is."""
    if getattr(layer, "quantization_mode", None) is not None:
        return "quantized: the stored integers are not the matrix that the layer applies"
    if getattr(layer, "lora_enabled", False):
        return "LoRA: the layer applies the sum of its kernel and an update"
    return ""


def _others(layer: keras.Layer, known: list[Kernel]) -> list[keras.Variable]:
    """Return the layer's own weights that no geometry names; of a known type, only those that may be kernels."""
    if not is_registered(layer):
        return _own_weights(layer, 0)
    if not known:
        return []
    ours = {id(getattr(layer, "bias", None)), *(id(kernel.variable) for kernel in known)}
    return [weight for weight in _own_weights(layer, 2) if id(weight) not in ours]


def _own_weights(layer: keras.Layer, rank: int) -> list[keras.Variable]:
    """Return the weights of at least `rank` dimensions that are not those of a sublayer."""
    parts = {id(weight) for part in _parts(layer) for weight in part.weights}
    return [weight for weight in layer.weights if id(weight) not in parts and len(weight.shape) >= rank]
