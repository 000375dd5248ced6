"""Kernels stored as codes: those whose scale stands beside them are multiplied out, of others there is a reason."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints.files import guarded, parse_json
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.made import File, Made, layer, part, unknown
from opnorm.checkpoints.records import CheckpointError

_CONFIG_BYTES = 2**20


class Scheme(NamedTuple):
    """How a library stores a quantized kernel."""

    codes: str  # how the name of the codes ends
    parts: tuple[str, ...]  # how the names of what belongs to them end; the first is always there
    who: str


_SCALES = ("weight_scale", "weight_scale_inv", "scale_weight", "weight.scale", "scale")  # after the layer's name
_HARMLESS = re.compile(  # what may stand beside codes without a say in their numbers, with its own name
    r"(\w+_)?bias|((input|output|act|activation|q|k|v|kv)_)(global_)?(scale|zero_point|scale_inv)|num_batches_tracked"
)
_SCHEMES = [
    Scheme(".qweight", (".scales", ".qzeros", ".g_idx"), "GPTQ or AWQ"),
    Scheme(".weight", (".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map"),
           "bitsandbytes"),
    Scheme(".weight", (".SCB", ".weight_format"), "bitsandbytes"),
    Scheme(".weight_packed", (".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx",
                              ".weight_global_scale", ".input_global_scale"), "compressed-tensors"),
    Scheme(".weight", (".weight_scale", ".weight_scale_2", ".weight_zero_point", ".input_scale"), "ModelOpt or others"),
    Scheme(".weight", (".scales", ".biases"), "MLX"),
    Scheme("_blocks", ("_scales",), "MXFP4"),
    Scheme(".W_q", (".scale", ".zero", ".meta"), "HQQ"),
    Scheme(".weight._data", (".weight._scale", ".weight._shift"), "Quanto"),
]  # fmt: skip
_STATE = re.compile(r"^(?P<weight>.+\.weight)\.quant_state\.")
_ORPHAN = re.compile(
    r"(^|[._])(qweight|qzeros|scales|g_idx|absmax|quant_map|SCB|weight_scale(_inv|_2)?|scale_weight|weight_packed)$"
)


def find_quantized(file: File) -> dict[str, Made]:
    """Return, by name, what codes and their scales are.

    Codes with one scale for all, for each row, or for each block are multiplied out; the sizes of the blocks are
    those of the config.json beside the file, else the power of two that fits. Other codes are unknown.
    """
    found: dict[str, Made] = {}
    codes = [tensor for tensor in file.tensors.values() if tensor.dtype not in FLOATS and len(tensor.shape) > 1]
    scaled = {tensor.name for tensor in codes if _scales(file, tensor)}
    beside = _beside(file, scaled) if scaled else {}
    for tensor in codes:
        found |= _scaled(file, tensor, beside) or _not_followed(file, tensor)
    for name, tensor in file.tensors.items():
        state = _STATE.match(name)
        if state and state["weight"] in found:
            found[name] = part(state["weight"])
        elif _ORPHAN.search(name) and len(tensor.shape) > 1 and name not in found:
            found[name] = unknown("it belongs to quantized numbers that are not found beside it")
    return found


def _beside(file: File, codes: Collection[str]) -> dict[str, list[str]]:
    """Return what may have a say in codes: by their name what begins with it, by their module what else stands there.

    An offset has many names, so that all but what is known to be harmless counts.
    """
    found: dict[str, list[str]] = {}
    scales = {name for one in codes for name in _scale_names(one)}
    for name in file.tensors:
        owner = _owner(name, codes)
        module, _, last = name.rpartition(".")
        if owner not in (None, name) and name not in scales:
            found.setdefault(owner or "", []).append(name)
        elif owner is None and name not in scales and not _HARMLESS.fullmatch(last):
            found.setdefault(f"{module}.", []).append(name)
    return found


def _owner(name: str, codes: Collection[str]) -> str | None:
    """Return the longest name of codes with which a name begins, up to a dot or an underscore."""
    ends = (at for at in range(len(name), 0, -1) if at == len(name) or name[at] in "._")
    return next((name[:at] for at in ends if name[:at] in codes), None)


def _scales(file: File, codes: Named) -> list[Named]:
    """Return the tensors that may be the scale of codes."""
    return [file.tensors[name] for name in _scale_names(codes.name) if name in file.tensors]


def _scaled(file: File, codes: Named, beside: Mapping[str, Sequence[str]]) -> dict[str, Made]:
    """Return what codes and their only scale are, nothing where there is no such scale."""
    if not codes.dtype.startswith("float8") and codes.dtype != "int8":
        return {}
    scales = _scales(file, codes)
    if len(scales) != 1:
        return {}
    own, others = beside.get(codes.name, ()), beside.get(f"{codes.name.rpartition('.')[0]}.", ())
    if own or others:
        reason = f"codes of {codes.dtype}, and what {[*own, *others][0]!r} does to them is not known"
        parts = [scales[0].name, *own]
        made = {codes.name: unknown(reason), **dict.fromkeys(parts, part(codes.name))}
        return made | _not_followed(file, codes)
    (scale,) = scales
    steps = _steps(codes.shape, scale.shape, lambda: _block_sizes(file))
    if steps is None or (scale.dtype not in FLOATS and scale.dtype != "float8_e8m0fnu"):
        reason = f"codes of {codes.dtype}, and it is not clear how {scale.name!r} scales them"
        return {codes.name: unknown(reason), scale.name: part(codes.name)}
    read = guarded(file.path, _multiplied, codes, scale, steps)
    how = f"{codes.dtype} times {scale.name!r}, an entry for {'x'.join(map(str, steps))}"
    return {codes.name: layer(file, codes, codes.name, read, how), scale.name: part(codes.name)}


def _scale_names(name: str) -> Iterator[str]:
    """Yield the names that the scale of a weight may have."""
    if name.rpartition(".")[2] == "weight":
        yield from (name.removesuffix("weight") + ending for ending in _SCALES)
    else:
        yield from (f"{name}_scale", f"{name}_scale_inv")


def _steps(
    shape: tuple[int, ...], scale: tuple[int, ...], sizes: Callable[[], tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Return along each axis for how many codes one entry of the scale stands, None where that is not clear."""
    if prod(scale) == 1:
        return shape
    if len(scale) == 1 and shape.count(scale[0]) == 1:
        return tuple(1 if count == scale[0] else count for count in shape)
    if len(scale) != len(shape):
        return None
    given = sizes() if any(s not in (1, n) for s, n in zip(scale, shape, strict=True)) else ()
    given = (*[0] * (len(shape) - len(given)), *given)
    steps = [_step(*one) for one in zip(shape, scale, given, strict=True)]
    return tuple(steps) if 0 not in steps else None


def _step(count: int, entries: int, given: int) -> int:
    """Return for how many of `count` codes along an axis one of `entries` stands, 0 where that is not clear."""
    if entries == 1:
        return count
    if entries == count:
        return 1
    for step in [given] if given else [2**power for power in range(1, 16)]:
        if -(-count // step) == entries:
            return step
    return 0


def _multiplied(codes: Named, scale: Named, steps: Sequence[int]) -> np.ndarray:
    values, factors = codes.read().astype(np.float64), scale.read().astype(np.float64)
    factors = factors.reshape([-(-n // step) for n, step in zip(values.shape, steps, strict=True)])
    for axis, (count, step) in enumerate(zip(values.shape, steps, strict=True)):
        if step not in (1, count):
            factors = np.repeat(factors, step, axis).take(range(count), axis)
    values *= factors
    return values


def _block_sizes(file: File) -> tuple[int, ...]:
    """Return the sizes of blocks that the config.json beside a file gives, () without them."""
    beside = file.path.with_name("config.json")
    try:
        if not beside.is_file() or beside.stat().st_size > _CONFIG_BYTES:
            return ()
        config = parse_json(beside.read_bytes(), "config.json")
        sizes = config["quantization_config"]["weight_block_size"]
        proper = isinstance(sizes, list) and len(sizes) == 2 and all(type(n) is int and n > 0 for n in sizes)
    except (CheckpointError, OSError, KeyError, TypeError):
        return ()
    return tuple(sizes) if proper else ()


def _not_followed(file: File, codes: Named) -> dict[str, Made]:
    """Return what codes are that a library is known to store so, and their parts."""
    for scheme in _SCHEMES:
        stem = codes.name.removesuffix(scheme.codes)
        if stem != codes.name and stem + scheme.parts[0] in file.tensors:
            reason = f"quantized, as {scheme.who} store it: what its {codes.dtype} stand for is not worked out here"
            parts = [stem + ending for ending in scheme.parts if stem + ending in file.tensors]
            return {codes.name: unknown(reason), **dict.fromkeys(parts, part(codes.name))}
    return {}
