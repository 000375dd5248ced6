"""Keras's layers as a file names them: which variables each has, in which order, and what it does with them."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.hdf5 import Tensor
from opnorm.checkpoints.records import Geometry


class Layer(NamedTuple):
    """A layer as its config, or failing that its name, describes it."""

    kind: str  # the class name; "package>Name" for classes that are not Keras's
    name: str
    config: Mapping[str, Any]
    assumed: bool = False  # there is no config: the kind was guessed from a name


Tensors = Mapping[str, Tensor]

_CONVOLUTIONS = {"Conv1D", "Conv2D", "Conv3D"}
_TRANSPOSED = {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"}
_DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
_SEPARABLE = {"SeparableConv1D", "SeparableConv2D"}
_CELLS = {"SimpleRNNCell", "LSTMCell", "GRUCell"}
_RECURRENT = {"SimpleRNN", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU"}
_CONV_RECURRENT = {"ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
_CONV_CELLS = {f"{kind}Cell" for kind in _CONV_RECURRENT} | {"ConvLSTMCell"}
_NORMALIZATIONS = {"LayerNormalization", "GroupNormalization", "RMSNormalization"}
_ATTENTION = {"MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"}
MODELS = {"Functional", "Sequential", "Model"}
WRAPPERS = {"TimeDistributed", "Bidirectional", "SpectralNormalization", "opnorm>SpectralNormalization"}

_VARIABLES = {  # in the order of Keras's files: trainable ones first
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
    **dict.fromkeys(_CONVOLUTIONS | _TRANSPOSED | _DEPTHWISE, "kernel bias"),
    **dict.fromkeys(_SEPARABLE, "depthwise_kernel pointwise_kernel bias"),
    **dict.fromkeys(_CELLS | _RECURRENT | _CONV_CELLS | _CONV_RECURRENT, "kernel recurrent_kernel bias"),
}
_QUANTIZED = {  # after `kernel` and `bias`, or in their place
    "int8": "kernel bias kernel_scale",
    "int4": "kernel bias kernel_scale kernel_zero g_idx",
    "float8": "kernel bias inputs_scale inputs_amax_history kernel_scale kernel_amax_history "
    "outputs_grad_scale outputs_grad_amax_history",
    "gptq": "bias quantized_kernel kernel_scale kernel_zero g_idx",
    "awq": "bias quantized_kernel kernel_scale kernel_zero awq_scales g_idx",
}
_SWITCHES = {"bias": "use_bias", "beta": "center", "gamma": "scale"}
_REASONS = {
    "bias": g.BIAS,
    "beta": g.BIAS,
    "moving_mean": g.MEAN,
    "moving_variance": "part of the map of `gamma`",
    "vector_u": g.STATE,
    "sn_u": g.STATE,
    "seed_generator_state": g.STATE,
}


def serialized_layer(entry: Any) -> Layer | None:
    """Return the layer that a piece of a config describes, or None when it is none."""
    if not (isinstance(entry, Mapping) and isinstance(entry.get("class_name"), str)):
        return None
    config = entry.get("config")
    if not isinstance(config, Mapping):
        return None
    name = config.get("name", entry.get("name", ""))
    return Layer(_kind(entry), name if isinstance(name, str) else "", config)


def _kind(entry: Mapping[str, Any]) -> str:
    """Return the class name; one that is not Keras's keeps its package, so it is never taken for Keras's."""
    name, registered, module = entry["class_name"], entry.get("registered_name"), entry.get("module")
    if isinstance(module, str) and re.match(r"(tf_|tensorflow\.)?keras(\.src)?\.ops", module):
        return f"keras.ops.{name}"
    if isinstance(module, str) and re.match(r"(tf_|tensorflow\.)?keras\b", module):
        return str(name)
    if isinstance(registered, str) and registered != name:
        return registered if ">" in registered else f"{registered}>{name}"
    if module is not None or isinstance(registered, str):
        return f"{module or 'custom'}>{name}"
    return str(name)  # files of Keras 1 and 2 name no module


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
    """Return the layer that a layer keeps under an attribute: a wrapper's, a recurrence's cell, a projection."""
    key = key.lstrip("_")
    config = layer.config
    if layer.kind in _RECURRENT | _CONV_RECURRENT and key == "cell":
        return Layer(f"{layer.kind.removeprefix('CuDNN')}Cell", f"{snake(layer.kind)}_cell", config, layer.assumed)
    if layer.kind in _ATTENTION and key.endswith("_dense"):
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
    return Layer("EinsumDense", name, {**config, "equation": equation}, layer.assumed)


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
    names = _VARIABLES.get(layer.kind, "").split()
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
    short = role.removesuffix("_kernel")
    keys = [f"{role}_constraint", f"{short}_constraint"]
    if layer.kind in _DEPTHWISE:
        keys.insert(0, "depthwise_constraint")
    found = [layer.config[key] for key in keys if isinstance(layer.config.get(key), Mapping)]
    return found[0] if found and role not in ("bias", "beta") else _bias_constraint(layer, role)


def _bias_constraint(layer: Layer, role: str) -> Mapping[str, Any] | None:
    found = layer.config.get(f"{role}_constraint")
    return found if isinstance(found, Mapping) else None


def layer_geometry(layer: Layer, role: str, tensors: Tensors) -> Geometry | None:
    """Return what a layer does with one of its variables, or None when nothing is known of its class."""
    if role in _REASONS and not (role == "moving_variance" and "gamma" not in tensors):
        return g.nothing(layer.kind, _REASONS[role], assumed=layer.assumed)
    if role.startswith("lora_"):
        return g.nothing(layer.kind, "a factor of the low-rank update that its kernel is shown with")
    if "quantized_kernel" in tensors or role.endswith(("_scale", "_zero", "_history")) or role == "g_idx":
        return g.nothing(layer.kind, g.QUANTIZED)
    known = _MAPS.get(layer.kind)
    if known is None or (role.isdigit() and layer.kind in _VARIABLES):
        return None
    found = _low_rank(layer, role, tensors, known(layer, role, tensors))
    return found._replace(assumed=layer.assumed) if layer.assumed else found


def _sliding(layer: Layer) -> g.Sliding:
    names = {"strides": 1, "padding": "valid", "dilation_rate": 1, "groups": 1}
    values = {name: layer.config.get(name, default) for name, default in names.items()}
    if values["padding"] == "valid" and layer.assumed:
        values["padding"] = "same"
    return g.Sliding(**values)


def _dense(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    kernel = tensors[role]
    if kernel.dtype in ("int8", "uint8"):
        scale = tensors.get(f"{role}_scale")
        fits = quantization(layer) == "int8" and scale is not None and len(scale.shape) == 1
        if not fits or scale is None or layer.kind == "EinsumDense":
            return g.nothing(layer.kind, g.QUANTIZED)
        return g.scaled_columns(layer.kind, scale.read, 1 if layer.kind == "Embedding" else 0)
    if layer.kind == "EinsumDense":
        return g.einsum(layer.kind, layer.config.get("equation"), len(kernel.shape))
    return _matrix(layer, kernel)


def _low_rank(layer: Layer, role: str, tensors: Tensors, found: Geometry) -> Geometry:
    """Return the geometry of a live layer's kernel with the low-rank update that it adds; files hold it merged."""
    first, second = tensors.get(f"lora_{role}_a"), tensors.get(f"lora_{role}_b")
    size, alpha = layer.config.get("lora_rank"), layer.config.get("lora_alpha")
    if first is None or second is None or not size:
        return found
    down, up, factor = first.read, second.read, (alpha or size) / size
    return g.scaled(found, lambda kernel: kernel + factor * (down() @ up()), "with its low-rank update")


def _matrix(layer: Layer, kernel: Tensor) -> Geometry:
    if len(kernel.shape) != 2:
        return g.nothing(layer.kind, f"a {layer.kind} kernel with {len(kernel.shape)} axes")
    return g.columns(layer.kind)


def _batch_normalization(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    epsilon = layer.config.get("epsilon", 1e-3)
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < float("inf"):
        return g.nothing(layer.kind, f"an epsilon of {epsilon!r}")
    if role == "gamma" and "moving_variance" in tensors:
        return g.batch_normalization(layer.kind, tensors["moving_variance"].read, float(epsilon))
    return g.batch_variance(layer.kind, float(epsilon))


def _separable(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    kernel = tensors[role]
    if role == "depthwise_kernel":
        return g.depthwise(layer.kind, kernel.shape, _sliding(layer))
    if len(kernel.shape) not in (3, 4):
        return g.nothing(layer.kind, f"a pointwise kernel with {len(kernel.shape)} axes")
    return g.reshaped(layer.kind, "pointwise matrix (in, out)", kernel.shape[-2:])


def _conv_recurrent(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    sliding = _sliding(layer) if role == "kernel" else g.Sliding()
    return g.convolution(layer.kind, tensors[role].shape, sliding)


def _wrapper(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    """Return the geometry of a spectral normalization's own variables; the wrapped layer has the kernel."""
    return g.nothing(layer.kind, "the wrapped layer's kernel once more" if role == "kernel" else g.STATE)


_Map = Callable[[Layer, str, Tensors], Geometry]
_MAPS: dict[str, _Map] = {
    **dict.fromkeys(("Dense", "EinsumDense", "Embedding", "ReversibleEmbedding"), _dense),
    **dict.fromkeys(_CONVOLUTIONS, lambda a, role, t: g.convolution(a.kind, t[role].shape, _sliding(a))),
    **dict.fromkeys(_TRANSPOSED, lambda a, role, t: g.transposed(a.kind, t[role].shape, _sliding(a))),
    **dict.fromkeys(_DEPTHWISE, lambda a, role, t: g.depthwise(a.kind, t[role].shape, _sliding(a))),
    **dict.fromkeys(_SEPARABLE, _separable),
    **dict.fromkeys(_CELLS | _RECURRENT, lambda a, role, t: _matrix(a, t[role])),
    **dict.fromkeys(_CONV_CELLS | _CONV_RECURRENT, _conv_recurrent),
    **dict.fromkeys(_NORMALIZATIONS, lambda a, role, t: g.nothing(a.kind, g.SCALE)),
    **dict.fromkeys(("SpectralNormalization", "opnorm>SpectralNormalization"), _wrapper),
    "BatchNormalization": _batch_normalization,
    "Normalization": lambda a, role, t: g.nothing(a.kind, "statistics of the data"),
    "PReLU": lambda a, role, t: g.nothing(a.kind, "a slope of an activation, no linear map"),
}
KNOWN = set(_MAPS) | MODELS | WRAPPERS | _ATTENTION
_BY_SNAKE = {snake(kind): kind for kind in sorted(set(_VARIABLES) | _ATTENTION | {"Bidirectional"})}
