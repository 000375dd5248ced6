"""Pickles and archives that mean to take all memory or time: one error of one line, or a quick answer."""

import io
import struct
import threading
import tracemalloc
import zipfile
import zlib
from concurrent.futures import Future

import numpy as np
import pytest
from readers import fails, refused
from samples import FILES

from opnorm.checkpoints import torch_pickle
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

SECONDS = 20  # that no small file may take, on a machine that does other things too
BYTES = 300 * 2**20


def archive(path, pickled):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/data/0", bytes(64))
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


STORAGE = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n%s" + text(b"cpu") + b"K\x10tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE % text(b"0") + b"K\x00K\x04\x85K\x01\x85\x89}tR"
NESTED = b")" + b"q\x000h\x00h\x00\x86" * 60  # t = (t, t), 60 times
DEEP = b")" + b"\x85" * 200_000
MODULE = b"\x80\x04%s" + text(b"x") + b"\x93."


def integers(count):
    """Return the keys of a table that all have one hash."""
    return b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"K\x00" for n in range(1, count))


PERSISTENT = b"\x80\x02(" + text(b"storage") + b"ctorch\nFloatStorage\n%s" + text(b"cpu") + b"K\x10tQ."
ITEMS = b"\x80\x02](" + b"K\x00" * 100_000 + b"eq\x00"
PAIRS = b"\x80\x02}(" + b"K\x00K\x00" * 100_000 + b"uq\x00"
ENCODE = b"c_codecs\nencode\nh\x00" + text(b"latin1") + b"\x86R"
HOSTILE = {
    "nested storage key": PERSISTENT % NESTED,
    "deep storage key": PERSISTENT % DEEP,
    "nested module": MODULE % NESTED,
    "deep module": MODULE % DEEP,
    "copies": ITEMS + b"cbuiltins\nlist\nh\x00\x85R" * 5000 + b".",
    "wrapped copies": ITEMS + b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nlist\nNh\x00\x85NtR" * 5000 + b".",
    "copied tables": PAIRS + b"ccollections\nOrderedDict\nh\x00\x85R" * 5000 + b".",
    "copied bytes": b"\x80\x02" + text(b"x" * 10**7) + b"q\x00" + ENCODE * 100 + b".",
    "many objects": b"\x80\x02" + b"}" * 5_000_000 + b".",
    "many tensors": b"\x80\x02}(K\x00" + TENSOR + b"q\x01" + b"K\x00h\x01" * 300_000 + b"u.",
    "long names": b"\x80\x02}" + text(b"x" * 10**6) + b"](" + TENSOR + b"q\x01" + b"h\x01" * 20_000 + b"es.",
    "huge memo": b"\x80\x02]" + b"p%d\n" % 10**4000 + b".",
}
HARMLESS = {
    "nested value": b"\x80\x02}" + text(b"w") + TENSOR + b"s" + text(b"t") + NESTED + b"s.",
    "nested key": b"\x80\x02}(" + text(b"w") + TENSOR + b"q\x01" + NESTED + b"h\x01u.",
    "deep key": b"\x80\x02}(" + text(b"w") + TENSOR + b"q\x01" + DEEP + b"h\x01u.",
    "colliding keys": b"\x80\x02}(" + integers(100_000) + text(b"w") + TENSOR + b"u.",
    "a table of itself": b"\x80\x02}(" + text(b"w") + TENSOR + b"u" + b"q\x00K\x00h\x00s.",
    "same names": b"\x80\x02}(" + text(b"w") + TENSOR + b"q\x01" + (text(b"w") + b"h\x01") * 20_000 + b"u.",
}


def within(limit, work):
    """Run `work` in a thread and return its result: a hang must not end the tests."""
    result = Future()

    def run():
        try:
            result.set_result(work())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=limit)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_is_a_bomb_is_refused(tmp_path, name):
    path = archive(tmp_path / "a.pt", HOSTILE[name])
    assert within(SECONDS, lambda: fails(path))


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(("copi", "wrapped", "long"))])
def test_a_pickle_that_is_a_bomb_takes_little_memory(tmp_path, name):
    path = archive(tmp_path / "a.pt", HOSTILE[name])
    tracemalloc.start()
    within(3 * SECONDS, lambda: fails(path))  # tracing makes it three times as slow
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES


@pytest.mark.parametrize("operation", [b"}", b"]", b"(", b"K\xff", b")\x85"])
def test_what_the_operations_of_a_pickle_may_make_fits_into_memory(operation):
    """Measured on a twelfth of them."""
    limit = torch_pickle._OPERATIONS // 12
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="no end"):
        torch_pickle.load(io.BytesIO(operation * limit), limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES / 12


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_values_beside_a_tensor_take_no_time(tmp_path, name):
    path = archive(tmp_path / "a.pt", HARMLESS[name])
    found = within(SECONDS, lambda: open_checkpoint(path).weights)
    assert found[0].name == "w"
    assert len({weight.name for weight in found}) == len(found)


def lying(path, name, size, template, method=zipfile.ZIP_DEFLATED):
    """Write an archive whose member `name` declares `size` bytes and inflates to 256 MiB."""
    template = zipfile.ZipFile(io.BytesIO(template))
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join([*(packed.compress(bytes(2**20)) for _ in range(256)), packed.flush()])
    with zipfile.ZipFile(path, "w") as file:
        for info in template.infolist():
            if info.filename != name:
                file.writestr(info.filename, template.read(info))
        bomb = zipfile.ZipInfo(name)
        bomb.compress_type = zipfile.ZIP_STORED
        file.writestr(bomb, data)
    raw = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        begin = raw.rindex(name.encode(), 0, raw.rindex(b"PK\x05\x06")) if at == 10 else raw.index(name.encode())
        begin = raw.rindex(signature, 0, begin)
        raw[begin + at : begin + at + 2] = struct.pack("<H", method)
        sizes = begin + (22 if at == 8 else 24)
        raw[sizes : sizes + 4] = struct.pack("<I", size)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("a.keras", "config.json"),
        ("a.keras", "model.weights.h5"),
        ("a.pt", "a/data.pkl"),
        ("a.pt", "a/byteorder"),
        ("a.npz", "kernel.npy"),
    ],
)
def test_a_member_that_inflates_beyond_its_declared_size_is_cut(tmp_path, name, member):
    template = FILES[name](tmp_path / name).read_bytes()
    path = lying(tmp_path / name, member, 7, template)
    tracemalloc.start()
    assert within(SECONDS, lambda: fails(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_thousands_of_members_are_read_in_linear_time(tmp_path):
    """Four times the arrays take four times the time, not sixteen; generous, for the sake of a busy machine."""
    np.savez(tmp_path / "a.npz", **{f"w{i}": np.eye(2) for i in range(4000)})
    found = within(SECONDS, lambda: [weight.read() for weight in open_checkpoint(tmp_path / "a.npz").weights])
    assert len(found) == 4000


def test_a_member_is_checked_by_its_sum(tmp_path):
    path = FILES["a.npz"](tmp_path / "a.npz")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x93NUMPY") + 128 + 5
    data[at] ^= 1
    path.write_bytes(data)
    refused(path, "CRC")
