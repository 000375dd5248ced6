"""PyTorch's distributed checkpoints: parts joined as PyTorch joins them; hostile ones end in a line and run nothing."""

import io
import os
import pickle
import warnings
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from readers import refused
from torch.distributed import checkpoint
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from opnorm.auditing.audits import audit
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.opening import open_checkpoint


def save(state, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it assumes one process, which it is told
        checkpoint.save(state, checkpoint_id=path, no_dist=True)
    return path


def by_name(path):
    return {weight.name: weight for weight in open_checkpoint(path).weights}


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("way", [".", ".metadata"])
def test_a_folder_agrees_with_what_was_saved(tmp_path, way):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3, 2)
    )
    adam = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 2, 3, 3)).sum().backward()
    adam.step()
    plain = {"b": torch.randn(4, 3).bfloat16(), "f8": torch.randn(2, 3).to(torch.float8_e4m3fn), "e": torch.zeros(0, 3)}
    plain |= {"view": torch.randn(6, 7).t()[1:5], "p": torch.nn.Parameter(torch.ones(2)), "i": torch.arange(3)}
    state = {"model": net.state_dict(), "optim": adam.state_dict(), "plain": plain, "step": 3, "lr": [0.1, {"x": 2}]}
    found = by_name(save(state, tmp_path) / way)
    truth = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    truth |= {f"plain.{name}": tensor for name, tensor in plain.items()}
    for i, slots in adam.state_dict()["state"].items():
        truth |= {f"optim.state.{i}.{name}": tensor for name, tensor in slots.items()}
    assert set(found) == set(truth)
    for name, tensor in truth.items():
        values = found[name].read()
        assert (values.shape, found[name].dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert values.tobytes() == bits(tensor)
    assert found["optim.state.0.exp_avg"].geometry.reason == g.OPTIMIZER
    assert found["model.1.weight"].geometry.kind == "BatchNorm"


def stored(*tensors):
    """Return the bytes of a `.distcp` file and where in it each tensor lies."""
    data, places = io.BytesIO(), []
    for tensor in tensors:
        start = data.tell()
        part = io.BytesIO()
        torch.save(tensor, part)
        data.write(part.getvalue())
        places.append((start, data.tell() - start))
    return data.getvalue(), places


def described(shape, chunks, dtype=torch.float32):
    parts = [ChunkStorageMetadata(torch.Size(start), torch.Size(size)) for start, size in chunks]
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(shape), parts)


def write(folder, chunks, places=None, *, shape=(4, 3), dtype=torch.float32, name="__0_0.distcp", tensors=None):
    """Write a tensor `w` of the parts `(start, size)`, each wrong where asked for; return the whole."""
    whole = torch.arange(12.0).reshape(4, 3)
    cuts = [tuple(slice(a, a + n) for a, n in zip(start, size, strict=True)) for start, size in chunks]
    data, found = stored(*(tensors or [whole[cut].clone() for cut in cuts]))
    (folder / "__0_0.distcp").write_bytes(data)
    placed = zip(chunks, found if places is None else places, strict=False)
    infos = {MetadataIndex("w", start): _StorageInfo(name, *place) for (start, _), place in placed}
    metadata = Metadata({"w": described(shape, chunks, dtype)}, storage_data=infos)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return whole


QUARTERS = [((0, 0), (2, 2)), ((0, 2), (2, 1)), ((2, 0), (2, 2)), ((2, 2), (2, 1))]


@pytest.mark.parametrize(
    "chunks", [QUARTERS, [((0, 0), (4, 3))], [((0, 0), (3, 3)), ((3, 0), (1, 3)), ((4, 0), (0, 3))]]
)
def test_the_parts_of_several_processes_are_joined(tmp_path, chunks):
    whole = write(tmp_path, chunks)
    np.testing.assert_array_equal(by_name(tmp_path)["w"].read(), whole.numpy())


@pytest.mark.parametrize(
    ("chunks", "settings", "match"),
    [
        (QUARTERS[:3], {}, "do not make the whole"),
        ([*QUARTERS[:3], QUARTERS[0]], {}, "do not make the whole"),
        ([((0, 0), (4, 3))], {"shape": (5, 3)}, "do not make the whole"),
        ([((0, 0), (4, 3))], {"shape": (2**40, 2**40)}, "do not make the whole"),
        ([((0, 0), (4, 3))], {"dtype": torch.float64}, "another shape or dtype"),
        ([((0, 0), (4, 3))], {"tensors": [torch.zeros(3, 4)]}, "another shape or dtype"),
        ([((0, 0), (4, 3))], {"tensors": [[torch.zeros(4, 3)] * 2]}, "is no tensor"),
        ([((0, 0), (4, 3))], {"places": [(0, 10**6)]}, "beyond the end"),
        ([((0, 0), (4, 3))], {"places": [(-1, 100)]}, "makes no sense"),
        ([((0, 0), (4, 3))], {"places": [(7, 300)]}, "zip archive"),
        ([((0, 0), (4, 3))], {"places": [("0", 10)]}, "makes no sense"),
        ([((0, 0), (4, 3))], {"places": []}, "has no place"),
        ([((0, 0), (4, 3))], {"name": "../x.distcp"}, "lies outside its folder"),
        ([((0, 0), (4, 3))], {"name": "/etc/passwd"}, "lies outside its folder"),
        ([((0, 0), (4, 3))], {"name": "__1_0.distcp"}, "which is missing"),
    ],
)
def test_parts_that_make_no_sense_are_refused(tmp_path, chunks, settings, match):
    write(tmp_path, chunks, **settings)
    refused(tmp_path, match)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["metadata", "tensors", "storage", "value", "part"])
def test_nothing_that_a_pickle_names_is_run(tmp_path, place):
    evil = Evil(str(tmp_path / "run"))
    write(tmp_path, [((0, 0), (4, 3))], tensors=[evil] if place == "part" else None)
    data, (at,) = stored(evil)
    (tmp_path / "__1_0.distcp").write_bytes(data)
    tensors = {"w": evil} if place == "tensors" else {"x": BytesStorageMetadata()}
    storage = evil if place == "storage" else {MetadataIndex("x"): _StorageInfo("__1_0.distcp", *at)}
    found = evil if place == "metadata" else Metadata(tensors, storage_data=storage)
    if place != "part":
        (tmp_path / ".metadata").write_bytes(pickle.dumps(found))
    if place == "value":
        (row,) = audit(tmp_path).rows
        assert (row.name, row.status) == ("x", "failed")
        assert "which would run code" in row.reason
    else:
        refused(tmp_path, "which would run code; nothing was run")
    assert not (tmp_path / "run").exists()


def test_a_value_that_holds_a_tensor_has_its_row(tmp_path):
    data, (at,) = stored({"deep": [torch.eye(3)]})
    (tmp_path / "a.distcp").write_bytes(data)
    metadata = Metadata({"x": BytesStorageMetadata()}, storage_data={MetadataIndex("x"): _StorageInfo("a.distcp", *at)})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    (row,) = audit(tmp_path).rows
    assert (row.name, row.status, row.lower) == ("x.deep.0", "bounded", pytest.approx(1))


@pytest.mark.parametrize("content", [1, None, {}, Metadata({}), Metadata({1: 2}, storage_data={}), PurePosixPath("x")])
def test_metadata_that_makes_no_sense_is_refused(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    refused(tmp_path, "Cannot read")
