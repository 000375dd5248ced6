"""Nothing is missing: the tensors of a file, counted by the library that owns the format, each have a row."""

import io
import json
import zipfile
from collections import Counter, defaultdict, deque
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from bracketed import brackets, status, weights
from explicit import norm
from safetensors import safe_open
from safetensors.torch import save_file

from opnorm.auditing.audits import audit
from opnorm.checkpoints.opening import open_checkpoint

IGNORED = pytest.mark.filterwarnings(
    "ignore:.*quantize", "ignore:Sparse CSR", "ignore:Sparse CSC", "ignore:TypedStorage", "ignore:Sparse invariant"
)


def quantized():
    per_channel = torch.quantize_per_channel(
        torch.randn(3, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 5, 9]), 0, torch.quint8
    )
    columns = torch.quantize_per_channel(
        torch.randn(3, 4).t(), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 5, 9]), 1, torch.qint8
    )
    plain = [torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 3, kind) for kind in (torch.qint8, torch.qint32)]
    return {"channels": per_channel, "columns": columns, "tensor": plain[0], "long": plain[1]}


def state():
    """Return tensors of every kind that a file may hold, in tables of every kind."""
    coo = torch.sparse_coo_tensor([[0, 1, 1, 0], [2, 0, 0, 2]], [1.0, 2.0, 3.0, 4.0], (2, 3))  # places twice
    return {
        "dense": torch.eye(2),
        "sparse": {
            "coo": coo,
            "hybrid": torch.sparse_coo_tensor([[0, 2]], torch.randn(2, 4), (3, 4)),
            "coalesced": torch.randn(4, 4).relu().to_sparse(),
            "csr": torch.randn(4, 5).relu().to_sparse_csr(),
            "csc": torch.eye(4).to_sparse_csc(),
        },
        "quantized": quantized(),
        "meta": torch.empty(3, 4, device="meta"),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
        "fnuz": torch.zeros(2, 2).to(torch.float8_e4m3fnuz),
        "int8": torch.ones(2, 2, dtype=torch.int8),
        "list": [torch.ones(2, 2), (torch.ones(3, 3), {"x": torch.ones(4, 4)})],
        ("a", 1): torch.ones(2, 2),
        7: torch.ones(2, 2),
        True: torch.ones(2, 2),
        None: torch.ones(2, 2),
        2.5: torch.ones(2, 2),
    }


def leaves(value, path=()):
    if isinstance(value, torch.Tensor | np.ndarray):
        yield ".".join(path), value
    elif isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, text(key)))


def text(key):
    return f"({', '.join(map(str, key))})" if isinstance(key, tuple) else str(key)


def plain(tensor):
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor.to_dense().double().numpy()


@IGNORED
@pytest.mark.parametrize("old", [False, True])
def test_every_tensor_of_a_pytorch_file_has_a_row(tmp_path, old):
    tensors = state()
    if old:
        del tensors["fnuz"]  # PyTorch writes it so, and cannot read it
    torch.save(tensors, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    truth = dict(leaves(torch.load(tmp_path / "a.pt", weights_only=True)))
    found = weights(tmp_path / "a.pt")
    assert {key: tuple(tensor.shape) for key, tensor in truth.items()} == {key: one.shape for key, one in found.items()}
    numbers = [key for key, one in found.items() if status(one) == "bounded"]
    assert set(truth) - set(numbers) == {"sparse.csc", "meta", "complex", "int8"} | (set() if old else {"fnuz"})
    for key in numbers:
        np.testing.assert_allclose(found[key].read(), plain(truth[key]), rtol=1e-6, err_msg=key)  # torch: float32
        assert brackets(found[key])[0].lower == pytest.approx(norm(plain(truth[key])), rel=2e-6)
    rows = {row.name: row for row in audit(tmp_path / "a.pt").rows}
    for key in set(truth) - set(numbers):
        assert (rows[key].status, bool(rows[key].reason)) == ("failed", True)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_in_a_pytorch_file_have_rows(tmp_path, protocol):
    arrays = {
        "c": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        "big": np.arange(6, dtype=">f8").reshape(2, 3),
        "objects": np.array([[1, None]], dtype=object),
        "texts": np.array([["a"]]),
        "empty": np.zeros((0, 3)),
    }
    torch.save({"scalar": np.float64(3), "arrays": arrays}, tmp_path / "a.pt", pickle_protocol=protocol)
    truth = dict(leaves(torch.load(tmp_path / "a.pt", weights_only=False)))
    found = weights(tmp_path / "a.pt")
    assert {key: array.shape for key, array in truth.items()} == {key: one.shape for key, one in found.items()}
    for key in ("arrays.c", "arrays.fortran", "arrays.big", "arrays.empty"):
        np.testing.assert_array_equal(found[key].read(), truth[key])
    assert status(found["arrays.objects"]) == "unknown"


class Constant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*is deprecated")
def test_the_weights_of_a_frozen_module_are_its_constants(tmp_path):
    module = Constant().eval()
    torch.jit.freeze(torch.jit.script(module)).save(tmp_path / "a.pt")
    (weight,) = open_checkpoint(tmp_path / "a.pt").weights
    np.testing.assert_array_equal(weight.read(), module.weight.detach().numpy())


class Lists(torch.nn.Module):
    several: list[torch.Tensor]
    named: dict[str, torch.Tensor]

    def __init__(self):
        super().__init__()
        self.several, self.named = [torch.eye(2), torch.eye(3)], {"x": torch.eye(4)}
        self.pair = (torch.eye(5), 3)

    def forward(self, x):
        return x + self.several[0] + self.named["x"].sum() + self.pair[0].sum()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*is deprecated")
def test_tensors_in_lists_of_a_scripted_module_have_rows(tmp_path):
    torch.jit.script(Lists()).save(tmp_path / "a.pt")
    shapes = sorted(weight.shape for weight in open_checkpoint(tmp_path / "a.pt").weights)
    assert shapes == [(2, 2), (3, 3), (4, 4), (5, 5)]


def test_every_tensor_of_a_safetensors_file_has_a_row(tmp_path):
    kinds = [
        torch.float64,
        torch.bfloat16,
        torch.float8_e4m3fnuz,
        torch.int8,
        torch.bool,
        torch.complex64,
        torch.uint32,
    ]
    tensors = {str(kind): torch.ones(4, 6).to(kind) for kind in kinds}
    tensors |= {"packed": torch.zeros(4, 3, dtype=torch.float4_e2m1fn_x2), "empty": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = weights(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        truth = {key: tuple(file.get_slice(key).get_shape()) for key in set(file.keys())}
    assert {key: one.shape for key, one in found.items()} == truth
    bounded = {key for key, one in found.items() if status(one) == "bounded"}
    assert bounded == {"torch.float64", "torch.bfloat16"}
    assert {key for key, one in found.items() if status(one) == "skipped"} == {"torch.bool", "empty"}


def test_tensors_that_an_index_forgets_have_rows(tmp_path):
    save_file({"a": torch.eye(2), "forgotten": torch.eye(3)}, tmp_path / "1.safetensors")
    save_file({"b": torch.eye(2), "a": 7 * torch.eye(2)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    found = open_checkpoint(tmp_path / "a.safetensors.index.json")
    norms = {weight.name: brackets(weight)[0].upper for weight in found.weights}
    assert norms == pytest.approx({"a": 1, "b": 1, "forgotten": 1, "a#1": 7}, rel=1e-5)
    assert found.notes == ("2 tensors of the shards are not named in the index",)


def test_every_array_of_an_npz_file_has_a_row(tmp_path):
    arrays = {
        "w": np.eye(3),
        "objects": np.array([[1, None]], dtype=object),
        "texts": np.array([["a"]]),
        "record": np.zeros((2, 2), [("x", "f4"), ("y", "f4")]),
        "complex": np.eye(2) * 1j,
        "date": np.zeros((2, 2), "datetime64[s]"),
        "long": np.eye(2, dtype=np.longdouble),
        "bool": np.eye(2, dtype=bool),
        "int": np.eye(2, dtype=np.int64),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=True) as file:
        truth = {key: file[key].shape for key in file.files}
    found = weights(tmp_path / "a.npz")
    assert {key: one.shape for key, one in found.items()} == truth
    assert {key: status(one) for key, one in found.items()} == {
        **dict.fromkeys(arrays, "unknown"),
        "w": "bounded",
        **dict.fromkeys(("texts", "date", "bool"), "skipped"),
    }
    rows = {row.name: row for row in audit(tmp_path / "a.npz").rows}
    assert {key for key, row in rows.items() if row.status == "failed"} == set(truth) - {"w", "bool", "texts", "date"}
    assert all(rows[key].reason for key in rows if key != "w")


@pytest.mark.parametrize("rest", [b"", b"and what is no array"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_array_of_a_file_has_a_row_and_what_else_follows_is_noted(tmp_path, count, rest):
    with (tmp_path / "a.npy").open("wb") as file:
        for scale in range(1, count + 1):
            np.save(file, scale * np.eye(3))
        file.write(rest)
    report = audit(tmp_path / "a.npy")
    assert [row.name for row in report.rows] == ["a", "a#1", "a#2"][:count]
    assert all(row.lower <= scale <= row.upper for scale, row in enumerate(report.rows, 1))
    noted = f"{len(rest)} bytes follow the array, and were not read"
    assert [note.partition(":")[0] for note in report.notes] == [noted] * bool(rest)


@pytest.mark.parametrize("second", [np.eye(3), np.array(["x"])])
def test_what_follows_an_array_in_an_archive_is_noted(tmp_path, second):
    members = {"one.npy": [np.eye(3)], "two.npy": [second, np.eye(2)], "texts.npy": [np.array(["xy"])]}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, arrays in members.items():
            buffer = io.BytesIO()
            for array in arrays:
                np.save(buffer, array)
            archive.writestr(name, buffer.getvalue())
    found = open_checkpoint(tmp_path / "a.npz")
    assert len(found.weights) == 3
    expected = "160 bytes follow the array, and were not read: another array, perhaps, behind 'two'"
    assert found.notes == (expected,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "beside",
    [
        *(defaultdict(kind) for kind in (list, dict, int, float, str, bool, set, tuple, complex, frozenset)),
        defaultdict(list, {"losses": [0.5]}),
        deque([1.0, 2.0], maxlen=2),
        frozenset({1}),
        Counter({"a": 1}),
        Path("/data/run"),
        PureWindowsPath("c:/data"),
    ],
)
def test_plain_containers_and_paths_beside_the_tensors_are_read(tmp_path, beside, protocol):
    held = {"net": {"weight": torch.eye(3)}, "beside": beside, "of tensors": deque([torch.ones(2, 2)])}
    torch.save(held, tmp_path / "a.pt", pickle_protocol=protocol)
    assert set(weights(tmp_path / "a.pt")) == {"net.weight", "of tensors.0"}
