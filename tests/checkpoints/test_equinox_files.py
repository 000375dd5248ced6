"""What Equinox serialises: leaves one after another, without names, compared with Equinox's own loading."""

import json

import numpy as np
import pytest

from opnorm.auditing.audits import audit
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.records import CheckpointError

eqx = pytest.importorskip("equinox")
jax = pytest.importorskip("jax")


class Net(eqx.Module):
    """All kinds of leaves."""

    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP
    slope: float
    grouped: eqx.nn.Conv1d

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.conv = eqx.nn.Conv2d(2, 3, 3, padding=1, key=keys[0])
        self.mlp = eqx.nn.MLP(6, 2, 5, 1, key=keys[1])
        self.slope = 0.5
        self.grouped = eqx.nn.Conv1d(4, 4, 3, groups=2, key=keys[2])


def written(path, first=b""):
    with path.open("wb") as file:
        file.write(first)
        eqx.tree_serialise_leaves(file, Net())
    return path


@pytest.mark.parametrize("first", [b"", json.dumps({"width": 5}).encode() + b"\n"])
def test_every_leaf_has_a_row_with_the_numbers_that_equinox_loads(tmp_path, first):
    found = open_checkpoint(written(tmp_path / "net.eqx", first))
    assert found.format == "equinox"
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(Net(), eqx.is_array_like))]
    assert [one.shape for one in found.weights] == [leaf.shape for leaf in leaves]
    for one, leaf in zip(found.weights, leaves, strict=True):
        np.testing.assert_array_equal(one.read(), leaf)


def test_the_rows_contain_the_norms_of_what_the_layers_apply(tmp_path):
    rows = audit(written(tmp_path / "net.eqx")).rows
    net = Net()
    assert [row.status for row in rows] == ["bounded", "skipped"] * 3 + ["skipped", "bounded", "skipped"]
    for row, layer in zip((rows[2], rows[4]), net.mlp.layers, strict=True):
        assert row.lower <= np.linalg.norm(np.asarray(layer.weight, "f8"), 2) <= row.upper
    for row, layer, shape in ((rows[0], net.conv, (2, 5, 5)), (rows[7], net.grouped, (4, 9))):
        zero = layer(np.zeros(shape, "f4"))
        columns = [layer(unit.reshape(shape)) - zero for unit in np.eye(np.prod(shape), dtype="f4")]
        truth = np.linalg.norm(np.stack([np.asarray(one, "f8").ravel() for one in columns]), 2)
        assert truth <= 1.0001 * max([row.upper, *(upper for _, _, upper in row.readings)])


@pytest.mark.parametrize(
    "content",
    [b"{" * 2**17, b'{"a": 1}\n', b'{"a": 1}\nno array', b"\x93NUMPY\x01\x00", b"{}\n\x93NUMPY\x01\x00\xff\xff{"],
)
def test_what_is_no_such_file_is_refused(tmp_path, content):
    (tmp_path / "a.eqx").write_bytes(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "a.eqx")


def test_a_file_cut_anywhere_is_refused_or_has_rows_up_to_the_cut(tmp_path):
    whole = written(tmp_path / "net.eqx").read_bytes()
    path = tmp_path / "cut.eqx"
    for size in range(1, len(whole), 37):
        path.write_bytes(whole[:size])
        try:
            found = open_checkpoint(path).weights
        except CheckpointError:
            continue
        assert 0 < len(found) <= 9
        assert all(one.read().shape == one.shape for one in found[:-1])


def test_bfloat16_is_read_as_jax_reads_it(tmp_path):
    leaf = jax.random.normal(jax.random.key(0), (5, 4), "bfloat16")
    eqx.tree_serialise_leaves(tmp_path / "a.eqx", [leaf])
    jax.numpy.save(tmp_path / "b.npy", leaf)
    np.savez(tmp_path / "c.npz", weight=leaf)
    truth = np.linalg.norm(np.asarray(jax.numpy.load(tmp_path / "b.npy"), "f8"), 2)
    for name in ("a.eqx", "b.npy", "c.npz"):
        (row,) = audit(tmp_path / name).rows
        assert row.dtype == "bfloat16"
        assert row.lower <= truth * (1 + 1e-9) <= row.upper * (1 + 2e-9)
