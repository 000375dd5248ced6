"""Flax's msgpack files and Orbax's folders: what is found in them, and how broken ones end."""

import json
import sys

import ml_dtypes
import msgpack
import numpy as np
import pytest
from bracketed import between, brackets, weights
from explicit import norm
from readers import fails, refused
from samples import flax_file

from opnorm.auditing.audits import audit
from opnorm.auditing.sandbox import is_native
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.opening import open_checkpoint

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((4, 3)).astype("f4")
DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint8", "bool", "complex64"]
SMALL = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def chunked(array, size):
    """Return an array as flax writes those of more than 1 GiB."""
    flat = array.reshape(-1)
    chunks = {str(i): flat[at : at + size] for i, at in enumerate(range(0, len(flat), size))}
    shape = {str(i): n for i, n in enumerate(array.shape)}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}


def test_every_dtype_is_read_bit_by_bit(tmp_path):
    arrays = {str(np.dtype(kind)): (MATRIX * 4).astype(kind) for kind in [*DTYPES, *SMALL]}
    arrays |= {"none": np.zeros((0, 3), "f4"), "one": np.array(2.5)}
    found = weights(flax_file(tmp_path / "a.msgpack", {**arrays, "list": [arrays["one"], None, 1, "x", 2.5, -3]}))
    assert set(found) == {*arrays, "list/0"}
    for name, array in arrays.items():
        values = found[name].read()
        assert (values.shape, values.dtype) == (array.shape, array.dtype)
        assert values.tobytes() == array.tobytes()


@pytest.mark.parametrize("size", [1, 5, 7, 12, 100])
def test_an_array_in_chunks_is_one_row(tmp_path, size):
    found = weights(flax_file(tmp_path / "a.msgpack", {"params": {"kernel": chunked(MATRIX, size)}, "more": MATRIX}))
    assert list(found) == ["params/kernel", "more"]
    np.testing.assert_array_equal(found["params/kernel"].read(), MATRIX)


def test_a_train_state_is_read_by_flaxs_names(tmp_path):
    scale, variance = np.array([1, 2, 3], "f4"), np.array([0.25, 1, 4], "f4")
    params = {"BatchNorm_0": {"scale": scale, "bias": scale}, "Conv_0": {"kernel": RNG.standard_normal((3, 3, 2, 4))}}
    params |= {"Dense_0": {"kernel": MATRIX}, "Embed_0": {"embedding": MATRIX}, "LayerNorm_0": {"scale": scale}}
    stats = {"BatchNorm_0": {"mean": scale, "var": variance}}
    state = {"0": {"count": np.int32(3).reshape(()), "mu": params, "nu": params}, "1": {}}
    tree = {"params": params, "batch_stats": stats, "opt_state": state}
    found = weights(flax_file(tmp_path / "a.msgpack", tree))
    assert brackets(found["params/BatchNorm_0/scale"])[0].lower == pytest.approx(2, rel=1e-4)
    assert found["batch_stats/BatchNorm_0/mean"].geometry.reason == g.MEAN
    assert found["params/LayerNorm_0/scale"].geometry.reason == g.SCALE
    for name in ("params/Dense_0/kernel", "params/Embed_0/embedding"):
        assert brackets(found[name])[0].lower == pytest.approx(norm(MATRIX.astype("f8")), rel=2e-6)
    moments = [weight for name, weight in found.items() if "/mu/" in name or "/nu/" in name]
    assert {weight.geometry.reason for weight in moments} == {g.OPTIMIZER}
    assert found["params/Conv_0/kernel"].geometry.text.startswith("convolution (*spatial, in, out)")


def test_a_variance_without_a_scale_has_a_norm(tmp_path):
    stats = {"BatchNorm_0": {"mean": np.ones(2, "f4"), "var": np.array([0.25, 4], "f4")}}
    found = weights(flax_file(tmp_path / "a.msgpack", {"batch_stats": stats, "var": np.ones(3, "f4")}))
    assert brackets(found["batch_stats/BatchNorm_0/var"])[0].lower == pytest.approx(2, rel=1e-4)
    assert found["var"].geometry.operator is None


@pytest.mark.parametrize("value", [msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), msgpack.ExtType(77, b"xyz")])
def test_what_holds_no_array_has_a_row(tmp_path, value):
    weight = weights(flax_file(tmp_path / "a.msgpack", {"w": MATRIX, "x": value}))["x"]
    assert weight.geometry.unknown


def array(shape, dtype, data, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


BAD = {
    "bytes follow": msgpack.packb({"w": 1}) + b"\0",
    "a deep table": b"\x81\xa1a" * 3000 + b"\xc0",
    "a huge map": b"\xdf\xff\xff\xff\xff",
    "a huge text": b"\x81\xdb\xff\xff\xff\xff",
    "a key that is no text": msgpack.packb({7: 1}),
    "no msgpack": b"\x81\xa1a\xc1",
    "a shape that lies": msgpack.packb({"w": array((2, 3), "float32", bytes(20))}),
    "a shape of texts": msgpack.packb({"w": array(("a", 3), "float32", bytes(24))}),
    "a negative shape": msgpack.packb({"w": array((-2, 3), "float32", bytes(24))}),
    "many axes": msgpack.packb({"w": array((1,) * 40, "float32", bytes(4))}),
    "no array": msgpack.packb({"w": msgpack.ExtType(1, b"\x93\x01")}),
    "an array too long": msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(((1,), "int8", b"x")) + b"y")}),
    "chunks of nothing": msgpack.packb({"w": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}}),
    "other chunks": msgpack.packb({"w": {"__msgpack_chunked_array__": True, "chunk": 1}}),
    "a gap": msgpack.packb({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"3": 1}}}),
    "lists without end": b"\x91" * 100_000,
    "many values": b"\xdd\x00\x20\x00\x00" + b"\xc0" * 2**21,
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, case):
    (tmp_path / "a.msgpack").write_bytes(BAD[case])
    refused(tmp_path / "a.msgpack", "Cannot read")


@pytest.mark.parametrize("dtype", ["object", "O", "U10", "V8", "f4,f4", "datetime64[s]", "bfloat", "float9", "x" * 500])
def test_a_dtype_that_is_none_has_a_row(tmp_path, dtype):
    (tmp_path / "a.msgpack").write_bytes(msgpack.packb({"w": array((2,), dtype, bytes(8))}))
    (weight,) = open_checkpoint(tmp_path / "a.msgpack").weights
    assert weight.geometry.unknown


# --- Orbax


def orbax_folder(path, arrays, *, packed=True, driver="zarr"):
    """Write arrays where Orbax does: in a key-value store, or each in a folder of its own."""
    tensorstore = pytest.importorskip("tensorstore")
    path.mkdir(parents=True)
    base = {"driver": "file", "path": f"{path}/"}
    for name, values in arrays.items():
        place = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        place = place if packed else {**base, "path": f"{path}/{name}/"}
        spec = {"driver": driver, "kvstore": place}
        kind = tensorstore.dtype(values.dtype)
        tensorstore.open(spec, create=True, dtype=kind, shape=values.shape).result().write(values).result()
    (path / "_METADATA").write_text(json.dumps({"tree_metadata": {}}))
    return path


ARRAYS = {
    "params.Dense_0.kernel": MATRIX,
    "params.Conv_0.kernel": RNG.standard_normal((3, 3, 2, 4)).astype(ml_dtypes.bfloat16),
    "opt_state.0.mu.Dense_0.kernel": MATRIX,
    "norm.scale.value": np.array([1, 2.0]),
    "norm.mean.value": np.array([1, 2.0]),
    "norm.var.value": np.array([0.25, 4.0]),
    "step": np.array(3),
}


@pytest.mark.parametrize(("packed", "driver"), [(True, "zarr"), (True, "zarr3"), (False, "zarr"), (False, "zarr3")])
def test_an_orbax_folder_is_read_bit_by_bit(tmp_path, packed, driver):
    path = orbax_folder(tmp_path / "ck", ARRAYS, packed=packed, driver=driver)
    found = weights(path)
    assert set(found) == {name.removesuffix(".value") for name in ARRAYS}
    for name, values in ARRAYS.items():
        weight = found[name.removesuffix(".value")]
        assert (weight.read().tobytes(), weight.dtype) == (values.tobytes(), str(values.dtype))
    assert between(found["params.Dense_0.kernel"])[0] == pytest.approx(norm(MATRIX.astype("f8")), rel=2e-6)
    assert brackets(found["norm.scale"])[0].lower == pytest.approx(2, rel=1e-4)
    assert found["opt_state.0.mu.Dense_0.kernel"].geometry.reason == g.OPTIMIZER
    assert found["step"].geometry.reason == g.COUNTER


@pytest.mark.parametrize("packed", [True, False])
def test_of_a_managers_folder_the_last_step_is_read(tmp_path, packed):
    for step in (2, 10, 9):
        orbax_folder(tmp_path / f"{step}" / "default", {"w.kernel": MATRIX + step}, packed=packed)
    (tmp_path / "11.orbax-checkpoint-tmp-12").mkdir()
    found = open_checkpoint(tmp_path)
    assert found.notes == ("of the 3 steps in the folder the last is read: 10",)
    np.testing.assert_array_equal(found.weights[0].read(), MATRIX + 10)


def test_a_folder_that_tensorstore_reads_is_read_in_a_process_of_its_own(tmp_path):
    path = orbax_folder(tmp_path / "run" / "3" / "default", ARRAYS)
    assert all(is_native(str(folder)) for folder in (path, path.parent, tmp_path / "run"))
    assert not is_native(str(tmp_path / "other"))
    here, apart = (audit(path, sandbox=sandbox) for sandbox in (False, True))
    assert [row._replace(seconds=0) for row in here.rows] == [row._replace(seconds=0) for row in apart.rows]


def test_the_items_of_a_step_are_told_apart(tmp_path):
    for item in ("params", "ema"):
        orbax_folder(tmp_path / "7" / item, {"w.kernel": MATRIX})
    assert set(weights(tmp_path)) == set(weights(tmp_path / "7")) == {"params.w.kernel", "ema.w.kernel"}


@pytest.mark.parametrize("name", ["manifest.ocdbt", "d"])
def test_a_damaged_store_is_refused(tmp_path, name):
    path = orbax_folder(tmp_path / "ck", ARRAYS)
    files = [path / name] if name != "d" else sorted((path / "d").iterdir())
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] + b"x" * 20)
    assert fails(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [2**40, 2**20]), ("chunks", [2**30, 2**30]), ("dtype", "<f999"), ("shape", "x"), ("shape", [-1, 3])],
)
def test_an_array_that_makes_no_sense_is_refused(tmp_path, key, value):
    path = orbax_folder(tmp_path / "ck", {"w.kernel": MATRIX}, packed=False)
    file = path / "w.kernel" / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refused(path, "Cannot read")


def test_tensorstore_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    path = orbax_folder(tmp_path / "ck", {"w.kernel": MATRIX})
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    refused(path, r"tensorstore: pip install 'opnorm\[orbax\]'")
