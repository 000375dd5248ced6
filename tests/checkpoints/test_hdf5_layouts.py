"""HDF5 of every layout: each dataset that h5py's own visitor meets has a row, and none with a norm passes unseen."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest
from explicit import explicit_matrix
from hdf5_files import all_read, visited
from samples import BIAS, CONFIG, KERNEL, LAYERS, MATRIX, keras_file, legacy_file, weights_h5
from typer.testing import CliRunner

import opnorm
from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.cli.main import app

NORM = np.linalg.svd(MATRIX.astype("f8"), compute_uv=False)[0]


def keras_0(path):
    """As `model.save_weights` of Keras 0.1 to 0.3 wrote it."""
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = 3
        for i, arrays in enumerate(([MATRIX, BIAS], [], [KERNEL.T])):
            group = file.create_group(f"layer_{i}")
            group.attrs["nb_params"] = len(arrays)
            for j, array in enumerate(arrays):
                group[f"param_{j}"] = array
    return path


def root_datasets(path):
    with h5py.File(path, "w") as file:
        file["kernel"], file["b"], file["10"], file["vars"] = MATRIX, BIAS, KERNEL, MATRIX + 1
    return path


def without_attributes(path):
    with h5py.File(path, "w") as file:
        file["model_weights/dense_1/dense_1/kernel:0"] = MATRIX
        file["model_weights/dense_1/dense_1/kernel"] = MATRIX + 1
        file["model_weights/dense_1/dense_1/bias:0"] = BIAS
        file["model_weights/mine/w"] = MATRIX + 2
        file["model_weights/top"] = MATRIX + 3
        file["model_weights/optimizer_weights/w"] = MATRIX + 4
        file["beside/w"], file["root"] = MATRIX + 5, MATRIX + 6
        file["optimizer_weights/Adam/dense_1/kernel/m:0"] = MATRIX + 7
    return path


def scattered(path):
    """A Keras 3 file with datasets where Keras writes none."""
    path.write_bytes(weights_h5(LAYERS))
    with h5py.File(path, "a") as file:
        file["layers/dense/extra"] = MATRIX + 1
        file["layers/dense/vars/deep/0"] = MATRIX + 2
        file["layers/0"] = MATRIX + 3
        file["top"] = MATRIX + 4
        file["unknown/inside/w"] = MATRIX + 5
        file["metrics/mean/vars/0"] = np.float32(3)
        file["optimizer/vars/0"], file["optimizer/vars/deep/0"], file["optimizer/beside"] = 1, MATRIX, MATRIX + 6
    return path


def legacy(path):
    legacy_file(path)
    with h5py.File(path, "a") as file:
        file["model_weights/last/last/last_b"] = BIAS + 1
        file["model_weights/top"], file["root"], file["other/w"] = MATRIX + 1, MATRIX + 2, MATRIX + 3
        file["optimizer_weights/training/Adam/m:0"] = MATRIX + 4
    return path


def archive(path):
    buffer = io.BytesIO(weights_h5(LAYERS))
    with h5py.File(buffer, "a") as file:
        file["layers/dense/vars/kernel"] = MATRIX + 1
        file["stray"] = MATRIX + 2
        file["optimizer/vars/0"] = MATRIX + 3
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("config.json", json.dumps(CONFIG))
        members.writestr("model.weights.h5", buffer.getvalue())
    return path


LAYOUTS = {
    "keras_0.h5": keras_0,
    "root.h5": root_datasets,
    "bare.h5": without_attributes,
    "scattered.weights.h5": scattered,
    "legacy.h5": legacy,
    "archive.keras": archive,
    "plain.keras": keras_file,
    "old.hdf5": legacy_file,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_dataset_that_h5py_visits_has_a_row(tmp_path, name):
    path = LAYOUTS[name](tmp_path / name)
    assert all_read(path) == visited(path)
    rows = opnorm.audit(path).rows
    assert len({row.name for row in rows}) == visited(path).total()
    for row in rows:  # a matrix is skipped as optimizer state alone
        assert row.status != "skipped" or len(row.shape) < 2 or row.reason == "optimizer state"


def test_shards_that_share_a_name_keep_both_tensors(tmp_path):
    for i in range(2):
        with h5py.File(tmp_path / f"{i}.weights.h5", "w") as file:
            file["layers/dense/vars/0"] = MATRIX + i
    path = tmp_path / "a.weights.json"
    path.write_text(json.dumps({"weight_map": {"/layers/dense/vars": ["0.weights.h5", "1.weights.h5"]}}))
    found = open_checkpoint(path).weights
    assert sorted(weight.read()[0, 0] for weight in found) == sorted([MATRIX[0, 0], MATRIX[0, 0] + 1])


def test_datasets_of_old_and_plain_files_are_bounded_as_their_shapes_suggest(tmp_path):
    rows = {row.name: row for row in opnorm.audit(keras_0(tmp_path / "a.h5")).rows}
    assert list(rows) == ["layer_0/param_0", "layer_0/param_1", "layer_2/param_0"]
    assert rows["layer_0/param_0"].lower <= NORM <= rows["layer_0/param_0"].upper
    assert [row.assumed for row in rows.values()] == [True] * 3


def test_a_kernel_of_an_unknown_layout_is_read_in_both(tmp_path):
    """(out, in, height, width) as in Theano and PyTorch, or (height, width, in, out)."""
    delta = np.zeros((3, 3, 2, 2), "float32")
    delta[1, 1] = [[1, 1], [0, 0]]  # as the latter the pointwise map of norm sqrt(2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = delta
    (weight,) = open_checkpoint(tmp_path / "a.h5").weights
    readings = [weight.geometry, *weight.geometry.readings]
    brackets = [spectral_norm(reading.operator(delta.astype("f8"))) for reading in readings]
    assert any(lower <= np.sqrt(2) <= upper for lower, upper in brackets)
    # the former: one output channel reads one input channel, twice side by side: 2 at frequency zero
    assert any(lower <= 2 <= upper for lower, upper in brackets)


@pytest.mark.parametrize(("strides", "groups"), [(1, 1), (2, 1), (3, 4), (1, 4)])
def test_a_convolution_whose_settings_no_file_tells_lies_between_its_readings(tmp_path, strides, groups):
    (tmp_path / "a.weights.h5").write_bytes(weights_h5(LAYERS))
    found = next(one for one in open_checkpoint(tmp_path / "a.weights.h5").weights if one.shape == KERNEL.shape)
    kernel = KERNEL.astype("f8")
    readings = [spectral_norm(one.operator(kernel)) for one in (found.geometry, *found.geometry.readings)]
    truth = np.linalg.svd(
        explicit_matrix(kernel, (9, 9), (strides, strides), "valid", (1, 1), groups), compute_uv=False
    )[0]
    assert min(lower for lower, _ in readings) * (1 - 1e-9) <= truth <= max(upper for _, upper in readings)
    assert found.geometry.assumed


def strange(file):
    file.create_dataset("vlen", (3,), h5py.vlen_dtype("f4"))[0] = [1, 2, 3]
    file.create_dataset("reference", (2,), h5py.ref_dtype)[0] = file["vlen"].ref
    file.create_dataset("region", (2,), h5py.regionref_dtype)
    file["compound"] = np.zeros((2, 2), [("re", "f4"), ("im", "f4")])
    file["nested"] = np.zeros(2, [("matrix", "f4", (5, 5))])
    file["complex"] = np.eye(3) * 1j
    file["opaque"] = np.zeros((4, 4), "V2")
    file["array"] = np.zeros(2, np.dtype(("f4", (3, 3))))
    file.create_dataset("rows", (2,), np.dtype(("f4", (3, 3))))
    file["long"] = np.eye(3, dtype=np.longdouble)
    file["codes"] = np.eye(3, dtype="int8")
    file["stack"] = np.ones((3, 4, 5))
    file["six"] = np.ones((2,) * 6)


def harmless(file):
    file["text"], file["texts"] = "hello", np.array([b"a", b"bc"])
    file["null"] = h5py.Empty("f4")
    file["empty"] = np.zeros((0, 3))
    file["none"] = np.zeros((0,), [("a", "f4")])
    file["number"], file["bias"] = 3.0, BIAS
    file["kind"] = np.dtype("f4")  # a named type is no dataset


@pytest.mark.parametrize("group", ["/", "layers/dense/vars", "model_weights/dense_1", "layers/dense"])
def test_what_holds_no_matrix_fails_unless_it_surely_has_no_norm(tmp_path, group):
    found = {}
    for write in (strange, harmless):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            write(file.require_group(group))
            count = sum(isinstance(item, h5py.Dataset) for item in file[group].values())
        rows = opnorm.audit(tmp_path / "a.h5").rows
        assert len(rows) == count
        assert all(row.reason or row.status == "bounded" for row in rows)
        found[write] = {row.status for row in rows}
    assert found[strange] <= {"failed", "bounded"}
    assert found[harmless] == {"skipped"}


def test_the_command_does_not_pass_what_it_cannot_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = np.eye(3)
        file.create_dataset("w", (1,), h5py.vlen_dtype("f4"))[0] = [100.0] * 9
    assert CliRunner().invoke(app, ["check", str(tmp_path / "a.h5"), "--max-norm", "2"]).exit_code == 1


def test_one_dataset_that_cannot_be_read_leaves_the_others(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = MATRIX
        file["link"], file["outside"] = h5py.SoftLink("/good"), h5py.ExternalLink("/etc/passwd", "/x")
        file.create_dataset("external", (4, 4), "u1", external=[("/etc/passwd", 0, 16)])
        file.create_dataset("damaged", data=MATRIX, chunks=(2, 3), compression="gzip")
        chunk = file["damaged"].id.get_chunk_info(0)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[chunk.byte_offset + 2 : chunk.byte_offset + chunk.size] = bytes(chunk.size - 2)
    (tmp_path / "a.h5").write_bytes(data)
    rows = {row.name: row for row in opnorm.audit(tmp_path / "a.h5").rows}
    assert rows["good"].lower <= NORM <= rows["good"].upper
    assert {name: row.status for name, row in rows.items()} == {"good": "bounded"} | dict.fromkeys(
        ("link", "outside", "external", "damaged"), "failed"
    )
    assert "lie in another file" in rows["external"].reason
