"""Codes with one scale for all, for each row or for each block: multiplied out where nothing else has a say."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from opnorm.checkpoints.files import guarded
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.made import File, Made, part, unknown, whole
from opnorm.checkpoints.quantization_settings import Settings

_SCALES = ("weight_scale", "weight_scale_inv", "scale_weight", "weight.scale", "scale")  # after the layer's name
_HARMLESS = re.compile(  # what may stand beside codes without a say in their numbers, with its own name
    r"(\w+_)?bias|((input|output|act|activation|q|k|v|kv)_)(global_)?(scale|zero_point|scale_inv)|num_batches_tracked"
)


def beside(file: File, codes: Collection[str]) -> dict[str, list[str]]:
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


def scales_of(file: File, codes: Named) -> list[Named]:
    """Return the tensors that may be the scale of codes."""
    return [file.tensors[name] for name in _scale_names(codes.name) if name in file.tensors]


def scaled(file: File, codes: Named, neighbours: Mapping[str, Sequence[str]], settings: Settings) -> dict[str, Made]:
    """Return what codes and their only scale are, nothing where there is no such scale."""
    if not codes.dtype.startswith("float8") and codes.dtype != "int8":
        return {}
    scales = scales_of(file, codes)
    if len(scales) != 1:
        return {}
    own, others = neighbours.get(codes.name, ()), neighbours.get(f"{codes.name.rpartition('.')[0]}.", ())
    if own or others:
        reason = f"codes of {codes.dtype}, and what {[*own, *others][0]!r} does to them is not known"
        parts = [scales[0].name, *own]
        return {codes.name: unknown(reason), **dict.fromkeys(parts, part(codes.name))}
    (scale,) = scales
    steps = _steps(codes.shape, scale.shape, _block_sizes(settings))
    if steps is None or (scale.dtype not in FLOATS and scale.dtype != "float8_e8m0fnu"):
        reason = f"codes of {codes.dtype}, and it is not clear how {scale.name!r} scales them"
        return {codes.name: unknown(reason), scale.name: part(codes.name)}
    read = guarded(file.path, _multiplied, codes, scale, steps)
    how = f"{codes.dtype} times {scale.name!r}, an entry for {'x'.join(map(str, steps))}"
    return whole(file, [codes, scale], codes._replace(name=_weight_name(codes.name), read=read), how)


def _scale_names(name: str) -> Iterator[str]:
    """Yield the names that the scale of a weight may have."""
    stem, _, last = name.rpartition(".")
    if last == "weight":
        yield from (name.removesuffix("weight") + ending for ending in _SCALES)
    elif last == "qweight":
        yield f"{stem}.scale"
    else:
        yield from (f"{name}_scale", f"{name}_scale_inv")


def _weight_name(codes: str) -> str:
    """Return the name of the weight that codes stand for: `X.weight` of `X.qweight` and of `X.weight.qweight`."""
    stem, _, last = codes.rpartition(".")
    if last != "qweight":
        return codes
    return stem if stem.rpartition(".")[2].endswith("weight") else f"{stem}.weight"


def _steps(shape: tuple[int, ...], scale: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return along each axis for how many codes one entry of the scale stands, None where that is not clear."""
    if prod(scale) == 1:
        return shape
    if len(scale) == 1 and shape.count(scale[0]) == 1:
        return tuple(1 if count == scale[0] else count for count in shape)
    if len(scale) != len(shape):
        return None
    given = sizes if any(s not in (1, n) for s, n in zip(scale, shape, strict=True)) else ()
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


def _block_sizes(settings: Settings) -> tuple[int, ...]:
    """Return the sizes of blocks that the settings beside a file give, () without them."""
    sizes = settings.get("weight_block_size")
    if not isinstance(sizes, list) or len(sizes) != 2:
        return ()
    return tuple(sizes) if all(type(n) is int and n > 0 for n in sizes) else ()
