"""Files whose parts are intact but for one field: an operation of a pickle, a value of a header."""

import io
import json
import pickletools
import random
import struct
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from readers import fails
from safetensors.torch import save

SEEDS = 300


def pickled(protocol):
    """Return the members of an archive that holds tensors of every kind, and the name of its pickle."""
    sparse = torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,), check_invariants=True)
    quantized = torch.quantize_per_channel(
        torch.ones(2, 2), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
    )
    state = {"a.weight": torch.ones(3, 2), "s": sparse, "q": quantized, "n": np.ones((2, 3)), "l": [{1: "x"}]}
    buffer = io.BytesIO()
    torch.save(state, buffer, pickle_protocol=protocol)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def operations(data):
    """Return the bytes of each operation of a pickle."""
    at = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    return [data[begin:end] for begin, end in pairwise(at)]


def changed_operations(parts, chance):
    parts, i, j = list(parts), chance.randrange(len(parts)), chance.randrange(len(parts))
    way = chance.randrange(4)
    if way == 0:
        del parts[i]
    elif way == 1:
        parts.insert(i, parts[j])
    elif way == 2:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        numbers = [
            b"K\xff",
            b"M\xff\xff",
            b"J\xff\xff\xff\xff",
            b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
            b"N",
            b")",
            b"]",
            b"}",
        ]
        parts[i] = chance.choice(numbers)
    return b"".join(parts)


@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:TypedStorage", "ignore:Sparse invariant")
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_with_an_operation_changed_is_read_or_refused(tmp_path, protocol):
    members = pickled(protocol)
    (name,) = (name for name in members if name.endswith("/data.pkl"))
    parts, failures = operations(members[name]), 0
    for seed in range(SEEDS):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            for other, data in members.items():
                archive.writestr(other, changed_operations(parts, random.Random(seed)) if other == name else data)
        failures += fails(tmp_path / "a.pt")
    assert SEEDS // 2 < failures < SEEDS


def changed_value(value, chance):
    """Return JSON with one value somewhere in it replaced."""
    if isinstance(value, dict | list) and value and chance.random() < 0.9:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        return (
            {**value, key: changed_value(value[key], chance)}
            if isinstance(value, dict)
            else [*value[:key], changed_value(value[key], chance), *value[key + 1 :]]
        )
    return chance.choice(
        [0, 1, -1, 2**31, 2**63, 2**64, 1.5, 1e300, None, True, "", "F32", "F4", [], {}, [1, 2], "x" * 2000]
    )


def test_a_safetensors_header_with_a_value_changed_is_read_or_refused(tmp_path):
    tensors = {"l.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(2, 2)}
    tensors |= {"w_orig": torch.ones(2, 3), "weight_g": torch.ones(2, 1), "weight_v": torch.ones(2, 3)}
    data = save(tensors)
    (length,) = struct.unpack("<Q", data[:8])
    header, body, failures = json.loads(data[8 : 8 + length]), data[8 + length :], 0
    for seed in range(SEEDS):
        text = json.dumps(changed_value(header, random.Random(seed))).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        failures += fails(tmp_path / "a.safetensors")
    assert SEEDS // 2 < failures <= SEEDS


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
BAD = [
    GOOD.replace("(2, 2)", "(2**40, 2)"),
    GOOD.replace("(2, 2)", "(-1, 2)"),
    GOOD.replace("(2, 2)", "(3, 2)"),
    GOOD.replace("(2, 2)", "(True, 2.0)"),
    GOOD.replace("'<f4'", "'|O'"),
    GOOD.replace("'<f4'", "'<f999999'"),
    GOOD.replace("'<f4'", "[('a', '<f4', (2**31,))]"),
    GOOD.replace("False", "'x'"),
    "__import__('os').system('true')",
    "(" * 20000,
]


def npz(path, header, length=None):
    text = header.encode()
    start = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", start + text + np.ones(4, "<f4").tobytes())
    return path


@pytest.mark.parametrize("header", BAD)
def test_a_numpy_header_that_makes_no_sense_is_refused(tmp_path, header):
    assert not fails(npz(tmp_path / "good.npz", GOOD))
    assert fails(npz(tmp_path / "a.npz", header))


@pytest.mark.parametrize("length", [0, 1, 2**16, 2**31])
def test_a_numpy_header_of_another_length_is_refused(tmp_path, length):
    assert fails(npz(tmp_path / "a.npz", GOOD, length))
