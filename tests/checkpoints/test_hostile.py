"""Files that are broken or mean harm: each ends in one CheckpointError of one line, and nothing of them is run."""

import io
import os
import random
import tracemalloc
import zipfile

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from readers import fails, refused
from safetensors.numpy import save_file
from samples import (
    CONFIG,
    FILES,
    KERNEL,
    LAYERS,
    distributed_file,
    flax_file,
    functional,
    gguf_file,
    keras_file,
    layer,
    onnx_model,
    tensorflow_file,
    weights_h5,
)

from opnorm.checkpoints.opening import open_checkpoint


@pytest.mark.parametrize("name", FILES)
def test_every_sample_is_read(tmp_path, name):
    found = open_checkpoint(FILES[name](tmp_path / name))
    assert len(found.weights) >= 1
    assert any(weight.geometry.operator for weight in found.weights)
    for weight in found.weights:
        values = weight.read()
        assert (values.shape, str(values.dtype)) == (weight.shape, weight.dtype)
        assert bool(weight.geometry.operator) != bool(weight.geometry.reason)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, "empty")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused(tmp_path, name, kept):
    data = FILES[name](tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: max(1, int(kept * len(data)))])
    refused(tmp_path / name, "Cannot read")


@pytest.mark.parametrize("name", FILES)
def test_nothing_but_its_own_error_escapes_from_damaged_files(tmp_path, name):
    data = FILES[name](tmp_path / name).read_bytes()
    failures = 0
    for seed in range(60):
        chance, broken = random.Random(seed), bytearray(data)
        for _ in range(chance.choice([1, 4, 30])):
            broken[chance.randrange(min(len(broken), 3000))] = chance.randrange(256)
        (tmp_path / name).write_bytes(broken)
        failures += fails(tmp_path / name)
    assert failures > 5


@pytest.mark.parametrize(("name", "other"), [("a.keras", "a.h5"), ("a.npz", "a.safetensors"), ("a.h5", "a.keras")])
def test_a_wrong_ending_is_refused_by_name_and_content(tmp_path, name, other):
    FILES[name](tmp_path / name).rename(tmp_path / other)
    refused(tmp_path / other, f"{other[1:]}' is .* but it holds")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "none.keras", "no such file")
    (tmp_path / "folder.keras").mkdir()
    refused(tmp_path / "folder.keras", "no file")
    (tmp_path / "a.txt").write_text("hello")
    refused(tmp_path / "a.txt", "no reader for '.txt'")


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a\\..\\b", "C:\\x"])
def test_an_archive_that_names_a_way_out_is_refused(tmp_path, name):
    path = keras_file(tmp_path / "a.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    refused(path, "leads out of it")


def test_an_archive_that_unpacks_to_far_more_than_it_stores_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (3 * 2**26,)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(12):
            file.write(bytes(2**26))
    assert path.stat().st_size < 2**20
    refused(path, "says that it takes")


def test_a_compressed_keras_archive_is_read_without_a_trace_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    found = open_checkpoint(keras_file(tmp_path / "a.keras", compression=zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(found.weights[0].read(), KERNEL)
    assert len(os.listdir(tmp_path / "unpacked")) == 1
    del found
    assert os.listdir(tmp_path / "unpacked") == []


@pytest.mark.parametrize("config", ["[" * 100000, '{"a":' * 100000, "no json", "[]", "{}", "1" * 5000])
def test_a_config_that_is_none_is_refused(tmp_path, config):
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights_h5(LAYERS))
    refused(path, "Cannot read")


def test_layers_inside_layers_without_end_are_refused(tmp_path):
    path = tmp_path / "a.keras"
    deep = '{"class_name":"TimeDistributed","config":{"name":"t","layer":' * 3000 + "{}" + "}}" * 3000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", deep)
        archive.writestr("model.weights.h5", weights_h5(LAYERS))
    refused(path, "nested too deeply")


def test_layers_joined_in_a_circle_are_refused(tmp_path):
    circle = [layer("InputLayer", "image"), layer("Dense", "a", ["b"]), layer("Dense", "b", ["a"])]
    refused(keras_file(tmp_path / "a.keras", functional(circle, ["image"], ["b"])), "circle")


def h5(path, write):
    with h5py.File(path, "w") as file:
        write(file, file.create_group("layers/dense/vars"))
    return path


def _external_link(file, group):
    group["0"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft_link(file, group):
    group["0"] = h5py.SoftLink("/elsewhere")


def _circle(file, group):
    group["again"] = file["layers"]


def _external_storage(file, group):
    group.create_dataset("0", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def _virtual(file, group):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    group.create_virtual_dataset("0", layout)


def _declared(file, group):
    group.create_dataset("0", (2**20, 2**20), "f4", chunks=(2**10, 2**10), compression="gzip")


def _chunk(file, group):
    group.create_dataset("0", (2, 2), "f4", maxshape=(None, None), chunks=(2**14, 2**13), compression="gzip")


def _deep(file, group):
    for _ in range(150):
        group = group.create_group("g")


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (_external_link, "link to another place"),
        (_soft_link, "link to another place"),
        (_circle, "linked twice"),
        (_external_storage, "lie in another file"),
        (_virtual, "lie in other datasets"),
        (_declared, "says that it takes"),
        (_chunk, "says that it takes"),
        (_deep, "nested too deeply"),
    ],
)
def test_hdf5_that_leads_elsewhere_or_swells_is_refused(tmp_path, write, match):
    refused(h5(tmp_path / "a.weights.h5", write), match)


def test_a_damaged_heap_is_refused_before_the_library_walks_it(tmp_path):
    path = h5(tmp_path / "a.h5", lambda file, group: file.attrs.update({"layer_names": ["a" * 50, "b" * 50]}))
    data = path.read_bytes()
    at = data.index(b"GCOL") + 16
    path.write_bytes(data[:at] + bytes(16) + data[at + 16 :])  # free space of no size: HDF5 1.14 walks it for ever
    refused(path, "heap")


@pytest.mark.parametrize("reserved", [bytes(3), b"\1\2\3"])  # which HDF5 passes over
def test_free_blocks_of_a_heap_that_go_round_are_refused(tmp_path, reserved):
    path = FILES["a.h5"](tmp_path / "a.h5")
    data = bytearray(path.read_bytes())
    at = data.index(b"HEAP")
    free, begin = (int.from_bytes(data[at + i : at + i + 8], "little") for i in (16, 24))
    data[at + 5 : at + 8] = reserved
    data[begin + free : begin + free + 8] = free.to_bytes(8, "little")  # the block is its own next one
    path.write_bytes(data)
    refused(path, "free blocks go round")


def test_a_file_of_small_addresses_is_refused(tmp_path):
    created = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    created.set_sizes(4, 4)
    file = h5py.File(h5py.h5f.create(str(tmp_path / "a.h5").encode(), fcpl=created))
    file["w/kernel"] = np.eye(3)
    file.close()
    refused(tmp_path / "a.h5", "eight bytes")


def _keras(path, arrays):
    layers = {f"dense_{i}" if i else "dense": (key, [array]) for i, (key, array) in enumerate(arrays.items())}
    keras_file(path, CONFIG, layers)


def _h5(path, arrays):
    path.write_bytes(weights_h5({key: (key, [array]) for key, array in arrays.items()}))


def _tensors(arrays):
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


WRITERS = {
    "a.keras": _keras,
    "a.h5": _h5,
    "a.safetensors": lambda path, arrays: save_file(arrays, path),
    "a.pt": lambda path, arrays: torch.save(_tensors(arrays), path),
    "a.onnx": lambda path, arrays: onnx.save(onnx_model([helper.make_node("Relu", ["x"], ["y"])], arrays), path),
    "a.gguf": gguf_file,
    "a.index": tensorflow_file,
    "a.msgpack": flax_file,
    ".metadata": lambda path, arrays: distributed_file(path, _tensors(arrays)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_opening_and_reading_take_the_memory_of_one_tensor(tmp_path, name):
    """Ten tensors of 4 MiB: the reader holds one, and a copy at most while it decodes it."""
    size, arrays = 2**22, {f"w{i}.weight": np.zeros((2**10, 2**10), "float32") for i in range(10)}
    path = tmp_path / name
    WRITERS[name](path, arrays)
    del arrays
    open_checkpoint(path)  # imports
    tracemalloc.start()
    for weight in open_checkpoint(path).weights:
        assert weight.read().nbytes == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * size


def test_a_text_that_claims_more_bytes_than_the_file_has_is_refused_before_memory_is_taken(tmp_path):
    path = FILES["a.weights.h5"](tmp_path / "a.weights.h5")
    data = path.read_bytes()
    heap = data.index(b"GCOL").to_bytes(8, "little")
    assert data.count(len("first").to_bytes(4, "little") + heap) == 1
    path.write_bytes(data.replace(len("first").to_bytes(4, "little") + heap, (2**31).to_bytes(4, "little") + heap))
    refused(path, "claims 2147483648 bytes")


@pytest.mark.parametrize("name", [b"MatMul", b"kernel", b"bias"])
def test_a_name_that_is_no_text_is_refused(tmp_path, name):
    path = FILES["a.onnx"](tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes().replace(name, b"\xff" * len(name)))
    refused(path, "not UTF-8")
