"""The `adapter_config.json` of an adapter, PEFT's or MLX's: the scale of each layer's update."""

import re
from collections.abc import Mapping
from math import nan, prod, sqrt
from pathlib import Path
from typing import Any

from opnorm.auditing.adapter_names import PEFT
from opnorm.auditing.forms import Form
from opnorm.auditing.measure import values_of
from opnorm.checkpoints.config import beside
from opnorm.checkpoints.files import border, parse_json
from opnorm.checkpoints.records import CheckpointError, Weight
from opnorm.checkpoints.safetensors import metadata_of

Config = Mapping[str, Any]

_NAME = "adapter_config.json"
_LARGEST = 1e300
_PLAIN = re.compile(r"[\w.-]{1,300}")  # a pattern of a configuration that is just a name
_SIMPLE = re.compile(  # or takes no long time to search: two groups, or one and a repetition of one character
    r"(?!.*\)[*+?{])(?!.*[(].*[(].*[*+?])(?!(.*[(]){3})[^*+?{}]*[*+?]?[^*+?{}]*"
)
_PATTERNED = 300  # patterns, and characters of names that they are searched in
_SEARCHED = 100  # characters of a pattern that is more than a name, and of a name that it is searched in
_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that take a part out of the base's weights
_OTHERWISE = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")  # LoRA, and then more
_METADATA = "lora_adapter_metadata"  # of a safetensors file
_KINDS = {"LORA", "LOHA", "LOKR"}
_MLX = "lora_parameters"  # the key by which MLX's configuration is known


def read_config(path: str, adapter: str = "") -> Config | None:
    """Return the configuration in a folder, or beside a file; of one of several adapters its own, if there is one.

    Raises:
        CheckpointError: When it is not JSON of the right form.
    """
    if not path:
        return None
    folder = beside(Path(path))
    places = [folder / adapter / _NAME, folder / _NAME] if adapter else [folder / _NAME]
    place = next((one for one in places if one.is_file()), None)
    if place is None:
        return None
    with border(place):
        config = parse_json(place.read_bytes(), "it")
    return config if isinstance(config, dict) else {}


class Configs:
    """The configurations of the adapters in a file or a folder: what lies there, else what diffusers notes in the file.

    Args:
        path: The file or the folder, or no path.

    Raises:
        CheckpointError: From `of`, when a configuration is not JSON of the right form.
    """

    def __init__(self, path: str):
        self._path = path
        self._read: dict[str, Config | None] = {}
        self._noted = _noted(Path(path)) if path.endswith(".safetensors") else {}

    def of(self, layer: str, adapter: str) -> Config | None:
        """Return the configuration of a layer's adapter, None where there is none."""
        if adapter not in self._read:
            self._read[adapter] = read_config(self._path, adapter)
        found = self._read[adapter]
        if found is not None or not self._noted:
            return found
        part = f"{layer.partition('.')[0]}."  # of a pipeline: "unet.r", "text_encoder.lora_alpha"
        own = {key.removeprefix(part): value for key, value in self._noted.items() if key.startswith(part)}
        return own or self._noted


def _noted(file: Path) -> Config:
    """Return what diffusers notes of its adapters in a file, nothing where it is not understood."""
    try:
        table = parse_json(metadata_of(file).get(_METADATA, "{}"), "its metadata")
    except (OSError, CheckpointError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def trouble_of(config: Config | None) -> str:
    """Return why an adapter's update cannot be added to the base's weights as they are stored, or ""."""
    begun = config.get("init_lora_weights") if config else None
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED):
        return f"it began with {begun[:20]!r}, which took a part out of the base's weights: the sum is of other numbers"
    kind = foreign_kind(config)
    if kind:
        return f"an adapter of the kind {kind}, which is not multiplied out"
    other = next((key for key in _OTHERWISE if config and config.get(key)), "")
    return f"its adapter_config.json has {other}, which changes what is applied" if other else ""


def foreign_kind(config: Config | None) -> str:
    """Return the kind of an adapter that is none of those that are multiplied out, else ""."""
    kind = config.get("peft_type") if config else None
    return kind[:40] if isinstance(kind, str) and kind.upper() not in _KINDS else ""


def is_turned(config: Config | None) -> bool:
    """Return whether the weights are stored as (in, out)."""
    return bool(config and config.get("fan_in_fan_out"))


def scale_of(layer: str, form: Form, parts: Mapping[str, Weight], config: Config | None) -> tuple[float, str]:
    """Return the factor before the product, NaN where it cannot be read, and a note where it is a guess."""
    axis = form.rank_axis
    ranks = [parts[role].shape[axis] for role in form.ranked if role in parts and len(parts[role].shape) > axis]
    if form.kind == "whole" or (not ranks and config is None):
        return 1.0, ""  # of two whole factors LyCORIS stores an alpha that stands for nothing
    alpha = parts.get("alpha")
    if alpha is not None and prod(alpha.shape) == 1 and ranks:
        try:
            return float(values_of(alpha).ravel()[0]) / max(1, ranks[0]), ""
        except (ValueError, OSError, MemoryError) as error:
            return nan, f"the scale of {layer} cannot be read: {error}"
    if config is None:
        return 1.0, "no alpha and no adapter_config.json: the scale is taken as 1"
    try:
        return _configured(layer, ranks[0] if ranks else None, config)
    except ValueError as error:
        return nan, str(error)


def _configured(layer: str, rank: int | None, config: Config) -> tuple[float, str]:
    if isinstance(config.get(_MLX), Mapping):
        return _of_mlx(config[_MLX])
    alpha = _chosen(layer, config, "alpha_pattern", config.get("lora_alpha", config.get("alpha")))
    if alpha is None:
        return 1.0, "its adapter_config.json has no lora_alpha: the scale is taken as 1"
    rank = _whole(_chosen(layer, config, "rank_pattern", config.get("r"))) if rank is None else rank
    return _number("alpha", alpha) / (sqrt(max(1, rank)) if config.get("use_rslora") else max(1, rank)), ""


def _of_mlx(parameters: Config) -> tuple[float, str]:
    """Return MLX's factor, which is the scale itself; older versions multiplied it by alpha / rank."""
    scale = _number("scale", parameters.get("scale"))
    alpha = parameters.get("alpha")
    return scale if alpha is None else scale * _number("alpha", alpha) / max(1, _whole(parameters.get("rank"))), ""


def _number(what: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return float(value)  # JSON's integers may be larger than floats
    raise ValueError(f"its adapter_config.json gives {what} as {str(value)[:40]!r}, which is no number in range")


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _chosen(layer: str, config: Config, key: str, usual: Any) -> Any:
    """Return the value of the first pattern that matches the layer's name as PEFT does it, or that of all.

    Raises:
        ValueError: When a pattern would take long to search for.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict) or len(patterns) > _PATTERNED or len(layer) > _PATTERNED:
        raise ValueError(f"the {key} of its adapter_config.json is no small table")
    name = PEFT.sub("", layer)
    return next((value for pattern, value in patterns.items() if _matches(pattern, name)), usual)


def _matches(key: str, name: str) -> bool:
    simple = max(len(key), len(name)) <= _SEARCHED and _SIMPLE.fullmatch(key)
    if not (simple or _PLAIN.fullmatch(key)):
        raise ValueError(f"its adapter_config.json has the pattern {key[:40]!r}, which is not searched for here")
    try:
        return bool(re.match(rf"(.*\.)?({key})$", name))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"its adapter_config.json has the pattern {key[:40]!r}, which is none") from error
