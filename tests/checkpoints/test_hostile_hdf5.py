"""HDF5 files that swell, lie about their chunks, or shrink while they are read."""

import os
import struct
import subprocess
import sys
import zlib
from functools import cache

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z
from readers import refused
from samples import MATRIX, keras_file

import opnorm
from opnorm.checkpoints.hdf5_attributes import opened
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError


@cache
def deflated(times):
    """Return 256 MiB of zeros deflated once, to a thousandth, or twice."""
    if times == 2:
        return zlib.compress(deflated(1), 9)
    stream = zlib.compressobj(9)
    return b"".join(stream.compress(bytes(2**20)) for _ in range(256)) + stream.flush()


def chunked(path, filters, data, shape=(64, 64), mask=0, name="w"):
    """Write a file with a good matrix, and one of a single chunk of the given stored bytes."""
    with h5py.File(path, "w") as file:
        file["good"] = MATRIX
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_chunk(shape)
        for code, values in filters:
            plan.set_filter(code, h5z.FLAG_OPTIONAL, values)
        dataset = h5d.create(file.id, name.encode(), h5t.IEEE_F32LE, h5s.create_simple(shape), plan)
        dataset.write_direct_chunk((0, 0), data, mask)
    return path


DEFLATE, SHUFFLE, FLETCHER, SZIP, NBIT, SCALE, LZF = (
    (1, (9,)), (2, ()), (3, ()), (4, (141, 32)), (5, ()), (6, (2, 0)), (32000, (4, 261, 2**14)),
)  # fmt: skip

BOMBS = {
    "two deflates": ([DEFLATE, DEFLATE], deflated(2), (64, 64), "2 compression filters"),
    "one deflate": ([DEFLATE], deflated(1), (64, 64), "claims .* bytes|inflates to more"),
    "a wide chunk": ([DEFLATE], deflated(1), (1024, 1024), "inflates to more than it says"),
    "deflate before shuffle": ([DEFLATE, SHUFFLE], deflated(1), (64, 64), "before it is shuffled"),
    "lzf and deflate": ([LZF, DEFLATE], deflated(2), (64, 64), "2 compression filters"),
    "a buffer of lzf": ([LZF], b"\0" * 64, (64, 64), "claims"),
    "a chunk too long": ([DEFLATE], bytes(2**20), (64, 64), "claims 1048576 bytes"),
    "a plain chunk too long": ([], bytes(2**20), (64, 64), "claims 1048576 bytes"),
    "szip": ([SZIP], b"\xff" * 64, (64, 64), "filter that is not read"),
    "nbit": ([NBIT], b"\xff" * 64, (64, 64), "filter that is not read"),
    "scale and offset": ([SCALE], b"\xff" * 64, (64, 64), "filter that is not read"),
}

PROGRAM = """
import sys
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError
for weight in open_checkpoint(sys.argv[1]).weights:
    try:
        weight.read()
        print(weight.name, "read")
    except CheckpointError as error:
        print(weight.name, error)
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def stored(name, path):
    filters, data, shape, match = BOMBS[name]
    chunked(path, filters, data, shape)
    if name == "a buffer of lzf":  # the library writes its own number there
        own, huge = (struct.pack("<3I", *LZF[1][:2], size) for size in (2**14, 2**32 - 1))
        assert path.read_bytes().count(own) == 1
        path.write_bytes(path.read_bytes().replace(own, huge))
    return path, match


@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_would_swell_is_its_tensors_reason_and_the_others_are_read(tmp_path, name):
    path, match = stored(name, tmp_path / "a.h5")
    refused(path, match)
    rows = {row.name: row for row in opnorm.audit(path).rows}
    assert (rows["good"].status, rows["w"].status) == ("bounded", "failed")


@pytest.mark.parametrize("name", ["two deflates", "one deflate", "a wide chunk"])
def test_a_chunk_that_would_swell_takes_no_memory(tmp_path, name):
    path, _ = stored(name, tmp_path / "a.h5")
    result = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert "good read" in lines
    assert int(lines[-1].split()[1]) < 300_000  # KiB


@pytest.mark.parametrize(
    "settings",
    [
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf", "shuffle": True},
        {"fletcher32": True},
        {"chunks": (100, 7)},
    ],
)
@pytest.mark.parametrize("data", ["random", "zero"])
def test_what_h5py_compresses_is_read(tmp_path, settings, data):
    array = np.zeros((700, 300), "f4") if data == "zero" else np.random.default_rng(0).standard_normal((700, 300))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", data=array, **{"chunks": (350, 300), **settings})
        file.create_dataset("unwritten", (130, 20), "f4", **settings)
        file.create_dataset("none", (0, 20), "f4", maxshape=(None, 20), **settings)
    found = {weight.name: weight for weight in open_checkpoint(tmp_path / "a.h5").weights}
    np.testing.assert_array_equal(found["w"].read(), array)
    np.testing.assert_array_equal(found["unwritten"].read(), np.zeros((130, 20)))
    assert found["none"].read().shape == (0, 20)


def test_a_large_compressed_chunk_is_read(tmp_path):
    """It could inflate to gigabytes as far as its size tells, so it is inflated once before the library does."""
    array = np.random.default_rng(0).standard_normal((800, 800)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", data=array, chunks=(800, 800), compression="gzip")
        assert file["w"].id.get_storage_size() > 2**20
    (weight,) = open_checkpoint(tmp_path / "a.h5").weights
    np.testing.assert_array_equal(weight.read(), array)


def test_a_dataset_that_stores_nothing_may_not_be_large(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", (2**13, 2**12), "f4")
    assert (tmp_path / "a.h5").stat().st_size < 4096
    refused(tmp_path / "a.h5", "says that it takes 134217728 bytes and stores 0")


def test_a_dataset_of_very_many_chunks_is_refused(tmp_path):
    """The library would take 15 GB and a minute for 1.4 KB."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", (2000, 2000), "f4", chunks=(1, 1))
    refused(tmp_path / "a.h5", "4000000 chunks, of which 0 are stored")


def test_many_chunks_that_are_stored_are_read(tmp_path):
    array = np.random.default_rng(0).standard_normal((200, 200))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", data=array, chunks=(1, 1))
    (weight,) = open_checkpoint(tmp_path / "a.h5").weights
    np.testing.assert_array_equal(weight.read(), array)


CHUNKY = """
import sys
import opnorm
rows = {row.name: row for row in opnorm.audit(sys.argv[1]).rows}
print(rows["good"].status, rows["w"].status, rows["w"].reason)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.parametrize(
    ("shape", "status"), [((250, 250), "bounded"), ((3, 20_000), "bounded"), ((450, 450), "failed")]
)
def test_tiny_chunks_take_no_memory(tmp_path, shape, status):
    """The library takes 4 KiB for each chunk of a read: 0.8 GB for the largest of these."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = MATRIX
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)  # all are stored: zeros
        file.create_dataset("w", shape, "f4", chunks=(1, 1), dcpl=plan)
    command = [sys.executable, "-c", CHUNKY, tmp_path / "a.h5"]
    found, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert found.startswith(f"bounded {status}")
    assert int(memory) < 300_000  # KiB
    assert status == "bounded" or "202500 chunks, of which 202500 are stored" in found


@pytest.mark.parametrize(("shape", "chunks"), [((211, 97), (1, 1)), ((5, 20_000), (2, 1)), ((9_001, 3, 2), (1, 2, 1))])
def test_blocks_of_chunks_are_read_as_the_whole(tmp_path, shape, chunks):
    array = np.random.default_rng(0).standard_normal(shape).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("w", data=array, chunks=chunks)
    (weight,) = open_checkpoint(tmp_path / "a.h5").weights
    np.testing.assert_array_equal(weight.read(), array)


@pytest.mark.parametrize("kept", [0.3, 0.8])
@pytest.mark.parametrize("ending", ["a.h5", "a.keras"])
def test_a_file_that_shrinks_while_it_is_read_ends_in_an_error(tmp_path, ending, kept):
    path, arrays = tmp_path / ending, [np.full((200, 200), i, "f4") for i in range(20)]
    if ending == "a.keras":
        keras_file(path, layers={f"dense_{i}": (f"last{i}", [array]) for i, array in enumerate(arrays)})
    else:
        with h5py.File(path, "w") as file:
            for i, array in enumerate(arrays):
                file[f"w{i}"] = array
    weights = open_checkpoint(path).weights
    os.truncate(path, int(kept * path.stat().st_size))
    failures = 0
    for weight, array in zip(weights, arrays, strict=True):
        try:
            np.testing.assert_array_equal(weight.read(), array)  # none is read half
        except CheckpointError as error:
            failures += "\n" not in str(error)
    assert failures >= len(arrays) * (1 - kept) - 1


def test_a_file_that_shrinks_while_a_tensor_is_copied_ends_in_an_error(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["w"] = np.ones((500, 500))
    with opened(lambda: path.open("rb")) as file:
        dataset = file["w"]
        os.truncate(path, 10_000)
        with pytest.raises(OSError, match="became shorter"):
            dataset[()]
