"""HQQ: codes in slices that share bytes or words, with a scale and a zero point for each group of inputs."""

from math import prod
from typing import NamedTuple

import numpy as np

from opnorm.checkpoints.files import guarded, require
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.made import File, Made, misfit, whole
from opnorm.checkpoints.quantization_settings import Settings
from opnorm.checkpoints.records import CheckpointError

_WHO = "HQQ"
_PACKINGS = {  # the bits of a code, how many share an integer, and its dtype
    b"8bit_u8": (8, 1, "uint8"),
    b"4bit_u8": (4, 2, "uint8"),
    b"3bit_32": (3, 10, "int32"),
    b"2bit_u8": (2, 4, "uint8"),
    b"1bit_u8": (1, 8, "uint8"),
}
_PARTS = (
    "scale", "zero", "shape", "axis", "nbits", "group_size", "packing", "view_as_float", "unpack_view_dtype",
    "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config",
    "channel_wise", "optimize", "round_zero", "meta",
)  # fmt: skip
_TEXT = 64  # bytes of the name of a packing


class _Form(NamedTuple):
    shape: tuple[int, ...]  # of the weight
    grid: tuple[int, int]  # of its codes: the groups lie along one of the two axes
    bits: int
    each: int


def find_hqq(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what the tensors of a layer are, {} where `codes` are no layer's."""
    stem = codes.name.removesuffix("W_q")
    if stem == codes.name or f"{stem}scale" not in file.tensors:
        return {}
    parts = {part: file.tensors[stem + part] for part in _PARTS if stem + part in file.tensors}
    members = [codes, *parts.values()]
    try:
        form = _form(codes, parts)
    except (CheckpointError, LookupError) as error:
        return misfit(members, _WHO, f"its tensors do not fit each other ({error})")
    read = guarded(file.path, _values, codes, parts["scale"], parts["zero"], form)
    weight = Named(f"{stem}weight", form.shape, f"uint{form.bits}", read)
    return whole(file, members, weight, f"{form.bits} bits, scale (code - zero point), as {_WHO} stores it")


def _form(codes: Named, parts: dict[str, Named]) -> _Form:
    """Return how the codes are stored, or raise: the shapes must fit each other and what is said of them."""
    for said in ("view_as_float", "quant_scale", "quant_zero"):
        require(said not in parts or not _numbers(parts[said])[0], f"{said} is set")
    packing = parts["packing"]
    require(packing.dtype == "uint8" and prod(packing.shape) <= _TEXT, "the packing has no name")
    bits, each, dtype = _PACKINGS[packing.read().tobytes()]
    shape, (axis,) = tuple(_numbers(parts["shape"])), _numbers(parts["axis"])
    require(codes.dtype == dtype and len(codes.shape) == 2 and min(*codes.shape, *shape) > 0, f"codes of {codes.dtype}")
    scale, zero = parts["scale"], parts["zero"]
    require(axis in (0, 1) and scale.shape == zero.shape and {scale.dtype, zero.dtype} <= FLOATS, "the scales")
    rows, columns = codes.shape[0] * each, codes.shape[1]
    if bits == 3:  # the last slice is filled up
        rows = prod(shape) // columns
    fits = prod(shape) == rows * columns and -(-rows // each) == codes.shape[0]
    require(fits and scale.shape == ((rows, 1) if axis else (1, columns)), f"scales {list(scale.shape)}")
    return _Form(shape, (rows, columns), bits, each)


def _numbers(tensor: Named) -> list[int]:
    """Return the few integers of a tensor."""
    require("int" in tensor.dtype and 0 < prod(tensor.shape) <= 8, f"{tensor.name!r} holds no few integers")
    return [int(n) for n in np.ravel(tensor.read())]


def _values(codes: Named, scale: Named, zero: Named, form: _Form) -> np.ndarray:
    """Return the numbers; the first slice of rows has the highest bits that are used."""
    stored = codes.read()
    shifts = [form.bits * (form.each - 1 - i) for i in range(form.each)]
    slices = [(stored >> stored.dtype.type(shift)) & stored.dtype.type(2**form.bits - 1) for shift in shifts]
    values = np.concatenate(slices)[: form.grid[0]].astype(np.float64)
    values -= zero.read().astype(np.float64)
    values *= scale.read().astype(np.float64)
    return np.asarray(values.reshape(form.shape))
