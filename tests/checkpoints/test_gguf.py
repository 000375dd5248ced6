"""GGUF: shapes turned, blocks dequantized by their definition, names of llama.cpp, and headers that claim too much."""

import struct

import gguf
import numpy as np
import pytest
from bracketed import brackets, status, weights
from explicit import norm
from readers import fails, refused
from samples import gguf_file

from opnorm.checkpoints.opening import open_checkpoint

RNG = np.random.default_rng(0)
TYPES = gguf.GGMLQuantizationType


def blocks(kind, rows, columns):
    """Return random blocks of a type."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return RNG.integers(0, 256, (rows, columns // block * size)).astype(np.uint8)


def half(octets):
    return struct.unpack("<e", bytes(octets))[0]


def q8_0(octets):
    """Return 32 numbers of a block by the definition: a scale, then a signed byte each."""
    return [half(octets[:2]) * np.int8(code).item() for code in octets[2:].view(np.int8)]


def q4_0(octets):
    """The lower halves of 16 bytes are the first 16 numbers, the upper halves the others."""
    codes = [*(int(c) & 15 for c in octets[2:]), *(int(c) >> 4 for c in octets[2:])]
    return [half(octets[:2]) * (code - 8) for code in codes]


def q6_k(octets):
    """256 numbers of six bits: 128 bytes of lower halves, 64 of upper two bits, 16 scales of a byte, one for all."""
    low, high, scales, whole = octets[:128], octets[128:192], octets[192:208].view(np.int8), half(octets[208:])
    found = []
    for n in range(256):
        part, place = divmod(n, 128)
        quarter, i = divmod(place, 32)
        lower = int(low[64 * part + 32 * (quarter % 2) + i]) >> (4 * (quarter // 2)) & 15
        upper = int(high[32 * part + i]) >> (2 * quarter) & 3
        found.append(whole * int(scales[n // 16]) * (lower + 16 * upper - 32))
    return found


def mxfp4(octets):
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = [*(int(c) & 15 for c in octets[1:]), *(int(c) >> 4 for c in octets[1:])]
    return [2.0 ** (int(octets[0]) - 127) * (-1) ** (c >> 3) * table[c & 7] for c in codes]


DEFINITIONS = {"Q8_0": (q8_0, 0), "Q4_0": (q4_0, 0), "Q6_K": (q6_k, 208), "MXFP4": (mxfp4, None)}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_blocks_are_dequantized_by_their_definition(tmp_path, name):
    define, at = DEFINITIONS[name]
    size = gguf.GGML_QUANT_SIZES[TYPES[name]][1]
    data = blocks(TYPES[name], 6, 512)
    for one in data.reshape(-1, size):
        if at is None:
            one[0] = 125
        else:
            one[at : at + 2] = np.frombuffer(struct.pack("<e", RNG.random() / 8), np.uint8)
    weight = weights(gguf_file(tmp_path / "a.gguf", {"blk.0.ffn_up.weight": (data, TYPES[name])}))[
        "blk.0.ffn_up.weight"
    ]
    truth = np.array([define(one) for one in data.reshape(-1, size)]).reshape(6, 512)
    assert (weight.dtype, weight.shape, weight.geometry.assumed) == (name, (6, 512), False)
    np.testing.assert_allclose(weight.read(), truth, rtol=1e-6)
    bounds = brackets(weight)[0]
    assert bounds.lower <= norm(truth) * (1 + 1e-6)
    assert norm(truth) <= bounds.upper * (1 + 1e-6)


@pytest.mark.parametrize("kind", gguf.GGML_QUANT_SIZES)
def test_every_type_is_read_as_the_package_reads_it_or_has_a_reason(tmp_path, kind):
    plain = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}.get(kind.name)
    data = RNG.integers(0, 9, (4, 256)).astype(plain) if plain else np.zeros_like(blocks(kind, 4, 512))
    path = gguf_file(tmp_path / "a.gguf", {"x": data if plain else (data, kind)})
    (weight,) = open_checkpoint(path).weights
    (own,) = gguf.GGUFReader(path).tensors
    try:
        truth = data if plain else gguf.dequantize(own.data, kind)
    except NotImplementedError:
        assert status(weight) == "unknown"
        assert f"does not dequantize {kind.name}" in weight.geometry.reason
    else:
        assert weight.shape == truth.shape == tuple(own.shape[::-1])
        np.testing.assert_array_equal(weight.read().astype(truth.dtype), truth)


def test_rows_dequantized_in_parts_are_those_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("opnorm.checkpoints.gguf_file._AT_ONCE", 1000)
    array = RNG.standard_normal((3, 7, 256)).astype(np.float32)
    data = gguf.quantize(array, TYPES.Q8_0)
    (weight,) = open_checkpoint(gguf_file(tmp_path / "a.gguf", {"x": (data, TYPES.Q8_0)})).weights
    np.testing.assert_array_equal(weight.read(), gguf.dequantize(data, TYPES.Q8_0))


KINDS = [
    ("blk.3.attn_q.weight", (6, 4), "Linear", "bounded"),
    ("blk.3.ffn_down.weight", (6, 4), "Linear", "bounded"),
    ("v.blk.3.attn_out.weight", (6, 4), "Linear", "bounded"),
    ("output.weight", (6, 4), "Linear", "bounded"),
    ("token_embd.weight", (6, 4), "Embedding", "bounded"),
    ("blk.3.ffn_gate_exps.weight", (3, 6, 4), "experts", "bounded"),
    ("blk.3.attn_k_b.weight", (3, 6, 4), "attention", "bounded"),
    ("blk.3.ffn_gate_exps.bias", (3, 6), "bias", "skipped"),
    ("blk.3.attn_norm.weight", (6,), "unknown", "skipped"),
    ("rope_freqs.weight", (6,), "rope", "skipped"),
]


@pytest.mark.parametrize(("name", "shape", "kind", "expected"), KINDS)
def test_names_of_llama_cpp_say_what_a_tensor_does(tmp_path, name, shape, kind, expected):
    array = RNG.standard_normal(shape).astype(np.float32)
    weight = weights(gguf_file(tmp_path / "a.gguf", {name: array}))[name]
    assert (weight.shape, weight.geometry.kind, status(weight)) == (shape, kind, expected)
    if expected == "bounded":
        truth = max(norm(one.astype(float)) for one in array.reshape(-1, *shape[-2:]))
        (bounds,) = brackets(weight)
        assert bounds.lower <= truth * (1 + 1e-12)
        assert truth <= bounds.upper * (1 + 1e-12)


def test_names_of_other_programs_are_guesses(tmp_path):
    array = RNG.standard_normal((6, 4)).astype(np.float32)
    path = gguf_file(tmp_path / "a.gguf", {"blk.0.attn_q.weight": array}, "flux")
    assert weights(path)["blk.0.attn_q.weight"].geometry.assumed


@pytest.mark.parametrize(
    ("scale", "expected"), [(np.array([3], np.float32), "bounded"), (np.ones(6, np.float32), "unknown")]
)
def test_a_scale_beside_a_kernel_is_a_part_of_it(tmp_path, scale, expected):
    array = RNG.standard_normal((6, 4)).astype(np.float32)
    found = weights(gguf_file(tmp_path / "a.gguf", {"blk.0.ffn_up.weight": array, "blk.0.ffn_up.scale": scale}))
    assert [status(one) for one in found.values()] == [expected, "skipped"]
    if expected == "bounded":
        assert brackets(found["blk.0.ffn_up.weight"])[0].upper == pytest.approx(3 * norm(array.astype(float)), rel=1e-5)


def split(folder, count=3, names=("a.weight", "b.weight", "c.weight")):
    """Write a model in files; the first is what is read."""
    for i, called in enumerate(names):
        path = folder / f"m-{i + 1:05}-of-{count:05}.gguf"
        gguf_file(path, {called: np.full((2, 32), i + 1, np.float32)}, split__count=count)
    return folder / f"m-00001-of-{count:05}.gguf"


def test_the_files_of_a_model_are_read_with_the_first(tmp_path):
    found = open_checkpoint(split(tmp_path))
    assert [(weight.name, weight.read()[0, 0]) for weight in found.weights] == [
        ("a.weight", 1),
        ("b.weight", 2),
        ("c.weight", 3),
    ]
    assert found.notes == ()
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    found = open_checkpoint(tmp_path / "m-00001-of-00003.gguf")
    assert [weight.name for weight in found.weights] == ["a.weight", "c.weight"]
    assert found.notes == ("1 of the 3 files of its model are not beside it",)


@pytest.mark.parametrize("name", ["m-00002-of-00003.gguf", "other.gguf", "m-00001-of-00004.gguf"])
def test_a_part_of_a_model_says_so(tmp_path, name):
    split(tmp_path)
    gguf_file(tmp_path / name, split__count=3)
    assert "one of 3 files" in open_checkpoint(tmp_path / name).notes[0]


def test_a_tensor_in_two_files_is_refused(tmp_path):
    refused(split(tmp_path, names=("a.weight", "b.weight", "a.weight")), "a tensor twice")


@pytest.mark.parametrize("kind", ["imatrix", "something"])
def test_statistics_are_no_weights(tmp_path, kind):
    found = weights(gguf_file(tmp_path / "a.gguf", general__type=kind))
    assert {status(weight) for weight in found.values()} == {"unknown"}


def header(*parts, tensors=0, keys=0, version=3):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys) + b"".join(parts)


def name(value):
    return struct.pack("<Q", len(value)) + value


def tensor(shape=(4, 4), kind=0, offset=0, called=b"x"):
    return name(called) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


KEY = name(b"k")
HEADERS = [
    (header(version=1), "version of GGUF is 1"),
    (header(version=3 << 24), "big-endian"),
    (header(tensors=2**40), "more than 65536 tensors"),
    (header(keys=2**40), "settings, more than"),
    (header(tensors=1), "header ends at"),
    (header(struct.pack("<Q", 2**60), keys=1), "has 1152921504606846976 bytes"),
    (header(KEY, struct.pack("<I", 77), keys=1), "of the type 77"),
    (header(KEY, struct.pack("<IQ", 8, 2**60), keys=1), "takes 1152921504606846976 bytes"),
    (header(KEY, struct.pack("<IIQ", 9, 0, 2**60), keys=1), "takes 1152921504606846976 bytes"),
    (header(KEY, struct.pack("<IIQ", 9, 8, 2**60), keys=1), "texts, more than"),
    (header(KEY, struct.pack("<IIQ", 9, 9, 2), keys=1), "array of the type 9"),
    (header(KEY, struct.pack("<IB", 0, 1), KEY, struct.pack("<IB", 0, 1), keys=2), "a setting twice"),
    (header(name(b"general.alignment"), struct.pack("<II", 4, 3), keys=1), "alignment is 3"),
    (header(name(b"general.alignment"), struct.pack("<II", 4, 0), keys=1), "alignment is 0"),
    (header(tensor((1,) * 5), tensors=1), "has 5 axes"),
    (header(tensor((2**62, 2**62)), tensors=1), "takes"),
    (header(tensor((2**63, 1)), tensors=1), "shape"),
    (header(tensor((33, 4), 2), tensors=1), "blocks of 32"),
    (header(tensor(), tensors=1), "takes 64 bytes"),
    (header(tensor(offset=2**60), tensors=1), "takes 64 bytes"),
    (header(tensor(), tensor(), tensors=2), "a tensor twice"),
    (header(tensor(), tensor(called=b"y", offset=32), bytes(500), tensors=2), "where another tensor does"),
    (header(tensor(called=b"\xff"), tensors=1), "damaged"),
]


@pytest.mark.parametrize(("data", "match"), HEADERS)
def test_headers_that_claim_too_much_are_refused(tmp_path, data, match):
    (tmp_path / "a.gguf").write_bytes(data)
    refused(tmp_path / "a.gguf", match)


def test_a_type_that_the_package_does_not_know_has_a_row_with_the_reason(tmp_path):
    (tmp_path / "a.gguf").write_bytes(header(tensor(kind=999), tensors=1))
    (weight,) = open_checkpoint(tmp_path / "a.gguf").weights
    assert status(weight) == "unknown"
    assert "type 999" in weight.geometry.reason


def test_nothing_but_its_own_error_escapes_from_damaged_blocks_and_headers(tmp_path):
    arrays = {f"blk.{int(kind)}.attn_q.weight": (blocks(kind, 2, 256), kind) for kind in gguf.quants._type_traits}
    data = gguf_file(tmp_path / "a.gguf", arrays).read_bytes()
    for seed in range(60):
        chance, broken = np.random.default_rng(seed), bytearray(data)
        for at in chance.integers(0, 3000, chance.choice([1, 4, 30])):
            broken[at] = chance.integers(256)
        (tmp_path / "a.gguf").write_bytes(broken)
        fails(tmp_path / "a.gguf")
