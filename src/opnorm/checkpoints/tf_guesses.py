"""What a variable of TensorFlow's probably does, from its name and shape: kernels are stored as (*spatial, in, out)."""

import re
from collections.abc import Collection, Mapping

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.guesses import FLOATS, Named, guess
from opnorm.checkpoints.hdf5_guesses import as_kernel, careful
from opnorm.checkpoints.records import Geometry
from opnorm.checkpoints.tf_spectral import kernel_of, normalized

_SLOT = re.compile(  # the optimizer's name, after that of the variable that it keeps something for
    r"adam|momentum|rms_?prop|ada_?(grad|delta|factor|max|m$)|ftrl|lamb|lars|sgd|opt|proximal|slot|accum|grad",
    re.IGNORECASE,
)
_T5 = re.compile(r"_slot_(v|vr|vc|m)$")  # Mesh TensorFlow's Adafactor
_POWERS = re.compile(r"(^|/)beta[12]_power(_\d+)?$")
_COUNTER = re.compile(r"(^|/)(global_step|save_counter|step)$")


def guess_variable(tensor: Named, others: Mapping[str, Named], channels: Collection[int]) -> Geometry:
    """Return what a variable probably does; what TensorFlow 1's optimizers keep stands below their variable's name."""
    owner, _, slot = tensor.name.rpartition("/")
    beside = others.get(owner)
    if _T5.search(tensor.name) and _T5.sub("", tensor.name) in others:
        return g.nothing("unknown", g.OPTIMIZER, assumed=True)
    if beside is not None and beside.shape == tensor.shape:  # "dense/kernel/Adam_1", ".../ExponentialMovingAverage"
        if _SLOT.search(slot):
            return g.nothing("unknown", g.OPTIMIZER, assumed=True)
        return guess_variable(tensor._replace(name=owner), {}, channels)
    if not tensor.shape and (_POWERS.search(tensor.name) or _COUNTER.search(tensor.name)):
        reason = g.OPTIMIZER if _POWERS.search(tensor.name) else g.COUNTER
        return g.nothing("unknown", reason, assumed=True)
    kernel = kernel_of(tensor, others)
    if kernel:
        return g.nothing("unknown", f"the vector of a spectral normalization of {kernel!r}", assumed=True)
    return _kernel(tensor, others, channels)


def _kernel(tensor: Named, others: Mapping[str, Named], channels: Collection[int]) -> Geometry:
    found = guess(tensor, others, channels)
    if tensor.dtype in FLOATS and len(tensor.shape) > 1 and found.operator is not None:
        return normalized(tensor, guess(as_kernel(tensor), others, channels), others)
    return careful(found, tensor)
