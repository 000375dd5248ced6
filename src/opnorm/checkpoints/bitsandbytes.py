"""bitsandbytes: codes of 4 bits with a table of their values and a scale a block, or of 8 bits with a scale a row."""

from math import prod
from typing import Any

import numpy as np

from opnorm.checkpoints.files import guarded, parse_json, require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.made import File, Made, misfit, whole
from opnorm.checkpoints.packed import unpacked
from opnorm.checkpoints.quantization_settings import Settings, whole_number
from opnorm.checkpoints.records import CheckpointError
from opnorm.checks import Array

_WHO = "bitsandbytes"
_KINDS = ("nf4", "fp4")
_STATE_BYTES = 2**16
_NESTED = ("nested_absmax", "nested_quant_map")
_PARTS = ("absmax", "quant_map", *_NESTED, *(f"quant_state.bitsandbytes__{kind}" for kind in _KINDS))
_LARGEST = 127  # the code of a row's largest entry


def find_bitsandbytes(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what the tensors of a layer of 4 or 8 bits are, {} where `codes` are no layer's."""
    tensors, name = file.tensors, codes.name
    if not name.endswith(".weight"):
        return {}
    if f"{name}.absmax" in tensors:
        return _four(file, codes)
    rows = tensors.get(name.removesuffix("weight") + "SCB")
    return _eight(file, codes, rows) if rows is not None else {}


def _eight(file: File, codes: Named, rows: Named) -> dict[str, Made]:
    order = file.tensors.get(codes.name.removesuffix("weight") + "weight_format")
    members = [codes, rows, *([order] if order is not None else [])]
    try:
        plain = order is None or (prod(order.shape) == 1 and not np.any(order.read()))
    except CheckpointError:
        plain = False
    if not plain:
        return misfit(members, _WHO, "in another order than row by row")
    if codes.dtype != "int8" or len(codes.shape) != 2 or rows.shape != codes.shape[:1]:
        return misfit(members, _WHO, f"codes {list(codes.shape)} and scales {list(rows.shape)} do not fit")
    weight = Named(codes.name, codes.shape, codes.dtype, guarded(file.path, _rows, codes, rows))
    return whole(file, members, weight, f"codes times {rows.name!r} / {_LARGEST}, as {_WHO} stores it")


def _rows(codes: Named, rows: Named) -> np.ndarray:
    return codes.read().astype(np.float64) * (rows.read().astype(np.float64)[:, None] / _LARGEST)


def _four(file: File, codes: Named) -> dict[str, Made]:
    """Return a weight of nf4 or fp4: its tensors are called as `codes`, and a dot and a word."""
    named = {part: file.tensors.get(f"{codes.name}.{part}") for part in _PARTS}
    parts = {part: one for part, one in named.items() if one is not None}
    members = [codes, *parts.values()]
    kind = next((kind for kind in _KINDS if f"quant_state.bitsandbytes__{kind}" in parts), "")
    if not kind or "quant_map" not in parts or (_NESTED[0] in parts) != (_NESTED[1] in parts):
        return misfit(members, _WHO, "its table or its state is not there")
    try:
        state = _state(parts[f"quant_state.bitsandbytes__{kind}"])
        shape = _checked(codes, parts, state)
    except (CheckpointError, LookupError, TypeError, ValueError) as error:
        return misfit(members, _WHO, f"its state does not fit its tensors ({error})")
    read = guarded(file.path, _values, codes, parts, state, shape)
    nested = ", whose scales are quantized themselves" if _NESTED[0] in parts else ""
    return whole(file, members, Named(codes.name, shape, kind, read), f"{kind}{nested}, as {_WHO} stores it")


def _state(stored: Named) -> Settings:
    require(stored.dtype == "uint8" and prod(stored.shape) <= _STATE_BYTES, "its state is no text")
    found = parse_json(stored.read().tobytes(), "its state")
    require(isinstance(found, dict), "its state is no table")
    return dict(found)


def _checked(codes: Named, parts: dict[str, Named], state: Settings) -> tuple[int, ...]:
    """Return the shape of the weight, or raise: the codes, the tables and the blocks must fit it."""
    shape: Any = state["shape"]
    require(all(type(n) is int and n > 0 for n in shape) and len(shape) <= 8, f"the shape {shape}")
    count = prod(shape)
    require(
        codes.dtype == "uint8" and prod(codes.shape) == -(-count // 2), f"{prod(codes.shape)} bytes for {count} codes"
    )
    require(parts["quant_map"].shape == (16,), "the table of its values has other than 16")
    blocks = -(-count // _block(state, "blocksize"))
    require(parts["absmax"].shape == (blocks,), f"{parts['absmax'].shape} scales for {blocks} blocks")
    if _NESTED[0] in parts:
        outer = -(-blocks // _block(state, "nested_blocksize"))
        fits = parts[_NESTED[0]].shape == (outer,) and parts[_NESTED[1]].shape == (256,)
        require(fits and parts["absmax"].dtype == "uint8", "the scales of its scales do not fit")
        float(state["nested_offset"])
    else:
        require(parts["absmax"].dtype.startswith("float"), "its scales are codes")
    return tuple(shape)


def _block(state: Settings, key: str) -> int:
    size = whole_number(state, key)
    require(size is not None, f"{key} {state.get(key)}")
    return size or 0


def _values(codes: Named, parts: dict[str, Named], state: Settings, shape: tuple[int, ...]) -> np.ndarray:
    """Return the table's values times their blocks' scales; the first of two codes has a byte's upper bits."""
    pairs = unpacked(codes.read().reshape(-1, 1), 4)
    table = parts["quant_map"].read().astype(np.float64)
    values = table[pairs[:, ::-1].ravel()[: prod(shape)]]
    _scale_blocks(values, _scales(parts, state), _block(state, "blocksize"))
    return np.asarray(values.reshape(shape))


def _scales(parts: dict[str, Named], state: Settings) -> Array:
    if _NESTED[0] not in parts:
        return np.asarray(parts["absmax"].read().astype(np.float64))
    outer, table = (parts[name].read().astype(np.float64) for name in _NESTED)
    codes = parts["absmax"].read()
    scales = table[codes]
    _scale_blocks(scales, outer, _block(state, "nested_blocksize"))
    return np.asarray(scales + float(state["nested_offset"]))


def _scale_blocks(values: Array, scales: Array, block: int) -> None:
    """Multiply each block of values by its scale, in place; the last may be shorter."""
    whole = len(values) // block
    if whole:
        blocks = values[: whole * block].reshape(whole, block)
        blocks *= scales[:whole, None]
    values[whole * block :] *= scales[-1]
