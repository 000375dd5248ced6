"""How every hostile file must end, and what another reader finds in a good one."""

import io
import zipfile
from collections import Counter

import h5py
import pytest

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError


def fails(path):
    """Open and read everything; return whether it failed, as it may, in one line."""
    try:
        [weight.read() for weight in open_checkpoint(path).weights]
    except CheckpointError as caught:
        message = str(caught)
    else:
        message = None
    assert message is None or "\n" not in message
    return message is not None


def refused(path, match):
    """Open and read everything: exactly one error of one line that names the file."""
    with pytest.raises(CheckpointError, match=match) as error:
        [weight.read() for weight in open_checkpoint(path).weights]
    assert "\n" not in str(error.value)
    assert repr(path.name) in str(error.value)


def visited(path):
    """Return how often each shape with its bytes stands in an HDF5 file or a `.keras` archive, as h5py visits it."""
    found = Counter()

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[item.shape, item[()].tobytes()] += 1

    source = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5")) if path.suffix == ".keras" else path
    with h5py.File(source) as file:
        file.visititems(visit)
    return found


def all_read(path):
    """Return the same of opnorm's reader."""
    return Counter((weight.shape, weight.read().tobytes()) for weight in open_checkpoint(path).weights)
