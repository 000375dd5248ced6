"""Files that are broken or mean harm: each ends in one CheckpointError of one line, and nothing of them is run."""

import io
import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from samples import CONFIG, FILES, KERNEL, LAYERS, MATRIX, functional, keras_file, layer, onnx_model, weights_h5

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError


def _survives(path):
    """Open and read everything; return whether it failed, as it may, in one line."""
    try:
        [weight.read() for weight in open_checkpoint(path).weights]
    except CheckpointError as caught:
        message = str(caught)
    else:
        message = None
    assert message is None or "\n" not in message
    return message is not None


def refused(path, match):
    """Open and read everything: exactly one error of one line that names the file."""
    with pytest.raises(CheckpointError, match=match) as error:
        [weight.read() for weight in open_checkpoint(path).weights]
    assert "\n" not in str(error.value)
    assert repr(path.name) in str(error.value)


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
        failures += _survives(tmp_path / name)
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


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "4", "data_offsets": [0, 4]},
        {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        [],
    ],
)
def test_a_safetensors_header_that_does_not_add_up_is_refused(tmp_path, entry):
    refused(safetensors(tmp_path / "a.safetensors", {"x": entry}, bytes(4)), "Cannot read")


def test_a_safetensors_header_as_long_as_it_likes_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**39) + b"{}")
    refused(path, "header would take")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "missing.safetensors", "link.safetensors"])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    FILES["a.safetensors"](tmp_path / "a.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"linear.bias": name}}))
    refused(path, "outside its folder|missing")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, old):
    path = tmp_path / "a.pt"
    torch.save({"a": Evil(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not old)
    refused(path, r"posix.system, which would run code; nothing was run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [b"\x80\x02cbuiltins\neval\n.", pickle.dumps([1, 2]), b"\x80\x02}.", b"\x80"])
def test_a_pickle_that_is_none_of_pytorchs_is_refused(tmp_path, value):
    (tmp_path / "a.bin").write_bytes(value)
    refused(tmp_path / "a.bin", "Cannot read")


def test_a_whole_pickled_module_is_refused_by_the_class_it_asks_for(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "torch.nn.modules.linear.Linear")


def torch_archive(path, shape, strides, storage=8, offset=0):
    """Write an archive whose only tensor has the given place in a storage of `storage` floats."""
    ints = b"".join(b"\x8a\x09" + n.to_bytes(9, "little") for n in shape)
    steps = b"".join(b"\x8a\x09" + n.to_bytes(9, "little") for n in strides)
    data = (
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpuM" + struct.pack("<H", storage) + b"tQM" + struct.pack("<H", offset)
        + b"(" + ints + b"t(" + steps + b"t\x89}tRs."
    )  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", np.arange(storage, dtype="<f4").tobytes())
    return path


def test_a_tensor_lies_where_its_strides_say(tmp_path):
    found = open_checkpoint(torch_archive(tmp_path / "a.pt", (2, 3), (1, 2), offset=1)).weights[0]
    np.testing.assert_array_equal(found.read(), [[1, 3, 5], [2, 4, 6]])


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((2, 5), (1, 2), 0),
        ((8,), (1,), 1),
        ((2**33, 2**33), (0, 0), 0),
        ((2**40,), (0,), 0),
        ((2**62, 4), (4, 2**60), 0),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_or_swells_is_refused(tmp_path, shape, strides, offset):
    refused(torch_archive(tmp_path / "a.pt", shape, strides, offset=offset), "Cannot read")


def test_tables_that_hold_themselves_are_walked_once(tmp_path):
    circle = {"w": torch.ones(2, 2)}
    circle["again"] = circle
    torch.save(circle, tmp_path / "a.pt")
    assert [weight.name for weight in open_checkpoint(tmp_path / "a.pt").weights] == ["w"]


def test_arrays_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Evil(tmp_path / "ran")]))
    refused(tmp_path / "a.npz", "no numbers")
    assert not (tmp_path / "ran").exists()


def external(tmp_path, location, offset=0, length=None, shape=(40, 30)):
    model = onnx_model([helper.make_node("MatMul", ["x", "kernel"], ["y"])], {})
    tensor = model.graph.initializer.add(name="kernel", data_type=1, dims=shape, data_location=1)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "model").mkdir(exist_ok=True)
    onnx.save(model, tmp_path / "model" / "a.onnx")
    return tmp_path / "model" / "a.onnx"


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "missing", "link", "a/../../secret"])
def test_external_data_outside_the_models_folder_is_refused(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(4800))
    path = external(tmp_path, location)
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    refused(path, "outside its folder|missing")


@pytest.mark.parametrize(
    ("offset", "length", "shape"),
    [(8, None, (40, 30)), (0, 4804, (40, 30)), (-4, None, (40, 30)), ("x", None, (40, 30)), (0, None, (2**62, 2**62))],
)
def test_external_data_that_does_not_fit_is_refused(tmp_path, offset, length, shape):
    path = external(tmp_path, "data", offset, length, shape)
    (path.parent / "data").write_bytes(bytes(4800))
    refused(path, "Cannot read")


def test_operators_joined_in_a_circle_are_refused(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    onnx.save(onnx_model(nodes, {"k": MATRIX}, outputs=("b",)), tmp_path / "a.onnx")
    refused(tmp_path / "a.onnx", "circle")


def test_graphs_inside_graphs_without_end_are_refused(tmp_path):
    def field(number, content):
        size, encoded = len(content), b""
        while size > 127:
            encoded, size = encoded + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + encoded + bytes([size]) + content

    graph = b""
    for _ in range(400):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "a.onnx").write_bytes(b"\x08\x08" + field(7, graph))
    refused(tmp_path / "a.onnx", "nested too deeply")


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.safetensors", "a.pt", "a.onnx"])
def test_opening_and_reading_take_the_memory_of_one_tensor(tmp_path, name):
    """Ten tensors of 4 MiB: the reader holds one, and a copy at most while it decodes it."""
    size, arrays = 2**22, {f"w{i}.weight": np.zeros((2**10, 2**10), "float32") for i in range(10)}
    path = tmp_path / name
    if name == "a.keras":
        layers = {f"dense_{i}" if i else "dense": (key, [array]) for i, (key, array) in enumerate(arrays.items())}
        keras_file(path, CONFIG, layers)
    elif name == "a.h5":
        path.write_bytes(weights_h5({key: (key, [array]) for key, array in arrays.items()}))
    elif name == "a.pt":
        torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, path)
    elif name == "a.onnx":
        onnx.save(onnx_model([helper.make_node("Relu", ["x"], ["y"])], arrays), path)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)
    del arrays
    open_checkpoint(path)  # imports
    tracemalloc.start()
    for weight in open_checkpoint(path).weights:
        assert weight.read().nbytes == size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * size
