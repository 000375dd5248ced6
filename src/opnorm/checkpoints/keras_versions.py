"""Configs of Keras 1 and 2 in the words of Keras 3, with the constants of the version that wrote them.

Reference:
    Keras 1.2.2, 2.3.1, tf_keras 2.21, 3.15: `activations.py`, `layers/`; what is named here is all that changed in what
    opnorm has a bound for.
"""

import re
from collections.abc import Mapping
from typing import Any

from opnorm.checkpoints.keras_layers import function_of
from opnorm.checkpoints.records import of_file

Version = tuple[int, int]
UNKNOWN: Version = (0, 0)

_EPSILONS = (1e-6, 1e-5, 1e-3)  # the defaults of batch normalization in Keras 0 and 1; since Keras 2 the last
_FUSED = 1.001e-5  # the smallest epsilon of fused batch normalization, which cuDNN asked for
_ACTIVATIONS = ("activation", "recurrent_activation", "inner_activation")
_CHANGED = ("hard_sigmoid",)  # max(0, min(1, x / 5 + 1 / 2)) up to Keras 2, of slope 1 / 6 since Keras 3
_HALF_PIXELS = (2, 4)  # from here on interpolation surely means the centres of pixels, as in Keras 3
_CONVOLUTIONS = {  # of Keras 1
    "Convolution1D": "Conv1D", "Convolution2D": "Conv2D", "Convolution3D": "Conv3D", "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D", "SeparableConvolution2D": "SeparableConv2D",
}  # fmt: skip
_LATER = {  # of tf.keras in TensorFlow 1
    "BatchNormalizationV1": "BatchNormalization", "BatchNormalizationV2": "BatchNormalization", "LSTMV1": "LSTM",
    "GRUV1": "GRU", "UnifiedLSTM": "LSTM", "UnifiedGRU": "GRU",
}  # fmt: skip
_WORDS = {
    "border_mode": "padding", "subsample": "strides", "subsample_length": "strides", "atrous_rate": "dilation_rate",
    "pool_length": "pool_size", "stride": "strides", "length": "size", "bias": "use_bias",
}  # fmt: skip
_OLD_WORDS = (
    "border_mode",
    "pool_length",
    "dim_ordering",
    "init",
    "nb_filter",
    "output_dim",
    "length",
    "W_regularizer",
)
_FORMATS = {"th": "channels_first", "tf": "channels_last"}


def version_of(text: Any) -> Version:
    """Return the version that a file names ("2.4.0", "2.2.4-tf"), `UNKNOWN` where it is none."""
    found = re.match(r"([1-9])\.(\d{1,3})\b", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else UNKNOWN


def of_version(entry: Any, version: Version) -> Any:
    """Return a config, and all configs inside, so that Keras 3's rules hold of it; of an unknown version the widest.

    Args:
        entry: The JSON of a model or layer: `{"class_name": ..., "config": ...}`.
        version: The version of Keras that wrote it.
    """
    if isinstance(entry, list):
        return [of_version(one, version) for one in entry]
    if not isinstance(entry, Mapping):
        return entry
    entry = {key: of_version(value, version) for key, value in entry.items()}
    if entry.get("class_name") == "Sequential" and isinstance(entry.get("config"), list):  # up to Keras 2.2
        entry["config"] = {"name": entry.get("name", ""), "layers": entry["config"]}
    if isinstance(entry.get("class_name"), str) and isinstance(entry.get("config"), dict):
        _translate(entry, version)
    return entry


def _translate(entry: dict[str, Any], version: Version) -> None:
    kind = entry["class_name"]
    config = entry["config"] = of_file(entry["config"])
    for key in _ACTIVATIONS:
        if key in config:
            config[key] = _activation(config[key], version)
    kind = entry["class_name"] = _LATER.get(kind, kind) if version[0] < 3 else kind
    if kind == "BatchNormalization" and "epsilon" not in config:
        first, *others = _EPSILONS if version[0] < 2 else _EPSILONS[-1:]
        config |= {"epsilon": first, "other_epsilons": others}
    elif kind == "BatchNormalization" and version[0] < 3:
        config["other_epsilons"] = _raised(config["epsilon"])
    if kind.startswith("UpSampling") and config.get("interpolation", "nearest") != "nearest" and version < _HALF_PIXELS:
        config["interpolation"] = f"{config['interpolation']}, as Keras {version[0] or 'of an unknown version'} has it"
    if version[0] < 2 and any(word in config for word in _OLD_WORDS):
        _modernize(entry, kind, config)


def _raised(epsilon: Any) -> list[float]:
    """Return what early TensorFlow, whose fused kernel Keras 1 and 2 call for images, takes for a smaller epsilon."""
    return [_FUSED] if isinstance(epsilon, int | float) and epsilon < _FUSED else []


def _activation(value: Any, version: Version) -> Any:
    """Return an activation with the version that defines it, where versions differ."""
    name = function_of(value) if isinstance(value, dict) and value.get("class_name") == "function" else value
    return {"class_name": name, "config": {"keras": version[0]}} if name in _CHANGED else value


def _modernize(entry: dict[str, Any], kind: str, config: dict[str, Any]) -> None:
    """Translate the words of Keras 1."""
    for old, new in _WORDS.items():
        if old in config:
            config.setdefault(new, config[old])
    if "dim_ordering" in config:
        config["data_format"] = _FORMATS.get(str(config["dim_ordering"]), "unknown")
    if kind in _CONVOLUTIONS:
        entry["class_name"] = _CONVOLUTIONS[kind]
        config["kernel_layout"] = config.get("data_format", "channels_last")
