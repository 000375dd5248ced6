"""Brackets of what a checkpoint's rows say, in every reading of them."""

import numpy as np

from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.opening import open_checkpoint


def weights(path):
    """Return the weights of a checkpoint by name."""
    return {weight.name: weight for weight in open_checkpoint(path).weights}


def brackets(weight):
    """Return the bracket of the main reading, then those of the others."""
    values = weight.read().astype(np.float64)
    readings = (weight.geometry, *weight.geometry.readings)
    return [spectral_norm(reading.operator(values)) for reading in readings]


def between(weight):
    """Return the least lower end and the largest upper end of all readings."""
    found = brackets(weight)
    return min(one.lower for one in found), max(one.upper for one in found)


def status(weight):
    """Return which status an audit gives the row of a weight before it measures anything."""
    if weight.geometry.operator is not None:
        return "bounded"
    return "unknown" if weight.geometry.unknown else "skipped"
