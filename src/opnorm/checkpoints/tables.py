"""A state dict in memory as a checkpoint: a flat table of tensors by name, of PyTorch or NumPy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opnorm.checkpoints.files import guarded
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.records import Checkpoint
from opnorm.checks import numbers

_PATH = Path("state_dict")


def read_table(tensors: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint of tensors by name; what each does is guessed from its name and shape, as of a file.

    Raises:
        ValueError: When it is no flat table: `checkpoint["model"]` is often meant.
    """
    for name, value in tensors.items():
        if not isinstance(name, str) or isinstance(value, Mapping):
            raise ValueError(
                "Argument `model_or_path` must be a flat state dict, of tensors by name; hand over the part that holds "
                f"the model's. Received: {type(value).__name__} as {name!r}"
            )
    return Checkpoint("model", flat_weights(_PATH, [_entry(name, value) for name, value in tensors.items()]))


def _entry(name: str, value: Any) -> Entry:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return unread(_PATH, name, (), type(value).__name__, f"it holds a {type(value).__name__}, which is no tensor")
    dtype = str(value.dtype).removeprefix("torch.")
    return Entry(Named(name, tuple(value.shape), dtype, guarded(_PATH, _numbers, value)))


def _numbers(value: Any) -> np.ndarray:
    return numbers(value, "state_dict")
