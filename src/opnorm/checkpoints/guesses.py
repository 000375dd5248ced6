"""What a tensor probably does, from its name and shape, where the file says nothing: every answer is `assumed`."""

import re
from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.fused import with_known_parts
from opnorm.checkpoints.kernels import guess_kernel, is_convolution, with_taps
from opnorm.checkpoints.records import Geometry

EPSILONS = (1e-5, 1e-3)  # defaults of batch normalization: PyTorch's; Keras's, and of many PyTorch models

FLOATS = {"float16", "bfloat16", "float32", "float64"}
_DEQUANTIZED = {"qint8", "quint8", "qint32"}  # PyTorch's quantized tensors carry their scales, and are read by them
_SLOTS = (  # of optimizers of PyTorch, and of those that are written alike
    r"exp_avgs?(_sqs?)?(_row|_col)?|max_exp_avg_sq|exp_inf|momentum_buffer|momentum|square_avg|acc_delta|grad_avg|"
    r"row_var|col_var|variance|master_param|prev|sum|mu_product|mu|nu|trace|v_row|v_col|velocity|accumulator|m|v|step|"
    r"spectral_vectors|vectors"  # our own
)
_OPTIMIZERS = r"(\w+_)?(optimi[sz]ers?|optim|opt)(_?\w{1,2})?(_states?)?(_dict)?"
_OPTIMIZER = re.compile(  # where the formats put it, and nowhere else: a module may have any of these names
    rf"(^|[./])state[./]\d+[./]({_SLOTS})$|"  # PyTorch's state_dict()
    rf"(^|[./]){_OPTIMIZERS}([./]\d+)?[./]state[./](\d+[./].*|(.+[./])?({_SLOTS})([./].+)?)$|"
    rf"^(opt(imizer)?_state|{_OPTIMIZERS}([./]\d+)+)[./](.+[./])?({_SLOTS})([./].+)?$|"  # Optax's
    rf"^{_OPTIMIZERS}[./]({_SLOTS})$"  # a flat one
)
_EMBEDDING = re.compile(  # the module's own name
    r"embed|(^|_)embs?(_|$)|^(wte|wpe|lm_head_table|token_table|shared)$", re.IGNORECASE
)
_TABLE_NAME = re.compile(  # of what is looked up; a layer called `bond_embedding` or `patch_embed` may be a Linear
    r"^(emb(ed|edding)?s?|wte|wpe|lm_head_table)$|token|(^|_)(tok|pos)_|word|vocab|char|position|shared", re.IGNORECASE
)
_POSITION = re.compile(
    r"(^|[./])(pos(ition(al)?)?_?emb(ed(ding)?s?)?|(cls|dist|mask|reg(ister)?)_tokens?)$", re.IGNORECASE
)
_SCORES = "relative_position_bias_table"  # of Swin and BEiT: added to the scores of an attention
_LOGARITHMS = ("a_log", "a_logs")  # of Mamba
_LAYER_SCALE = re.compile(r"(^|[./_])(layer_?scale|(ls\d?[./]gamma|gamma_?\d|lambda_?\d)([./]|$))", re.IGNORECASE)
_INDEX = re.compile(r"(^|_)(ids|index|indices|idx|masks?|positions?|offsets?|lengths?|shape)$")
_TABLE = ("int64", "uint64")  # in which no library packs codes
_RANDOM = re.compile(r"rng|random|seed", re.IGNORECASE)
_STATISTICS = re.compile(r"(^|[./])batch_stats([./])")  # flax's, of a batch normalization whose scale is in "params"
_SMALL = ("float4", "float6", "float8")
_LORA = re.compile(r"lora_(A|B|embedding_A|embedding_B|down|up)\b|lora_[AB]\.", re.IGNORECASE)
_CONV1D = re.compile(r"(^|[./])(c_attn|c_proj|c_fc|q_attn)[./]weight$")  # GPT-2's Conv1D is stored (in, out)
_JOINED_EXPERTS = re.compile(  # of MegaBlocks, as in DBRX, and of Megatron
    r"(^|[._/])experts[._/](mlp[._/](w1|v1|w2)|weight[12])$"
)
_SCALE = re.compile(r"(scale|gamma|weight|norm\w*)(:0)?$", re.IGNORECASE)
_LAST_IS_OUT = re.compile(r"(^|[._/:])(kernel|recurrent_kernel|depthwise_kernel|pointwise_kernel)(:0)?$")


class Named(NamedTuple):
    """A tensor of which only this is known."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def unique(name: str, taken: set[str]) -> str:
    """Return `name`, with a number where it is taken."""
    fresh, above = name, 1
    while fresh in taken:
        fresh, above = f"{name}#{above}", 2 * above
    if above > 4:  # the last number that was free; one that is taken lies at its half
        low, above = above // 4, above // 2
        while above - low > 1:
            middle = (low + above) // 2
            low, above = (middle, above) if f"{name}#{middle}" in taken else (low, middle)
        fresh = f"{name}#{above}"
    taken.add(fresh)
    return fresh


def guess(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    """Return what a tensor probably does; PyTorch's layout unless its name ends as Keras's kernels do.

    Args:
        tensor: The tensor.
        others: All tensors of the file, by name: a batch normalization is known by its neighbours.
    """
    known = _by_name(tensor, others)
    if known is not None:
        return known
    if len(tensor.shape) == 1:
        return _vector(tensor, others)
    if len(tensor.shape) == 2:
        return with_known_parts(_matrix(tensor, others), tensor.name, tensor.shape)
    return guess_kernel(tensor.name, tensor.shape, keras=_LAST_IS_OUT.search(tensor.name) is not None)


def _by_name(tensor: Named, others: Mapping[str, Named]) -> Geometry | None:
    """Return what name and dtype tell without the shape, None when that is nothing."""
    last = re.split(r"[./]", tensor.name)[-1].split(":")[0].lower()
    reason = _reason(tensor, last)
    if reason:
        return g.nothing("unknown", reason, assumed=True)
    if tensor.dtype not in FLOATS | _DEQUANTIZED:
        return _codes(tensor)
    if len(tensor.shape) == 0:
        return g.nothing("unknown", g.SCALAR, assumed=True)
    if _is_bias(tensor, last, others):
        return g.nothing("unknown", g.BIAS, assumed=True)
    if last in ("running_mean", "moving_mean") or (last == "mean" and _is_statistic(tensor, others)):
        return g.nothing("unknown", g.MEAN, assumed=True)
    if last in ("running_var", "moving_variance") or (last == "var" and _is_statistic(tensor, others)):
        return _variance(tensor, others)
    return _no_matrix(tensor, last)


def _no_matrix(tensor: Named, last: str) -> Geometry | None:
    """Return what a tensor is that has a matrix's axes and is none, by its name."""
    if last in _LOGARITHMS:
        return g.nothing("unknown", "logarithms of a state space's rates, which decay", assumed=True)
    added = _POSITION.search(tensor.name) and len(tensor.shape) > 2 and tensor.shape[0] == 1
    if added or last.endswith(_SCORES):
        return g.nothing("unknown", "a table that is added, not multiplied", assumed=True)
    return None


def _reason(tensor: Named, last: str) -> str:
    """Return why a tensor is no map whatever its numbers are, or ""."""
    if 0 in tensor.shape:
        return "an empty tensor"
    if _OPTIMIZER.search(tensor.name):
        return g.OPTIMIZER
    single = prod(tensor.shape) == 1
    return g.COUNTER if single and last in ("num_batches_tracked", "iteration", "iter", "step", "count") else ""


def _is_bias(tensor: Named, last: str, others: Mapping[str, Named]) -> bool:
    """Return whether a tensor is called a bias and has the one axis of one, or those of the kernel's outputs."""
    if not re.search(r"(^|_)bias(_|$)", last) and last != "beta":
        return False
    if sum(count != 1 for count in tensor.shape) <= 1:
        return True
    stack = others.get(tensor.name.removesuffix("_bias")) or others.get(f"{tensor.name.removesuffix('bias')}blocks")
    if stack not in (None, tensor) and len(stack.shape) > 2 and tensor.shape[0] == stack.shape[0]:
        return len(tensor.shape) == 2  # of experts, a bias for each
    beside = others.get(re.sub(r"bias(:0)?$", r"kernel\1", tensor.name), tensor)
    return (
        last == "bias" and len(beside.shape) > len(tensor.shape) and beside.shape[-len(tensor.shape) :] == tensor.shape
    )


def _codes(tensor: Named) -> Geometry:
    """Return what a tensor of no floating-point numbers is: a kernel may be stored in integers, or in float8."""
    kind, integers = tensor.dtype, "int" in tensor.dtype
    if kind == "bool":
        return g.nothing("unknown", "bool: no real numbers, but a mask", assumed=True)
    if kind.startswith(("<U", "|S", ">U", "datetime", "timedelta", "str")):
        return g.nothing("unknown", f"{kind}: no numbers", assumed=True)
    last = re.split(r"[./]", tensor.name)[-1].split(":")[0]
    index, single = _INDEX.search(last), len(tensor.shape) < 2
    if kind in ("int8", "uint8"):  # codes may be packed in a vector, and be those of one output
        settled = single and bool(index or _RANDOM.search(tensor.name))
    else:
        settled = single or (bool(index) and (kind in _TABLE or sum(count != 1 for count in tensor.shape) < 2))
    if integers and settled:
        return g.nothing("unknown", g.INTEGERS, assumed=True)
    if integers:
        return g.unknown("unknown", f"{g.INTEGERS}: a quantized kernel, perhaps", assumed=True)
    if kind.startswith("complex"):
        return g.unknown("unknown", f"{kind}: no real numbers; of complex ones no norm is computed", assumed=True)
    reason = f"codes of {kind}, whose scale is not found" if kind.startswith(_SMALL) else f"numbers of {kind}"
    return g.unknown("unknown", reason, assumed=True)


def _variance(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    """Return the map of a batch normalization without a scale; with one the scale has it."""
    parent = re.sub(r"(running_var|moving_variance|var)$", "", tensor.name)
    beside = {parent + name for name in ("weight", "gamma", "scale")} | {
        _STATISTICS.sub(r"\1params\2", parent) + "scale"
    }
    if tensor.name not in others or any(name in others for name in beside):
        return g.nothing("unknown", "part of the map of the scale beside it", assumed=True)
    first, *rest = (g.batch_variance("BatchNorm", epsilon) for epsilon in EPSILONS)
    return _assumed_epsilon(first, rest)


def _is_statistic(tensor: Named, others: Mapping[str, Named]) -> bool:
    """Return whether a mean or a variance is one of flax's batch normalization: in batch_stats, or of all it has."""
    parent = re.sub(r"(mean|var)$", "", tensor.name)
    together = all(f"{parent}{name}" in others for name in ("mean", "var", "scale"))
    return together or _STATISTICS.search(tensor.name) is not None


def _assumed_epsilon(first: Geometry, rest: list[Geometry]) -> Geometry:
    text = f"{first.text}; epsilon is not in the file"
    return first._replace(text=text, assumed=True, readings=tuple(one._replace(assumed=True) for one in rest))


def _vector(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    parent = re.sub(r"(weight|gamma|scale)$", "", tensor.name)
    flax = re.sub(r"(^|[./])params([./])", r"\1batch_stats\2", parent)
    for name in (f"{parent}running_var", f"{parent}moving_variance", f"{flax}var"):
        variance = others.get(name)
        if variance is not None and parent != tensor.name and variance.shape == tensor.shape:
            first, *rest = (g.batch_normalization("BatchNorm", variance.read, epsilon) for epsilon in EPSILONS)
            return _assumed_epsilon(first, rest)
    if _LAYER_SCALE.search(tensor.name):
        return g.diagonal("LayerScale", "diagonal, each feature times its number", np.asarray, assumed=True)
    if tensor.name.rpartition(".")[2].endswith("flat_param"):
        return g.unknown("unknown", "all weights of several layers in one vector", assumed=True)
    scale = _SCALE.search(tensor.name)
    return g.nothing("unknown", g.SCALE if scale else "a vector: a bias or a scale, no matrix", assumed=True)


def _matrix(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    if _JOINED_EXPERTS.search(tensor.name):
        return g.unknown("experts", "experts joined in one matrix: how many there are is not known", assumed=True)
    if _LORA.search(tensor.name):
        return g.rows("LoRA", "factor of a low-rank update, (out, in)", assumed=True)
    table = _table(tensor, others)
    if table is not None:
        return table
    if _LAST_IS_OUT.search(tensor.name):
        found = g.columns("Dense", assumed=True)
        return with_taps(found, tensor.shape, keras=True) if is_convolution(tensor.name) else found
    if re.search(r"weight_(ih|hh)(_l\d+)?(_reverse)?$", tensor.name):
        return g.rows("RNN", "matrix (gates, in), all gates together", assumed=True)
    return _linear(tensor, others)


def _table(tensor: Named, others: Mapping[str, Named]) -> Geometry | None:
    """Return the embedding that a module's own name speaks of; what has a bias is a layer that embeds by a matrix."""
    names = re.split(r"[./]", tensor.name.removesuffix(":0"))
    module = next((name for name in reversed(names) if not re.fullmatch(r"weights?|kernel|\d+", name)), "")
    if not _EMBEDDING.search(module) or _LAST_IS_OUT.search(tensor.name):
        return None
    if re.sub(r"weight$", "bias", tensor.name) in others.keys() - {tensor.name}:
        return None
    oriented = tensor.shape[0] == tensor.shape[1] or _TABLE_NAME.search(module) is not None
    return g.columns("Embedding", "matrix (tokens, features)", assumed=True)._replace(oriented=oriented)


def _linear(tensor: Named, others: Mapping[str, Named]) -> Geometry:
    """Return a matrix whose orientation its bias tells, else PyTorch's, unless its name speaks of another."""
    bias = others.get(re.sub(r"weight$", "bias", tensor.name))
    outputs = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
    rows, columns = tensor.shape
    if outputs == columns != rows:
        return g.columns("Linear", "matrix (in, out): its bias has as many entries as it has columns", assumed=True)
    usual = tensor.name.endswith(".weight") and not _CONV1D.search(tensor.name)
    oriented = outputs == rows != columns or rows == columns or usual
    text = "matrix, (out, in) or its transpose: the norm is the same"
    found = g.rows("Linear", text, assumed=True)._replace(oriented=oriented)
    return with_taps(found, tensor.shape) if is_convolution(tensor.name) else found
