"""All tensors of an HDF5 file or a `.keras` archive, by h5py's own visitor and by opnorm."""

import io
import zipfile
from collections import Counter

import h5py

from opnorm.checkpoints.opening import open_checkpoint


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
