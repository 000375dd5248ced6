"""GPTQ and AWQ: integers packed in words of 32 bits, with a scale and a zero point for each group of inputs."""

from typing import NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import guarded, require
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.made import File, Made, misfit, whole
from opnorm.checkpoints.packed import apply_groups, unpacked
from opnorm.checkpoints.quantization_settings import Settings, whole_number
from opnorm.checks import Array

_WORD = 32
_GPTQ_BITS = (2, 3, 4, 8)
_AWQ_BITS = 4
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # which nibble of a word has the code of its first, second, ... output
_FORMS = {"gptq": True, "gptq_v2": False}  # whether 1 is added to the zero points


class Packed(NamedTuple):
    """The tensors of a layer."""

    codes: Named
    scales: Named  # (groups, out)
    zeros: Named
    places: Named | None  # the group of each input
    size: int = 0  # inputs of a group where there is no index


def find_gptq(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what the tensors of a layer of GPTQ or AWQ are, {} where `codes` are no layer's."""
    stem = codes.name.removesuffix(".qweight")
    parts = [file.tensors.get(f"{stem}.{end}") for end in ("scales", "qzeros", "g_idx")]
    scales, zeros, places = parts
    if stem == codes.name or scales is None:
        return {}
    members = [codes, *(one for one in parts if one is not None)]
    if zeros is None:
        return misfit(members, "GPTQ or AWQ", "its zero points are not there")
    packed = Packed(codes, scales, zeros, places)
    fits = len(codes.shape) == len(scales.shape) == len(zeros.shape) == 2 and codes.dtype == zeros.dtype == "int32"
    method = settings.get("quant_method")
    if fits and codes.shape[1] == scales.shape[1] and method != "awq":
        return _gptq(file, packed, members, settings)
    if fits and method != "gptq" and codes.shape[1] * _WORD == scales.shape[1] * _AWQ_BITS:
        return _awq(file, packed, members, settings)
    return misfit(members, "GPTQ or AWQ", f"codes {list(codes.shape)} and scales {list(scales.shape)} do not fit")


def _gptq(file: File, packed: Packed, members: list[Named], settings: Settings) -> dict[str, Made]:
    """Return y = x @ (s (q - z - 1)), in the second version of the format s (q - z), codes packed along the inputs."""
    outputs, groups = packed.scales.shape[1], packed.scales.shape[0]
    bits = packed.zeros.shape[1] * _WORD // outputs if outputs else 0
    inputs = packed.codes.shape[0] * _WORD // bits if bits else 0
    packs = packed.zeros.shape == (groups, outputs * bits // _WORD) and packed.codes.shape[0] * _WORD == inputs * bits
    packed, reason = _sized(packed, inputs, settings)
    if (
        bits not in _GPTQ_BITS
        or not packs
        or outputs * bits % _WORD
        or whole_number(settings, "bits") not in (None, bits)
    ):
        reason = "the shapes of its codes, scales and zero points, and its settings, fit no number of bits"
    if reason:
        return misfit(members, "GPTQ", reason)
    shift = _shift(settings)
    read = guarded(file.path, _gptq_values, packed, bits, shift is not False)
    weight = Named(_name(packed), (outputs, inputs), f"uint{bits}", read)
    text = f"{bits} bits, scale (code - zero point{'' if shift is False else ' - 1'}), as GPTQ stores it"
    made = whole(file, members, weight, text)
    return made if shift is not None else _either(file, packed, inputs, made)


def _shift(settings: Settings) -> bool | None:
    """Return whether 1 is added to the stored zero points, None where nothing tells the version of the format."""
    form, method = settings.get("checkpoint_format"), settings.get("quant_method", "gptq")
    if form is None and settings and method == "gptq" and "bits" in settings:
        form = "gptq"  # which is the libraries' default, too
    return _FORMS.get(form) if isinstance(form, str) else None


def _either(file: File, packed: Packed, inputs: int, made: dict[str, Made]) -> dict[str, Made]:
    """Return the layer with the reading of the second version beside that of the first."""
    main = made[packed.codes.name]

    def less(values: Array) -> Array:
        return values + guarded(file.path, _scale, packed, inputs)().T

    second = g.scaled(main.geometry, less, "without the 1, as the second version of the format has it")
    readings = (*main.geometry.readings, second._replace(readings=()), *second.readings)
    geometry = main.geometry._replace(assumed=True, readings=readings)
    return {**made, packed.codes.name: main._replace(geometry=geometry)}


def _awq(file: File, packed: Packed, members: list[Named], settings: Settings) -> dict[str, Made]:
    """Return y = x @ (s (q - z)), codes packed along the outputs in an order of their own."""
    (inputs, _), (groups, outputs) = packed.codes.shape, packed.scales.shape
    packed, reason = _sized(packed, inputs, settings)
    if whole_number(settings, "bits", "w_bit") not in (None, _AWQ_BITS):
        reason = "of another number of bits than 4"
    if packed.zeros.shape != (groups, packed.codes.shape[1]):
        reason = f"zero points {list(packed.zeros.shape)} and scales {list(packed.scales.shape)} do not fit"
    if packed.places is not None or str(settings.get("version", "gemm")).lower() != "gemm":
        reason = "in another form than that for matrix products, which is the one that is read"
    if reason:
        return misfit(members, "AWQ", reason)
    read = guarded(file.path, _awq_values, packed)
    weight = Named(_name(packed), (outputs, inputs), f"uint{_AWQ_BITS}", read)
    return whole(file, members, weight, "4 bits, scale (code - zero point), as AWQ stores it")


def _sized(packed: Packed, inputs: int, settings: Settings) -> tuple[Packed, str]:
    """Return the tensors with the size of a group, and why the groups do not fit the inputs, or ""."""
    groups, given = packed.scales.shape[0], whole_number(settings, "group_size", "q_group_size")
    if packed.places is not None and packed.places.shape != (inputs,):
        return packed, f"its g_idx has the shape {list(packed.places.shape)} for {inputs} inputs"
    if packed.places is None and settings.get("desc_act"):
        return packed, "its g_idx is not there"
    size = given or (inputs // groups if groups and inputs % groups == 0 else 0)
    fits = size and -(-inputs // size) == groups
    return packed._replace(size=size), "" if fits else f"{groups} groups do not fit {inputs} inputs"


def _name(packed: Packed) -> str:
    return packed.codes.name.removesuffix("qweight") + "weight"


def _gptq_values(packed: Packed, bits: int, shifted: bool) -> np.ndarray:
    codes = unpacked(packed.codes.read().T, bits)  # (out, in)
    zeros = unpacked(packed.zeros.read(), bits).astype(np.float64)
    if shifted:
        clear = zeros.max(initial=0) < 2**bits - 1
        require(bool(clear), "a zero point of it is the largest code, and libraries differ on what 1 more is")
        zeros += 1
    return _multiplied(packed, codes, zeros)


def _awq_values(packed: Packed) -> np.ndarray:
    codes, zeros = (_in_order(unpacked(one.read(), _AWQ_BITS)) for one in (packed.codes, packed.zeros))
    return _multiplied(packed, codes.T, zeros.astype(np.float64))


def _multiplied(packed: Packed, codes: np.ndarray, zeros: Array) -> np.ndarray:
    """Return s (q - z) of codes (out, in), and of zero points and scales (groups, out)."""
    values = codes.astype(np.float64, order="C")
    scales = packed.scales.read().astype(np.float64)
    apply_groups(values, zeros.T, scales.T, _places(packed, values.shape[1]))
    return values


def _in_order(codes: np.ndarray) -> np.ndarray:
    words = codes.reshape(len(codes), -1, len(_AWQ_ORDER))
    return words[:, :, _AWQ_ORDER].reshape(codes.shape)


def _places(packed: Packed, inputs: int) -> np.ndarray:
    """Return the group of each input."""
    groups = packed.scales.shape[0]
    if packed.places is None:
        return np.arange(inputs) // packed.size
    index = packed.places.read()
    proper = index.dtype.kind in "iu" and np.array_equal(np.unique(index), np.arange(groups))
    require(bool(proper), "its g_idx names other groups than there are scales for")
    return index


def _scale(packed: Packed, inputs: int) -> Array:
    return np.asarray(packed.scales.read().astype(np.float64)[_places(packed, inputs)])
