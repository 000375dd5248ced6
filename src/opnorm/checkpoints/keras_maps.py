"""What Keras's layers do with their variables."""

import re
from collections.abc import Callable

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.fused import by_head
from opnorm.checkpoints.hdf5 import Tensor
from opnorm.checkpoints.keras_layers import (
    ATTENTION,
    CELLS,
    CONV_CELLS,
    CONV_RECURRENT,
    CONVOLUTIONS,
    DEPTHWISE,
    HEADS,
    MODELS,
    RECURRENT,
    SEPARABLE,
    TRANSPOSED,
    VARIABLES,
    WRAPPERS,
    Layer,
    Tensors,
    normalization,
    quantization,
)
from opnorm.checkpoints.records import Geometry
from opnorm.checks import Array

_NORMALIZATIONS = {"LayerNormalization", "GroupNormalization", "RMSNormalization"}
_SLIDING = CONVOLUTIONS | TRANSPOSED | DEPTHWISE | SEPARABLE | CONV_RECURRENT | CONV_CELLS
_KERNELS = {"Dense", "EinsumDense", "Embedding", "ReversibleEmbedding"} | _SLIDING | CELLS | RECURRENT
_EPSILONS = (1e-6, 1e-2)  # beside Keras's own 1e-3, where there is no config: as far as practice goes
_REASONS = {
    "bias": g.BIAS,
    "beta": g.BIAS,
    "moving_mean": g.MEAN,
    "moving_variance": "part of the map of `gamma`",
    "vector_u": g.STATE,
    "sn_u": g.STATE,
    "seed_generator_state": g.STATE,
}


def layer_geometry(layer: Layer, role: str, tensors: Tensors) -> Geometry | None:
    """Return what a layer does with one of its variables, or None when nothing is known of its class."""
    if role in _REASONS and not (role == "moving_variance" and "gamma" not in tensors):
        return g.nothing(layer.kind, _REASONS[role], assumed=layer.assumed)
    if layer.kind in _KERNELS and role.startswith("lora_"):
        return g.nothing(layer.kind, "a factor of the low-rank update that its kernel is shown with")
    if layer.kind in _KERNELS and (role.endswith(("_scale", "_scales", "_zero", "_history")) or role == "g_idx"):
        return g.nothing(layer.kind, "part of the quantized kernel beside it")
    known = _MAPS.get(layer.kind)
    if known is None or (role.isdigit() and layer.kind in VARIABLES):
        return None
    if layer.kind in _KERNELS and layer.kind != "EinsumDense" and len(tensors[role].shape) < 2:
        return g.nothing(layer.kind, "a vector: a bias or a scale, no matrix", assumed=layer.assumed)
    found = known(layer, role, tensors)
    if layer.kind in _KERNELS:
        found = _kernel(layer, role, tensors, found)
    return found._replace(assumed=layer.assumed or found.assumed or not _is_own(layer, role))


def _is_own(layer: Layer, role: str) -> bool:
    """Return whether a variable has a name that its class gives it; else what it does is a guess."""
    return role in ("depthwise_kernel", *VARIABLES.get(layer.kind, role).split())


def _kernel(layer: Layer, role: str, tensors: Tensors, found: Geometry) -> Geometry:
    """Return the geometry of a kernel: whatever its layer's class cannot say of it may still have a norm."""
    real = tensors[role].dtype.startswith(("float", "bfloat"))
    if role == "quantized_kernel" or quantization(layer) == "float8" or not (real or _is_int8(layer, role, tensors)):
        return g.unknown(layer.kind, g.QUANTIZED)
    if found.operator is None:
        return g.unknown(layer.kind, found.reason)
    if layer.assumed and layer.kind in _SLIDING:
        found = found._replace(readings=(_slowest(layer.kind),))
    return _normalized_kernel(layer, _low_rank(layer, role, tensors, found))


def _normalized_kernel(layer: Layer, found: Geometry) -> Geometry:
    """Return the geometry of a stored kernel that a wrapper divides by its norm in each call: read as either."""
    change = normalization(layer)
    if change is None or found.operator is None:
        return found
    if isinstance(change, str):
        return g.unknown(layer.kind, f"{change} may change it in each call")
    norm = np.full(1, change)
    reading = g.diagonal(
        layer.kind, f"divided by its norm in each call, to be {change:g}", lambda _: norm, assumed=True
    )
    return found._replace(assumed=True, readings=(*found.readings, reading))


def _slowest(kind: str) -> Geometry:
    """Return the reading of the smallest norm: strides that skip the whole kernel, and a group for each output."""

    def norms(kernel: Array) -> Array:
        return np.asarray(np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0))

    return g.diagonal(kind, "the vector of each output channel, at large strides and in groups", norms, assumed=True)


def _is_int8(layer: Layer, role: str, tensors: Tensors) -> bool:
    """Return whether a kernel holds integers and the one scale of each column, or row, beside it."""
    scale = tensors.get(f"{role}_scale")
    whole = layer.kind in ("Dense", "Embedding", "ReversibleEmbedding") and tensors[role].dtype == "int8"
    return whole and quantization(layer) == "int8" and scale is not None and len(scale.shape) == 1


def _rank(kind: str) -> int:
    """Return over how many axes a convolution of that class slides."""
    return int(kind[re.search(r"\dD", kind).start()])  # type: ignore[union-attr]


def _sliding(layer: Layer) -> g.Sliding:
    names = {"strides": 1, "padding": "valid", "dilation_rate": 1, "groups": 1}
    values = {name: layer.config.get(name, default) for name, default in names.items()}
    if values["padding"] == "valid" and layer.assumed:
        values["padding"] = "same"
    return g.Sliding(**values)


def _convolution(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    shape, sliding = tensors[role].shape, _sliding(layer)
    if len(shape) != _rank(layer.kind) + 2:
        return g.unknown(layer.kind, f"a {layer.kind} kernel with {len(shape)} axes")
    layout = layer.config.get("kernel_layout", "channels_last")
    if layout not in ("channels_last", "channels_first"):
        return g.unknown(layer.kind, "nothing says which axes of its kernel are the channels")
    if layout == "channels_first":
        return g.channels_first(layer.kind, shape, sliding)
    make = g.transposed if layer.kind in TRANSPOSED else g.depthwise if layer.kind in DEPTHWISE else g.convolution
    return make(layer.kind, shape, sliding)


def _dense(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    kernel = tensors[role]
    if layer.kind == "EinsumDense":
        found = g.einsum(layer.kind, layer.config.get("equation"), len(kernel.shape))
        return by_head(found, layer.config[HEADS]) if HEADS in layer.config else found
    if _is_int8(layer, role, tensors):
        return g.scaled_columns(layer.kind, tensors[f"{role}_scale"].read, 0 if layer.kind == "Dense" else 1)
    return _matrix(layer, kernel)


def _low_rank(layer: Layer, role: str, tensors: Tensors, found: Geometry) -> Geometry:
    """Return the geometry of a live layer's kernel with the low-rank update that it adds; files hold it merged."""
    first, second = tensors.get(f"lora_{role}_a"), tensors.get(f"lora_{role}_b")
    size, alpha = layer.config.get("lora_rank"), layer.config.get("lora_alpha")
    if first is None and second is None:
        return found
    if first is None or second is None or not size:
        return g.unknown(layer.kind, "a low-rank update stands beside it, and nothing says how it is added")
    down, up, factor = first.read, second.read, (alpha or size) / size
    return g.scaled(found, lambda kernel: kernel + factor * (down() @ up()), "with its low-rank update")


def _matrix(layer: Layer, kernel: Tensor) -> Geometry:
    if len(kernel.shape) != 2:
        return g.unknown(layer.kind, f"a {layer.kind} kernel with {len(kernel.shape)} axes")
    return g.columns(layer.kind)


def _batch_normalization(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    if role not in ("gamma", "moving_variance"):
        return g.nothing(layer.kind, "statistics of the training, no part of the network")
    epsilon = layer.config.get("epsilon", 1e-3)
    if not isinstance(epsilon, int | float) or not 0 <= epsilon < float("inf"):
        return g.unknown(layer.kind, f"an epsilon of {epsilon!r}")
    if layer.config.get("mode", 0) != 0:
        return g.unknown(layer.kind, f"it divides by statistics of its own input: mode {layer.config['mode']!r}")
    found = _normalized(layer, role, tensors, float(epsilon))
    others = layer.config.get("other_epsilons", _EPSILONS if layer.assumed else ())
    readings = tuple(_normalized(layer, role, tensors, other) for other in others)
    return found._replace(assumed=bool(readings), readings=readings) if found.operator else found


def _normalized(layer: Layer, role: str, tensors: Tensors, epsilon: float) -> Geometry:
    if role != "gamma":
        named = layer.assumed or layer.config.get("scale", True) is False
        return g.batch_variance(layer.kind, epsilon) if named else g.unknown(layer.kind, "its gamma is not beside it")
    variance = tensors.get("moving_variance")
    if variance is None or variance.shape != tensors[role].shape:
        return g.unknown(layer.kind, "a scale without a variance of its shape")
    return g.batch_normalization(layer.kind, variance.read, epsilon)


def _separable(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    shape = tensors[role].shape
    if len(shape) != _rank(layer.kind) + 2 or layer.config.get("kernel_layout", "channels_last") != "channels_last":
        return g.unknown(layer.kind, f"a {role.replace('_', ' ')} with {len(shape)} axes, or in Theano's layout")
    if role == "depthwise_kernel":
        return g.depthwise(layer.kind, shape, _sliding(layer))
    if role != "pointwise_kernel":
        return g.nothing(layer.kind, f"no variable of {layer.kind} has this name")
    return g.reshaped(layer.kind, "pointwise matrix (in, out)", shape[-2:])


def _conv_recurrent(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    sliding = _sliding(layer) if role == "kernel" else g.Sliding()
    return g.convolution(layer.kind, tensors[role].shape, sliding)


def _wrapper(layer: Layer, role: str, tensors: Tensors) -> Geometry:
    """Return the geometry of a spectral normalization's own variables; the wrapped layer has the kernel."""
    return g.nothing(layer.kind, "the wrapped layer's kernel once more" if role == "kernel" else g.STATE)


_Map = Callable[[Layer, str, Tensors], Geometry]
_MAPS: dict[str, _Map] = {
    **dict.fromkeys(("Dense", "EinsumDense", "Embedding", "ReversibleEmbedding"), _dense),
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED | DEPTHWISE, _convolution),
    **dict.fromkeys(SEPARABLE, _separable),
    **dict.fromkeys(CELLS | RECURRENT, lambda a, role, t: _matrix(a, t[role])),
    **dict.fromkeys(CONV_CELLS | CONV_RECURRENT, _conv_recurrent),
    **dict.fromkeys(_NORMALIZATIONS, lambda a, role, t: g.nothing(a.kind, g.SCALE)),
    **dict.fromkeys(("SpectralNormalization", "opnorm>SpectralNormalization"), _wrapper),
    "BatchNormalization": _batch_normalization,
    "Normalization": lambda a, role, t: g.nothing(a.kind, "statistics of the data"),
    "keras.applications.LayerScale": lambda a, role, t: g.diagonal(a.kind, "a factor of each channel", lambda v: v),
    "PReLU": lambda a, role, t: g.nothing(a.kind, "a slope of an activation, no linear map"),
}
KNOWN = set(_MAPS) | MODELS | WRAPPERS | ATTENTION
