"""What the files beside a checkpoint say of how its kernels are quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opnorm.checkpoints.files import parse_json
from opnorm.checkpoints.records import CheckpointError

Settings = Mapping[str, Any]

_BYTES = 2**20
_PLACES = (  # the file, and the keys that lead to the settings
    ("config.json", ("quantization_config",)),  # of Hugging Face
    ("config.json", ("text_config", "quantization_config")),
    ("config.json", ("quantization",)),  # of MLX
    ("quantize_config.json", ()),  # of AutoGPTQ and AutoAWQ
    ("hf_quant_config.json", ("quantization",)),  # of ModelOpt
)


def quantization_settings(path: Path) -> Settings:
    """Return the settings beside a file, the first that are found; {} without."""
    folder = path if path.is_dir() else path.parent
    for name, keys in _PLACES:
        found: Any = _table(folder / name)
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and found:
            return found
    return {}


def whole_number(settings: Settings, *keys: str) -> int | None:
    """Return the first of the settings that is a positive integer."""
    return next((n for key in keys if type(n := settings.get(key)) is int and n > 0), None)


def _table(path: Path) -> Settings:
    try:
        if path.is_file() and path.stat().st_size <= _BYTES:
            found = parse_json(path.read_bytes(), path.name)
            return found if isinstance(found, Mapping) else {}
    except (CheckpointError, OSError, RecursionError):
        pass  # a file beside it that is none of JSON says nothing
    return {}
