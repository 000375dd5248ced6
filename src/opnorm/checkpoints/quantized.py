"""Kernels stored as codes: multiplied out where a library is known to store them so, else with the reason."""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from opnorm.checkpoints.bitsandbytes import find_bitsandbytes
from opnorm.checkpoints.compressed_tensors import find_compressed, find_modelopt
from opnorm.checkpoints.gptq import find_gptq
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.hqq import find_hqq
from opnorm.checkpoints.made import File, Made, part, unknown
from opnorm.checkpoints.other_codes import find_blocks, find_mlx, find_quanto
from opnorm.checkpoints.quantization_settings import Settings, quantization_settings
from opnorm.checkpoints.scaled_codes import beside, scaled, scales_of

_LIBRARIES: tuple[Callable[[File, Named, Settings], dict[str, Made]], ...] = (
    find_gptq,
    find_bitsandbytes,
    find_compressed,
    find_modelopt,
    find_blocks,
    find_mlx,
    find_quanto,
    find_hqq,
)


class Scheme(NamedTuple):
    """How a library stores a quantized kernel."""

    codes: str  # how the name of the codes ends
    parts: tuple[str, ...]  # how the names of what belongs to them end; the first is always there
    who: str


_SCHEMES = [  # that are not worked out here
    Scheme(".weight", (".weight_scale", ".weight_scale_2", ".weight_zero_point", ".input_scale"), "ModelOpt or others"),
    Scheme(".weight", (".scales", ".biases"), "MLX or others"),
    Scheme(".weight._data", (".weight._scale", ".weight._shift"), "Quanto"),
    Scheme(".weight._data._data", (".weight._scale", ".weight._shift"), "Quanto"),
]
_ALONE = "it belongs to quantized numbers that are not found beside it"
_SCALE = re.compile(r"[._](weight_)?(scales?|zeros?|zero_points?|min|max)$", re.IGNORECASE)
_PACKED = ("int8", "uint8", "int16", "uint16", "int32", "uint32")  # as which codes are stored
_STATE = re.compile(r"^(?P<weight>.+\.weight)\.quant_state\.")
_ORPHAN = re.compile(
    r"(^|[._])(qweight|qzeros|scales|g_idx|absmax|quant_map|SCB|weight_scale(_inv|_2)?|scale_weight|weight_packed)$"
)


def find_quantized(file: File) -> dict[str, Made]:
    """Return, by name, what codes and their scales are: the codes have the row of the layer's weight.

    Codes that do not fit their scales, their shape or the settings beside the file in one way are unknown.
    """
    found: dict[str, Made] = {}
    codes = [tensor for tensor in file.tensors.values() if _may_be_codes(tensor)]
    if not codes:
        return {name: unknown(_ALONE) for name, tensor in file.tensors.items() if _is_orphan(tensor)}
    settings = quantization_settings(file.path)
    with_scale = {tensor.name for tensor in codes if scales_of(file, tensor)}
    neighbours = beside(file, with_scale) if with_scale else {}
    for tensor in codes:
        if tensor.name not in found:
            own = _of_a_library(file, tensor, settings)
            found |= own or _others(file, tensor, scaled(file, tensor, neighbours, settings))
    stems = {stem for tensor in codes if tensor.dtype in _PACKED for stem in _stems(tensor.name)}
    for name, tensor in file.tensors.items():
        state = _STATE.match(name)
        if state and state["weight"] in found and name not in found:
            found[name] = part(state["weight"])
        elif name not in found and (_is_orphan(tensor) or _scales_one_of(stems, tensor)):
            found[name] = unknown(_ALONE)
    return found


def _stems(codes: str) -> tuple[str, str]:
    """Return what the name of a scale may begin with: that of its codes, or of the weight or layer of these."""
    return codes, re.sub(r"[._]\w*$", "", codes)


def _scales_one_of(stems: Collection[str], tensor: Named) -> bool:
    """Return whether a tensor is called the scale or the offset of codes that are stored beside it."""
    found = _SCALE.search(tensor.name)
    return found is not None and len(tensor.shape) > 1 and tensor.name[: found.start()] in stems


def _may_be_codes(tensor: Named) -> bool:
    """Return whether a tensor may hold codes; HQQ may call the bytes of its codes floating-point numbers."""
    return (tensor.dtype not in FLOATS or tensor.name.endswith(".W_q")) and len(tensor.shape) > 1


def _of_a_library(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    return next((made for find in _LIBRARIES if (made := find(file, codes, settings))), {})


def _is_orphan(tensor: Named) -> bool:
    return _ORPHAN.search(tensor.name) is not None and len(tensor.shape) > 1


def _others(file: File, codes: Named, found: dict[str, Made]) -> dict[str, Made]:
    """Return what was found of codes; where that is no number, with the parts that a library is known to give them."""
    if any(one.read for one in found.values()):
        return found
    for scheme in _SCHEMES:
        stem = codes.name.removesuffix(scheme.codes)
        if stem != codes.name and stem + scheme.parts[0] in file.tensors:
            reason = f"quantized, as {scheme.who} store it: what its {codes.dtype} stand for is not worked out here"
            parts = [stem + ending for ending in scheme.parts if stem + ending in file.tensors]
            return {codes.name: unknown(reason), **dict.fromkeys(parts, part(codes.name)), **found}
    return found
