"""What a tensor probably does, from its name and shape, where the file says nothing: every answer is `assumed`."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.records import Geometry

EPSILON = 1e-5  # PyTorch's default of batch normalization

FLOATS = {"float16", "bfloat16", "float32", "float64"}
_EMBEDDING = re.compile(r"(^|[._/])(\w*embed\w*|wte|wpe|lm_head_table|token_table)([._/]|$)", re.IGNORECASE)
_OPTIMIZER = re.compile(r"(^|[._/])(optimizer\w*|optim\w*|exp_avg\w*|momentum_buffer)([._/]|$)", re.IGNORECASE)
_LAST_IS_OUT = re.compile(r"(^|[._/:])(kernel|recurrent_kernel|depthwise_kernel|pointwise_kernel)(:0)?$")
_LORA = re.compile(r"lora_(A|B|embedding_A|embedding_B|down|up)\b|lora_[AB]\.", re.IGNORECASE)
_SCALE = re.compile(r"(scale|gamma|weight|norm\w*)(:0)?$", re.IGNORECASE)


class Named(NamedTuple):
    """A tensor of which only this is known."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def guess(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    """Return what a tensor probably does; PyTorch's layout unless its name ends as Keras's kernels do.

    Args:
        tensor: The tensor.
        others: All tensors of the file, by name: a batch normalization is known by its neighbours.
    """
    reason = _reason(tensor)
    if reason:
        return g.nothing("unknown", reason, assumed=True)
    if len(tensor.shape) <= 1:
        return _vector(tensor, others)
    if len(tensor.shape) == 2:
        return _matrix(tensor)
    return _kernel(tensor)


def _reason(tensor: Named) -> str:
    """Return why a tensor is no map, as far as its name and dtype tell, or ""."""
    last = re.split(r"[./]", tensor.name)[-1].split(":")[0].lower()
    if 0 in tensor.shape:
        return "an empty tensor"
    if _OPTIMIZER.search(tensor.name):
        return g.OPTIMIZER
    if last in ("num_batches_tracked", "iteration", "iter", "step", "count"):
        return g.COUNTER
    if tensor.dtype not in FLOATS and not tensor.dtype.startswith("float8"):
        return g.INTEGERS if "int" in tensor.dtype else f"{tensor.dtype}: no real numbers"
    if len(tensor.shape) == 0:
        return g.SCALAR
    if re.search(r"(^|_)bias(_|$)", last) or last == "beta":
        return g.BIAS
    if last in ("running_mean", "moving_mean"):
        return g.MEAN
    return "part of the map of the scale beside it" if last in ("running_var", "moving_variance") else ""


def _vector(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    parent = re.sub(r"(weight|gamma)$", "", tensor.name)
    for name in ("running_var", "moving_variance"):
        variance = others.get(parent + name)
        if variance is not None and parent != tensor.name and variance.shape == tensor.shape:
            return g.batch_normalization("BatchNorm", variance.read, EPSILON, assumed=True)
    scale = _SCALE.search(tensor.name)
    return g.nothing("unknown", g.SCALE if scale else "a vector: a bias or a scale, no matrix", assumed=True)


def _matrix(tensor: Named) -> Geometry:
    if _LORA.search(tensor.name):
        return g.rows("LoRA", "factor of a low-rank update, (out, in)", assumed=True)
    if _EMBEDDING.search(tensor.name):
        return g.columns("Embedding", "matrix (tokens, features)", assumed=True)
    if _LAST_IS_OUT.search(tensor.name):
        return g.columns("Dense", assumed=True)
    if re.search(r"weight_(ih|hh)(_l\d+)?(_reverse)?$", tensor.name):
        return g.rows("RNN", "matrix (gates, in), all gates together", assumed=True)
    return g.rows("Linear", "matrix, (out, in) or its transpose: the norm is the same", assumed=True)


def _kernel(tensor: Named) -> Geometry:
    """Return a convolution at stride 1: striding and grouping only make its norm smaller, transposing keeps it."""
    if len(tensor.shape) > 5:
        return g.nothing("unknown", f"a tensor with {len(tensor.shape)} axes of an unknown layer", assumed=True)
    if len(tensor.shape) == 3 and "conv" not in tensor.name.lower():
        reason = "three axes: a convolution over one axis or a stack of matrices, and nothing tells which"
        return g.nothing("unknown", reason, assumed=True)
    keras = _LAST_IS_OUT.search(tensor.name) is not None
    make, layout = (g.convolution, "(*spatial, in, out)") if keras else (g.channels_first, "(out, in, *spatial)")
    found = make("Conv", tensor.shape, g.Sliding(), assumed=True)
    text = f"convolution {layout}, strides 1, groups 1 and zero padding assumed; a transposed one has the same norm"
    return found._replace(text=text)
