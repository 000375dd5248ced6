"""Folders in an adapter's folder: PEFT saves every adapter but the default one in a folder of its own name."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Weight

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_FOLDERS = 100  # that are looked into


def adapters_in(folder: str) -> Iterator[tuple[str, Mapping[str, Weight]]]:
    """Yield the name of each adapter in a folder of the folder, and its tensors; nothing of a file.

    A tensor is called by the folder and its name, the key is its name alone.
    """
    if not folder or not Path(folder).is_dir():
        return
    inside = sorted(one for one in islice(Path(folder).iterdir(), _FOLDERS) if one.is_dir())
    for place in inside:
        file = next((place / name for name in _FILES if (place / name).is_file()), None)
        if file is not None:
            weights = open_checkpoint(file).weights
            yield place.name, {weight.name: weight._replace(name=f"{place.name}/{weight.name}") for weight in weights}
