"""What a variable of TensorFlow's probably does, from its name and shape: kernels are stored as (*spatial, in, out)."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import FLOATS, Named, guess
from opnorm.checkpoints.hdf5_guesses import as_kernel, careful
from opnorm.checkpoints.records import Geometry
from opnorm.checkpoints.tf_spectral import find_vectors, kernels_of, normalized

_SLOT = re.compile(  # the optimizer's name, after that of the variable that it keeps something for
    r"adam|momentum|rms_?prop|ada_?(grad|delta|factor|max|m$)|ftrl|lamb|lars|sgd|opt|proximal|slot|accum|grad",
    re.IGNORECASE,
)
_T5 = re.compile(r"_slot_(v|vr|vc|m)$")  # Mesh TensorFlow's Adafactor
_POWERS = re.compile(r"(^|/)beta[12]_power(_\d+)?$")
_COUNTER = re.compile(r"(^|/)(global_step|save_counter|step)$")


class File(NamedTuple):
    """The variables of a checkpoint, and what is found out about all of them at once."""

    tensors: Mapping[str, Named]
    vectors: Mapping[str, list[Named]]  # of spectral normalizations, by their kernel
    kernels: Mapping[str, str]  # by the name of a vector

    @classmethod
    def of(cls, tensors: Mapping[str, Named]) -> "File":
        """Return the record of all variables by name."""
        vectors = find_vectors(tensors)
        return cls(tensors, vectors, kernels_of(vectors))


def guess_variable(tensor: Named, file: File) -> Geometry:
    """Return what a variable probably does; what TensorFlow 1's optimizers keep stands below their variable's name."""
    owner, _, slot = tensor.name.rpartition("/")
    beside = file.tensors.get(owner)
    if _T5.search(tensor.name) and _T5.sub("", tensor.name) in file.tensors:
        return g.nothing("unknown", g.OPTIMIZER, assumed=True)
    if beside is not None and beside.shape == tensor.shape:  # "dense/kernel/Adam_1", ".../ExponentialMovingAverage"
        if _SLOT.search(slot):
            return g.nothing("unknown", g.OPTIMIZER, assumed=True)
        return _kernel(tensor._replace(name=owner), file)
    if not tensor.shape and (_POWERS.search(tensor.name) or _COUNTER.search(tensor.name)):
        reason = g.OPTIMIZER if _POWERS.search(tensor.name) else g.COUNTER
        return g.nothing("unknown", reason, assumed=True)
    if tensor.name in file.kernels:
        kernel = file.kernels[tensor.name]
        return g.nothing("unknown", f"the vector of a spectral normalization of {kernel!r}", assumed=True)
    return _kernel(tensor, file)


def _kernel(tensor: Named, file: File) -> Geometry:
    found = guess(tensor, file.tensors)
    if tensor.dtype in FLOATS and len(tensor.shape) > 1 and found.operator is not None:
        stored = guess(as_kernel(tensor), file.tensors)
        return normalized(tensor, stored, file.vectors.get(tensor.name, ()))
    return careful(found, tensor)
