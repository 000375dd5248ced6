"""Tables of contents and pickles that lie or mean harm: safetensors, PyTorch, NumPy, ONNX."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from readers import refused
from safetensors import SafetensorError, safe_open
from samples import FILES, MATRIX, onnx_model

from opnorm.checkpoints.opening import open_checkpoint


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


F32 = '{"dtype":"F32","shape":[%d],"data_offsets":[%d,%d]}'


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (f'{{"a":{F32 % (1, 0, 4)},"b":{F32 % (1, 8, 12)}}}', 12),  # a hole
        (f'{{"a":{F32 % (1, 4, 8)}}}', 8),
        (f'{{"a":{F32 % (1, 0, 4)}}}', 8),  # bytes that belong to no tensor
        (f'{{"a":{F32 % (2, 0, 8)},"b":{F32 % (2, 4, 12)}}}', 12),  # an overlap
        (f'{{"a":{F32 % (1, 0, 4)},"b":{F32 % (1, 0, 4)}}}', 4),
        (f'{{"a":{F32 % (1, 0, 4)},"a":{F32 % (1, 4, 8)}}}', 8),  # a key twice
        ('{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', 4),
        (f'{{"__metadata__":{{"x":1}},"a":{F32 % (1, 0, 4)}}}', 4),
    ],
)
def test_a_safetensors_file_that_its_own_library_refuses_is_refused(tmp_path, header, size):
    path = safetensors(tmp_path / "a.safetensors", header.encode(), bytes(size))
    with pytest.raises(SafetensorError):
        safe_open(path, framework="np")
    refused(path, "Cannot read")


def test_a_safetensors_file_with_a_name_twice_is_refused(tmp_path):
    """Its own library takes the last of two that agree: which of them counts is a matter of the reader."""
    header = f'{{"a":{F32 % (1, 0, 4)},"a":{F32 % (1, 0, 4)}}}'
    refused(safetensors(tmp_path / "a.safetensors", header.encode(), bytes(4)), "a key twice")


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


def test_more_tensors_than_any_file_has_are_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    refused(safetensors(tmp_path / "a.safetensors", dict.fromkeys(map(str, range(70_000)), entry)), "more than 65536")


def test_a_name_without_end_is_refused(tmp_path):
    header = {"weight_" * 10_000 + "u": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    refused(safetensors(tmp_path / "a.safetensors", header, bytes(4)), "name of 70001 characters")
