"""MXFP4 of gpt-oss, MLX, Quanto and HQQ: kernels of codes whose scales stand beside them."""

from math import prod

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.compressed_tensors import microscaled
from opnorm.checkpoints.files import guarded
from opnorm.checkpoints.guesses import FLOATS, Named
from opnorm.checkpoints.made import File, Made, misfit, whole
from opnorm.checkpoints.packed import scale_groups, unpacked
from opnorm.checkpoints.quantization_settings import Settings, whole_number

_BLOCK = 16  # bytes of 32 codes of MXFP4
_WORD = 32
_MLX_BITS = (2, 3, 4, 5, 6, 8)


def find_blocks(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what `X_blocks` (..., out, groups, 16) and `X_scales` (..., out, groups) are: MXFP4 of gpt-oss."""
    name = codes.name.removesuffix("_blocks")
    scales = file.tensors.get(f"{name}_scales")
    if name == codes.name or scales is None:
        return {}
    fits = codes.dtype == scales.dtype == "uint8" and codes.shape == (*scales.shape, _BLOCK) and len(codes.shape) > 2
    if not fits:
        return misfit(
            [codes, scales], "MXFP4", f"blocks {list(codes.shape)} and scales {list(scales.shape)} do not fit"
        )
    shape = (*scales.shape[:-1], 2 * _BLOCK * scales.shape[-1])
    read = guarded(file.path, _blocks, codes, scales, shape)
    return whole(file, [codes, scales], Named(name, shape, "mxfp4", read), "MXFP4 times powers of 2 for 32 inputs each")


def _blocks(codes: Named, scales: Named, shape: tuple[int, ...]) -> np.ndarray:
    flat = codes._replace(read=lambda: codes.read().reshape(*shape[:-1], -1))
    return microscaled(flat, scales)


def find_mlx(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what `X.weight`, `X.scales` and `X.biases` are by the bits and the size of groups in config.json."""
    stem = codes.name.removesuffix("weight")
    scales, biases = (file.tensors.get(stem + end) for end in ("scales", "biases"))
    if stem == codes.name or scales is None or codes.dtype != "uint32":
        return {}
    members = [codes, scales, *([biases] if biases is not None else [])]
    own = settings.get(stem.removesuffix("."))
    said = {**settings, **own} if isinstance(own, dict) else settings
    bits, size = whole_number(said, "bits"), whole_number(said, "group_size")
    if said.get("mode", "affine") != "affine":
        return misfit(members, "MLX", f"in the mode {str(said['mode'])[:20]!r}, which is not read")
    if bits not in _MLX_BITS or size is None:
        return misfit(members, "MLX", "no config.json beside it says with how many bits, in groups of which size")
    shape = (*codes.shape[:-1], codes.shape[-1] * _WORD // bits)
    fits = codes.shape[-1] * _WORD == shape[-1] * bits and scales.shape == (*shape[:-1], shape[-1] / size)
    if not fits or biases is None or biases.shape != scales.shape or not {scales.dtype, biases.dtype} <= FLOATS:
        return misfit(
            members, "MLX", f"codes {list(codes.shape)} and scales {list(scales.shape)} do not fit {bits} bits"
        )
    read = guarded(file.path, _affine, codes, scales, biases, bits)
    weight = Named(codes.name, shape, f"uint{bits}", read)
    how = f"{bits} bits, scale code + bias, as MLX stores it"
    made = whole(file, members, weight, how)
    if len(shape) == 3:  # of its quantized layers those of experts and of heads have three axes, and no others
        stack = g.stacked("experts", f"matrix (out, in) for each expert or head: the largest of their norms; {how}")
        made[codes.name] = made[codes.name]._replace(geometry=stack)
    return made


def _affine(codes: Named, scales: Named, biases: Named, bits: int) -> np.ndarray:
    values = unpacked(codes.read(), bits).astype(np.float64)
    scale_groups(values, *(one.read().astype(np.float64) for one in (scales, biases)))
    return values


def find_quanto(file: File, codes: Named, settings: Settings) -> dict[str, Made]:
    """Return what `X.weight._data` and `X.weight._scale` are: int8 or float8 with a scale for each row or column."""
    name = codes.name.removesuffix("._data")
    scale = file.tensors.get(f"{name}._scale")
    byte = codes.dtype == "int8" or codes.dtype.startswith("float8")
    if name == codes.name or scale is None or f"{name}._shift" in file.tensors or not byte:
        return {}
    along = [n for n, count in zip(scale.shape, codes.shape, strict=False) if n not in (1, count)]
    fits = prod(scale.shape) == 1 or (len(scale.shape) == len(codes.shape) and not along)
    if not fits or scale.dtype not in FLOATS:
        return misfit([codes, scale], "Quanto", f"codes {list(codes.shape)} and scale {list(scale.shape)} do not fit")
    weight = Named(name, codes.shape, codes.dtype, guarded(file.path, _product, codes, scale))
    return whole(file, [codes, scale], weight, f"{codes.dtype} times its scale, as Quanto stores it")


def _product(codes: Named, scale: Named) -> np.ndarray:
    factors = scale.read().astype(np.float64)
    return codes.read().astype(np.float64) * (factors.reshape(()) if factors.size == 1 else factors)
