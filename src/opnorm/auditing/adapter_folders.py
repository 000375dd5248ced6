"""Folders in an adapter's folder: PEFT saves every adapter but the default one in a folder of its own name."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import Weight

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ENTRIES, _FOLDERS = 20_000, 100  # of a folder that are looked at, and into
_EARLIER = re.compile(r"checkpoint-\d+")  # states of a training, not adapters beside each other


def adapters_in(folder: str) -> Iterator[tuple[str, Mapping[str, Weight]]]:
    """Yield the name of each adapter in a folder of the folder, and its tensors; nothing of a file.

    A tensor is called by the folder and its name, the key is its name alone.
    """
    if not folder or not Path(folder).is_dir():
        return
    inside = sorted(one for one in islice(Path(folder).iterdir(), _ENTRIES) if one.is_dir())
    for place in [one for one in inside if not _EARLIER.fullmatch(one.name)][:_FOLDERS]:
        file = next((place / name for name in _FILES if (place / name).is_file()), None)
        if file is not None:
            weights = open_checkpoint(file).weights
            yield place.name, {weight.name: weight._replace(name=f"{place.name}/{weight.name}") for weight in weights}
