"""Keras's layers as a file names them: what each holds, and which variables it has, in which order."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from opnorm.checkpoints.hdf5 import Tensor


class Layer(NamedTuple):
    """A layer as its config, or failing that its name, describes it."""

    kind: str  # the class name; "package>Name" for classes that are not Keras's
    name: str
    config: Mapping[str, Any]
    assumed: bool = False  # there is no config: the kind was guessed from a name


Tensors = Mapping[str, Tensor]

CONVOLUTIONS = {"Conv1D", "Conv2D", "Conv3D"}
TRANSPOSED = {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"}
DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
SEPARABLE = {"SeparableConv1D", "SeparableConv2D"}
CELLS = {"SimpleRNNCell", "LSTMCell", "GRUCell"}
RECURRENT = {"SimpleRNN", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU"}
CONV_RECURRENT = {"ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
CONV_CELLS = {f"{kind}Cell" for kind in CONV_RECURRENT} | {"ConvLSTMCell"}
HEADS = "axis of the heads"  # of a projection's kernel: no key of Keras's
ATTENTION = {"MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"}
MODELS = {"Functional", "Sequential", "Model"}
WRAPPERS = {"TimeDistributed", "Bidirectional", "SpectralNormalization", "opnorm>SpectralNormalization"}

VARIABLES = {  # in the order of Keras's files: trainable ones first
    "Dense": "kernel bias",
    "EinsumDense": "kernel bias",
    "Embedding": "embeddings",
    "ReversibleEmbedding": "embeddings",
    "BatchNormalization": "gamma beta moving_mean moving_variance",
    "LayerNormalization": "gamma beta",
    "GroupNormalization": "gamma beta",
    "RMSNormalization": "scale",
    "SpectralNormalization": "kernel vector_u",
    "Normalization": "mean variance count",
    "PReLU": "alpha",
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED | DEPTHWISE, "kernel bias"),
    **dict.fromkeys(SEPARABLE, "depthwise_kernel pointwise_kernel bias"),
    **dict.fromkeys(CELLS | RECURRENT | CONV_CELLS | CONV_RECURRENT, "kernel recurrent_kernel bias"),
}
_QUANTIZED = {  # after `kernel` and `bias`, or in their place
    "int8": "kernel bias kernel_scale",
    "int4": "kernel bias kernel_scale kernel_zero g_idx",
    "float8": "kernel bias inputs_scale inputs_amax_history kernel_scale kernel_amax_history "
    "outputs_grad_scale outputs_grad_amax_history",
    "gptq": "bias quantized_kernel kernel_scale kernel_zero g_idx",
    "awq": "bias quantized_kernel kernel_scale kernel_zero awq_scales g_idx",
}
_CHANGING = re.compile(r"spectral|weight_?norm|lipschitz|bjorck|ortho|parametri")  # in names of classes not Keras's
_SWITCHES = {"bias": "use_bias", "beta": "center", "gamma": "scale"}


def serialized_layer(entry: Any) -> Layer | None:
    """Return the layer that a piece of a config describes, or None when it is none."""
    if not (isinstance(entry, Mapping) and isinstance(entry.get("class_name"), str)):
        return None
    config = entry.get("config")
    if not isinstance(config, Mapping):
        return None
    name = config.get("name", entry.get("name", ""))
    return Layer(class_of(entry), name if isinstance(name, str) else "", config)


def class_of(entry: Mapping[str, Any]) -> str:
    """Return the class name; one that is not Keras's keeps its package, so it is never taken for Keras's."""
    name, registered, module = entry["class_name"], entry.get("registered_name"), entry.get("module")
    if isinstance(registered, str) and ">" in registered:  # Keras, too, looks here first
        return registered
    if isinstance(module, str) and re.match(r"(tf_|tensorflow\.)?keras(\.src)?\.ops", module):
        return f"keras.ops.{name}"
    if isinstance(module, str) and re.match(r"(tf_|tensorflow\.)?keras(\.src)?\.applications\b", module):
        return f"keras.applications.{name}"
    if isinstance(module, str) and re.match(r"(tf_|tensorflow\.)?keras\b", module):
        return str(name)
    if isinstance(registered, str) and registered != name:
        return f"{registered}>{name}"
    if module is not None or isinstance(registered, str):
        return f"{module or 'custom'}>{name}"
    return str(name)  # files of Keras 1 and 2 name no module


def function_of(entry: Mapping[str, Any]) -> str:
    """Return the name of a function in a config; one of another module keeps that, so it is never taken for Keras's."""
    name, registered, module = entry.get("config"), entry.get("registered_name"), entry.get("module")
    if isinstance(registered, str) and ">" in registered:
        return registered
    own = module is None or module == "builtins" or (isinstance(module, str) and re.match(r"(tf_)?keras\b", module))
    return str(name) if own else f"{module}>{name}"


def guessed_layer(key: str, name: str) -> Layer | None:
    """Return the layer that a group's key ("conv2d_1") or name speaks of, or None."""
    for text in (key, name):
        kind = _BY_SNAKE.get(re.sub(r"_\d+$", "", text))
        if kind is not None:
            return Layer(kind, name or key, {}, assumed=True)
    return None


def snake(kind: str) -> str:
    """Return a class name as Keras writes it in a file's groups: "Conv2DTranspose" as "conv2d_transpose"."""
    text = re.sub(r"\W+", "", kind.split(">")[-1])
    text = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", text)
    return re.sub("([a-z])([A-Z])", r"\1_\2", text).lower()


def sublayer(layer: Layer, key: str) -> Layer | None:
    """Return the layer that a layer keeps under an attribute: a wrapper's, a recurrence's cell, a projection.

    Where the outer one changes the kernels of the inner one in each call, the inner one's config says so under
    `normalized`: the norm that it gives them, or its class where nothing more is known.
    """
    found, change = _sublayer(layer, key), normalization(layer)
    return found._replace(config={**found.config, "normalized": change}) if found and change is not None else found


def normalization(layer: Layer) -> float | str | None:
    """Return what a layer does with the kernels in it: the norm that they get, or a class that may change them."""
    if layer.kind == "opnorm>SpectralNormalization":
        value = layer.config.get("value", 1.0)
        return float(value) if isinstance(value, int | float) else layer.kind
    foreign = ">" in layer.kind and _CHANGING.search(snake(layer.kind))
    return layer.kind if foreign else layer.config.get("normalized")


def _sublayer(layer: Layer, key: str) -> Layer | None:
    key = key.lstrip("_")
    config = layer.config
    if layer.kind in RECURRENT | CONV_RECURRENT and key == "cell":
        return Layer(f"{layer.kind.removeprefix('CuDNN')}Cell", f"{snake(layer.kind)}_cell", config, layer.assumed)
    if layer.kind in ATTENTION and key.endswith("_dense"):
        return _projection(layer, key)
    if layer.kind == "Bidirectional" and key in ("forward_layer", "backward_layer"):
        own = serialized_layer(config.get(key)) or serialized_layer(config.get("layer"))
        return own._replace(name=f"{key.split('_')[0]}_{own.name}") if own else None
    return serialized_layer(config.get(key))


def _projection(layer: Layer, key: str) -> Layer:
    output = layer.config.get("output_shape")
    kept = "efghijk"[: len(output)] if isinstance(output, list | tuple) else "e"
    equation = f"...cd,cd{kept}->...{kept}" if key.startswith("output") else "...c,cde->...de"
    names = ("kernel_constraint", "bias_constraint", "use_bias", "dtype")
    config = {name: layer.config[name] for name in names if name in layer.config}
    name = "attention_output" if key.startswith("output") else key.removesuffix("_dense")
    config |= {"equation": equation, HEADS: 0 if key.startswith("output") else 1}
    return Layer("EinsumDense", name, config, layer.assumed)


def sublayers(config: Mapping[str, Any]) -> Iterator[Layer]:
    """Yield the layers that a config holds directly, wherever in it."""
    for value in config.values():
        for entry in value if isinstance(value, list | tuple) else (value,):
            found = serialized_layer(entry)
            if found is not None:
                yield found


def roles(layer: Layer | None, count: int) -> list[str]:
    """Return the names of a layer's `count` variables, in the order of the file; numbers where nothing tells."""
    names = _expected(layer) if layer else []
    if layer and len(names) != count:  # a guessed layer: without bias, without scale
        names = [name for name in names if name not in ("bias", "beta", "gamma")] if len(names) > count else []
    return names if len(names) == count else [str(i) for i in range(count)]


def _expected(layer: Layer) -> list[str]:
    names = VARIABLES.get(layer.kind, "").split()
    mode = quantization(layer)
    if mode in _QUANTIZED and names and names[0] in ("kernel", "embeddings"):
        names = [name for name in _QUANTIZED[mode].split() if name != "bias" or "bias" in names]
        if layer.kind == "Embedding":
            names = [name.replace("kernel", "embeddings") for name in names]
    return [name for name in names if layer.config.get(_SWITCHES.get(name, ""), True) is not False]


def quantization(layer: Layer) -> str:
    """Return the mode that a layer is quantized in, or ""."""
    policy = layer.config.get("dtype")
    inner = policy.get("config") if isinstance(policy, Mapping) else None
    mode = inner.get("mode") if isinstance(inner, Mapping) else None
    return mode.split("/")[0] if isinstance(mode, str) else ""


def declared_constraint(layer: Layer | None, role: str) -> Mapping[str, Any] | None:
    """Return the config of the constraint that the layer declares for a variable."""
    if layer is None:
        return None
    keys = [f"{role}_constraint", f"{role.removesuffix('_kernel')}_constraint"]
    if layer.kind in DEPTHWISE and "kernel" in role:
        keys.insert(0, "depthwise_constraint")
    return next((layer.config[key] for key in keys if isinstance(layer.config.get(key), Mapping)), None)


_BY_SNAKE = {snake(kind): kind for kind in sorted(set(VARIABLES) | ATTENTION | {"Bidirectional"})}
