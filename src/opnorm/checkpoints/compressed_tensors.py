"""compressed-tensors and ModelOpt: packed integers with a scale a group, float4 with scales of float8 or e8m0."""

from math import prod

import numpy as np

from opnorm.checkpoints.files import guarded, require
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.made import File, Made, misfit, whole
from opnorm.checkpoints.packed import FLOAT4, apply_groups, powers, scale_groups, unpacked
from opnorm.checkpoints.quantization_settings import Settings
from opnorm.checkpoints.records import CheckpointError
from opnorm.checks import Array

_WHO = "compressed-tensors"
_BITS = (2, 4, 8)  # of codes that share words in the same way in every version of the library
_WORD = 32
_NVIDIA, _MICROSCALED = 16, 32  # codes of a group in NVFP4 and MXFP4
_PARTS = (
    "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale", "input_global_scale",
)  # fmt: skip


def find_compressed(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what the tensors of a layer are, {} where `codes` are no layer's."""
    stem = codes.name.removesuffix("weight_packed")
    if stem == codes.name or f"{stem}weight_scale" not in file.tensors:
        return {}
    parts = {end: file.tensors[stem + end] for end in _PARTS if stem + end in file.tensors}
    members, name = [codes, *parts.values()], f"{stem}weight"
    try:
        if codes.dtype == "uint8":
            return _float4(file, codes, parts, name)
        shape, bits = _form(codes, parts)
    except (CheckpointError, LookupError) as error:
        return misfit(members, _WHO, str(error))
    read = guarded(file.path, _integers, codes, parts, shape, bits)
    zero = "(code - zero point)" if "weight_zero_point" in parts else "code"
    text = f"{bits} bits, scale {zero}, as {_WHO} stores it"
    return whole(file, members, Named(name, shape, f"int{bits}", read), text)


def find_modelopt(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what the tensors of a layer of ModelOpt's NVFP4 are, if the files beside it say that it is that."""
    stem = codes.name.removesuffix("weight")
    parts = [file.tensors.get(stem + end) for end in ("weight_scale", "weight_scale_2")]
    inner, outer = parts
    said = "NVFP4" in str(settings.get("quant_algo", "")).upper()
    if stem == codes.name or codes.dtype != "uint8" or inner is None or outer is None or not said:
        return {}
    members = [codes, inner, outer]
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    fits = (
        inner.shape == (*shape[:-1], shape[-1] / _NVIDIA) and inner.dtype == "float8_e4m3fn" and prod(outer.shape) == 1
    )
    if not fits:
        return misfit(members, "ModelOpt", "its codes and scales do not fit NVFP4")
    read = guarded(file.path, _nvidia, codes, inner, outer, False)
    return whole(file, members, Named(codes.name, shape, "nvfp4", read), "NVFP4, as ModelOpt stores it")


def _form(codes: Named, parts: dict[str, Named]) -> tuple[tuple[int, ...], int]:
    """Return the shape of a weight and the bits of a code, or raise: all must fit each other in one way."""
    stored = parts["weight_shape"]
    require(stored.shape == (2,) and "int" in stored.dtype, "its shape is not that of a matrix")
    outputs, inputs = (int(n) for n in stored.read())
    fitting = [bits for bits in _BITS if codes.shape == (outputs, -(-inputs * bits // _WORD))]
    require(len(fitting) == 1 and codes.dtype == "int32", f"codes {list(codes.shape)} do not fit {[outputs, inputs]}")
    scale, bits = parts["weight_scale"], fitting[0]
    single, rows = prod(scale.shape) == 1, len(scale.shape) == 2 and scale.shape[0] == outputs
    require(scale.dtype in FLOATS and (single or (rows and inputs % max(1, scale.shape[1]) == 0)), _odd(scale))
    zero = parts.get("weight_zero_point")
    if zero is not None:
        packed = len(scale.shape) == 2 and zero.shape == (-(-outputs * bits // _WORD), scale.shape[1])
        plain = zero.dtype == "int8" and zero.shape == scale.shape
        require(plain or (packed and zero.dtype == "int32"), _odd(zero))
    index = parts.get("weight_g_idx")
    require(index is None or (rows and index.shape == (inputs,)), "its g_idx does not fit")
    require("weight_global_scale" not in parts, "it has a scale of its scales")
    return (outputs, inputs), bits


def _odd(one: Named) -> str:
    return f"{one.name!r} has the shape {list(one.shape)}, which does not fit"


def _integers(codes: Named, parts: dict[str, Named], shape: tuple[int, ...], bits: int) -> np.ndarray:
    offset = 1 << (bits - 1)
    values = unpacked(codes.read(), bits)[:, : shape[1]].astype(np.float64) - offset
    scale = parts["weight_scale"].read().astype(np.float64)
    zeros = _zeros(parts["weight_zero_point"].read(), bits, shape) if "weight_zero_point" in parts else np.zeros(1)
    if scale.size == 1:
        return np.asarray((values - zeros.reshape(())) * scale.reshape(()))
    apply_groups(values, np.broadcast_to(zeros, scale.shape), scale, _places(parts, scale, shape[1]))
    return np.asarray(values)


def _zeros(stored: np.ndarray, bits: int, shape: tuple[int, ...]) -> Array:
    if stored.dtype.itemsize == 1:
        return stored.astype(np.float64)
    return unpacked(stored.T, bits).T[: shape[0]].astype(np.float64) - (1 << (bits - 1))


def _places(parts: dict[str, Named], scale: Array, inputs: int) -> np.ndarray:
    """Return the group of each input."""
    groups = scale.shape[-1] if scale.ndim == 2 else 1
    size = inputs // groups
    index = parts["weight_g_idx"].read() if "weight_g_idx" in parts else None
    if index is None or np.all(index == -1):  # which the library leaves out, too
        return np.arange(inputs) // size
    named, counts = np.unique(index, return_counts=True)
    even = index.dtype.kind in "iu" and np.array_equal(named, np.arange(groups)) and np.all(counts == size)
    require(bool(even), "its g_idx does not have as many inputs in each group")
    return index


def _float4(file: File, codes: Named, parts: dict[str, Named], name: str) -> dict[str, Made]:
    """Return a weight of NVFP4, with a scale of its scales, or of MXFP4, without."""
    members, scale, outer = [codes, *parts.values()], parts["weight_scale"], parts.get("weight_global_scale")
    others = set(parts) - {"weight_scale", "weight_global_scale", "input_global_scale"}
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    require(not others and len(shape) == 2, f"it has {sorted(others)} beside it")
    if outer is not None:
        fits = (
            scale.shape == (shape[0], shape[1] / _NVIDIA) and scale.dtype == "float8_e4m3fn" and prod(outer.shape) == 1
        )
        require(fits, _odd(scale))
        read = guarded(file.path, _nvidia, codes, scale, outer, True)
        return whole(file, members, Named(name, shape, "nvfp4", read), f"NVFP4, as {_WHO} stores it")
    require(scale.shape == (shape[0], shape[1] / _MICROSCALED) and scale.dtype == "uint8", _odd(scale))
    read = guarded(file.path, microscaled, codes, scale)
    return whole(file, members, Named(name, shape, "mxfp4", read), f"MXFP4, as {_WHO} stores it")


def _nvidia(codes: Named, inner: Named, outer: Named, inverse: bool) -> np.ndarray:
    """Return float4 times the group's scale, which is multiplied or divided by one for all."""
    values = FLOAT4[unpacked(codes.read(), 4)]
    whole_scale = outer.read().astype(np.float64).reshape(())
    scale = inner.read().astype(np.float64)
    scale_groups(values, scale / whole_scale if inverse else scale * whole_scale)
    return np.asarray(values)


def microscaled(codes: Named, scale: Named) -> np.ndarray:
    """Return float4, two in a byte, times the powers of two of their groups."""
    values = FLOAT4[unpacked(codes.read(), 4)]
    scale_groups(values, powers(scale.read()))
    return np.asarray(values)
