"""`.gguf` files: llama.cpp's tensors by the names it gives them, quantized blocks dequantized by the `gguf` package."""

import re
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.files import byte_size, check_count, extra, guarded, require
from opnorm.checkpoints.flat import Entry, flat_weights, unread
from opnorm.checkpoints.gguf_header import Place, gguf_header
from opnorm.checkpoints.guesses import Named
from opnorm.checkpoints.made import part
from opnorm.checkpoints.records import Checkpoint, Geometry, Weight

_PLAIN = {  # by GGML's type: what NumPy or ml_dtypes call it
    "F32": "float32", "F16": "float16", "F64": "float64", "BF16": "bfloat16", "I8": "int8", "I16": "int16",
    "I32": "int32", "I64": "int64",
}  # fmt: skip
_LAYERS = (  # what llama.cpp multiplies vectors with
    r"attn_(q|k|v|qkv|out|output|o|gate)|attn_(q_a|q_b|kv_b|kv_a_mqa)|cross_attn_(q|k|v|o)|"
    r"ffn_(gate|up|down)(_shexp|_chexp|_inp|_inp_shexp)?|ssm_(in|x|dt|out)"
)
_MATRIX = re.compile(rf"(^output|(^|\.)blk\.\d+\.({_LAYERS}))\.weight")
_EXPERTS = re.compile(r"(^|\.)blk\.\d+\.ffn_(gate|up|down|gate_up)_c?h?exps\.weight")
_HEADS = re.compile(r"(^|\.)blk\.\d+\.attn_[kv]_b\.weight")
_TABLE = re.compile(r"(token_embd|token_types|position_embd|per_layer_token_embd)\.weight")
_FREQUENCIES = re.compile(r"(.+\.)?rope_(freqs|factors_(long|short))\.weight")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")  # llama.cpp's gguf-split
_FILES = 1024  # of a model
_AT_ONCE = 2**22  # numbers dequantized at a time
_KINDS = ("model", "adapter", "mmproj")  # of files; others hold statistics
_OTHER = "its file says that it holds {!r}, and what that does to it is not known"


class Form(NamedTuple):
    """How GGML stores the numbers of a type."""

    name: str
    block: int  # numbers
    size: int  # bytes of a block
    read: bool  # whether it can be read


Forms = Mapping[int, Form]


def read_gguf(path: Path) -> Checkpoint:
    """Return the checkpoint of a GGUF file; with the first file of a model that is split, of the others beside it too.

    The shapes are turned, so that the output's axis comes first. llama.cpp's order of the rows of `attn_q` and `attn_k`
    is not undone: it changes no norm.
    """
    first = gguf_header(path)
    others, notes = _others(path, first.settings.get("split.count"))
    headers = {path: first, **{file: gguf_header(file) for file in others}}
    forms = _forms({place.kind for header in headers.values() for place in header.places})
    for file, header in headers.items():
        _check_places(header.places, forms, file.stat().st_size)
    stored = [(file, place) for file, header in headers.items() for place in header.places]
    check_count(len(stored))
    require(len({place.name for _, place in stored}) == len(stored), "its files have a tensor twice")
    weights = flat_weights(path, [_entry(file, place, forms) for file, place in stored])
    known = first.settings.get("general.architecture") in extra("gguf").MODEL_ARCH_NAMES.values()
    pairs = zip(weights, (place for _, place in stored), strict=True)
    found = tuple(_weight(weight, place, forms, first.settings, known=known) for weight, place in pairs)
    return Checkpoint("gguf", tuple(_rescaled(path, found)), notes=notes)


def _others(path: Path, count: Any) -> tuple[list[Path], tuple[str, ...]]:
    """Return the further files of a model whose first one this is, and a note where some are not read."""
    if type(count) is not int or count < 2:
        return [], ()
    named = _SPLIT.fullmatch(path.name)
    if named is None or int(named["number"]) != 1 or int(named["count"]) != count or count > _FILES:
        return [], (f"it is one of {count} files of its model, and not called as the first: the others are not read",)
    files = [path.with_name(f"{named['stem']}-{i:05}-of-{count:05}.gguf") for i in range(2, count + 1)]
    there = [file for file in files if file.is_file()]
    missing = len(files) - len(there)
    return there, (f"{missing} of the {count} files of its model are not beside it",) if missing else ()


def _forms(kinds: Collection[int]) -> dict[int, Form]:
    """Return those of the types that the package knows."""
    gguf = extra("gguf")
    known = {kind: size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind in kinds}
    return {int(kind): Form(kind.name, block, size, _is_read(kind, size)) for kind, (block, size) in known.items()}


def _is_read(kind: Any, size: int) -> bool:
    """Return whether the package dequantizes a type: it says so of a block of zeros."""
    if kind.name in _PLAIN:
        return True
    try:
        extra("gguf").dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _check_places(places: Collection[Place], forms: Forms, size: int) -> None:
    """Raise unless the tensors lie in the file, one after another."""
    end = 0
    for place in sorted((place for place in places if place.kind in forms), key=lambda place: place.offset):
        stored = _stored(place, forms[place.kind])
        require(place.offset >= end, f"{place.name!r} lies where another tensor does")
        end = place.offset + stored
        require(end <= size, f"{place.name!r} takes {stored} bytes at {place.offset}, and the file has {size}")


def _stored(place: Place, form: Form) -> int:
    """Return the bytes of a tensor, whose rows must be whole blocks."""
    row = place.shape[-1] if place.shape else 1
    require(row % form.block == 0, f"{place.name!r} has rows of {row} numbers, and its type has blocks of {form.block}")
    return byte_size(place.shape, 1) // form.block * form.size


def _entry(path: Path, place: Place, forms: Forms) -> Entry:
    """Return a tensor as its numbers are once they are read: those of quantized blocks in float32."""
    form = forms.get(place.kind)
    if form is None:
        return unread(path, place.name, place.shape, f"type {place.kind}", f"it has the type {place.kind} of GGML's")
    if not form.read:
        return unread(path, place.name, place.shape, form.name, f"the gguf package does not dequantize {form.name}")
    dtype = _PLAIN.get(form.name, "float32")
    read = _plain if form.name in _PLAIN else _dequantized
    return Entry(Named(place.name, place.shape, dtype, guarded(path, read, path, place, dtype, _stored(place, form))))


def _bytes(path: Path, place: Place, stored: int) -> bytes:
    with path.open("rb") as file:
        file.seek(place.offset)
        data = file.read(stored)
    require(len(data) == stored, "the file became shorter")
    return data


def _plain(path: Path, place: Place, dtype: str, stored: int) -> np.ndarray:
    kind = extra("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    return np.frombuffer(_bytes(path, place, stored), kind).reshape(place.shape)


def _dequantized(path: Path, place: Place, dtype: str, stored: int) -> np.ndarray:
    gguf = extra("gguf")
    kind, rows = gguf.GGMLQuantizationType(place.kind), prod(place.shape[:-1])
    blocks = np.frombuffer(_bytes(path, place, stored), np.uint8).reshape(rows, -1)
    values = np.empty((rows, place.shape[-1]), dtype)
    step = max(1, _AT_ONCE // place.shape[-1])  # the package holds all that it is given twice
    with np.errstate(all="ignore"):  # a scale that is not finite is found by whoever uses the numbers
        for start in range(0, rows, step):
            values[start : start + step] = gguf.dequantize(blocks[start : start + step], kind)
    return values.reshape(place.shape)


def _weight(weight: Weight, place: Place, forms: Forms, settings: Mapping[str, Any], *, known: bool) -> Weight:
    """Return a tensor with its dtype as stored, and with what its name says where the names are llama.cpp's."""
    if place.kind in forms:
        name = forms[place.kind].name
        weight = weight._replace(dtype=_PLAIN.get(name, name))
    kind = settings.get("general.type", "model")
    if kind not in _KINDS:
        return weight._replace(geometry=g.unknown("unknown", _OTHER.format(kind)))
    found = _by_name(weight) if known else None
    return weight._replace(geometry=found) if found and not weight.geometry.unknown else weight


def _by_name(weight: Weight) -> Geometry | None:
    """Return what llama.cpp does with a tensor of that name, None where the name alone does not tell."""
    name, axes = weight.name, len(weight.shape)
    if name.endswith(".bias"):
        return g.nothing("bias", g.BIAS)
    if _FREQUENCIES.fullmatch(name):
        return g.nothing("rope", "factors of the frequencies of positions")
    if axes == 2 and _MATRIX.fullmatch(name):
        return g.rows("Linear")
    if axes == 2 and _TABLE.fullmatch(name):
        return g.columns("Embedding", "matrix (tokens, features)")
    if axes == 3 and _EXPERTS.fullmatch(name):
        return g.stacked("experts", "matrix (out, in) for each expert: the largest of their norms")
    if axes == 3 and _HEADS.fullmatch(name):
        return g.stacked("attention", "matrix (out, in) for each head: the largest of their norms")
    return None


def _rescaled(path: Path, weights: Collection[Weight]) -> list[Weight]:
    """Return the weights; where llama.cpp multiplies a product by `X.scale`, that of `X.weight` includes it."""
    names = {weight.name for weight in weights}
    scales = {weight.name: weight for weight in weights if weight.name.endswith(".scale")}
    found = []
    for weight in weights:
        scale = scales.get(weight.name.removesuffix("weight") + "scale") if weight.name.endswith(".weight") else None
        whole = weight.name.removesuffix("scale") + "weight"
        if scale is not None and weight.geometry.operator is not None:
            weight = _times(path, weight, scale)
        elif weight.name in scales and whole in names:
            weight = weight._replace(geometry=part(whole).geometry)
        found.append(weight)
    return found


def _times(path: Path, weight: Weight, scale: Weight) -> Weight:
    if prod(scale.shape) != 1:
        reason = f"how {scale.name!r} of the shape {list(scale.shape)} scales it is not known"
        return weight._replace(geometry=g.unknown(weight.geometry.kind, reason))
    text = f"{weight.geometry.text}; times {scale.name!r}"
    return weight._replace(read=guarded(path, _product, weight, scale), geometry=weight.geometry._replace(text=text))


def _product(weight: Weight, scale: Weight) -> np.ndarray:
    return weight.read().astype(np.float64) * scale.read().astype(np.float64).reshape(())
