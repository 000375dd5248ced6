"""What each reader finds, bitwise against the library that owns the format, and what it takes tensors for."""

import json

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from samples import BIAS, FILES, KERNEL, MATRIX, functional, keras_file, layer, legacy_file

from opnorm.auditing.audits import audit
from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.guesses import unique
from opnorm.checkpoints.keras_layers import Layer, roles, snake
from opnorm.checkpoints.opening import open_checkpoint

HALVES = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.int8, torch.bool]


def by_name(found):
    return {weight.name: weight for weight in found.weights}


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8).tobytes()


def torch_bits(tensor):
    return bits(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_every_dtype_is_read_bit_by_bit(tmp_path, name, dtype):
    tensors = {"w": (torch.randn(5, 4) * 4).to(dtype), "none": torch.zeros(0, 3).to(dtype)}
    (save_file if name == "a.safetensors" else torch.save)(tensors, tmp_path / name)
    found = by_name(open_checkpoint(tmp_path / name))
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        assert (found[key].shape, found[key].dtype) == (tuple(tensor.shape), str(dtype).removeprefix("torch."))
        assert bits(found[key].read()) == torch_bits(tensor)


def test_safetensors_agree_with_their_library(tmp_path):
    path = FILES["a.safetensors"](tmp_path / "a.safetensors")
    found = by_name(open_checkpoint(path))
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(found)
        for key in found:
            np.testing.assert_array_equal(found[key].read(), file.get_tensor(key))


def test_shards_are_one_checkpoint(tmp_path):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "1.safetensors")
    save_file({"b.weight": torch.zeros(3, 2)}, tmp_path / "2.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a.weight": "1.safetensors", "b.weight": "2.safetensors"}}))
    found = by_name(open_checkpoint(path))
    assert {key: weight.shape for key, weight in found.items()} == {"a.weight": (2, 2), "b.weight": (3, 2)}
    np.testing.assert_array_equal(found["b.weight"].read(), np.zeros((3, 2)))


def test_numpy_arrays_keep_their_order_and_type(tmp_path):
    arrays = {"a": np.asfortranarray(MATRIX), "b": MATRIX.astype(">f8"), "c": np.float32(3), "d": np.arange(3)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = by_name(open_checkpoint(tmp_path / "a.npz"))
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key].read(), array)
        assert found[key].dtype == str(np.asarray(array).dtype.newbyteorder("="))


def _leaves(value, path=()):
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, str(key)))


@pytest.mark.parametrize("old", [False, True])
def test_pytorch_files_agree_with_pytorch(tmp_path, old):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3, 2)
    )
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 2, 3, 3)).sum().backward()
    adam.step()
    base = torch.randn(6, 7)
    views = [base.t(), base[1:5:2, 2:], base[0].expand(3, 7), torch.nn.Parameter(base.bfloat16()), base[3, 3]]
    state = {"state_dict": net.state_dict(), "optimizer": adam.state_dict(), "views": views, "epoch": 10**40, "lr": 0.1}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    found = by_name(open_checkpoint(tmp_path / "a.pth"))
    truth = dict(_leaves(torch.load(tmp_path / "a.pth", weights_only=True)))
    assert set(found) == set(truth)
    for key, tensor in truth.items():
        assert bits(found[key].read()) == torch_bits(tensor.detach())
    assert found["optimizer.state.0.exp_avg"].geometry.reason == "optimizer state"


def test_what_pytorchs_modules_multiply_with_is_bounded_from_their_names_and_shapes(tmp_path):
    """The stride, 2, is in no state dict: the assumed stride, 1, bounds it."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3, stride=2, bias=False), torch.nn.BatchNorm2d(3), torch.nn.Linear(4, 2)
    )
    for tensor in net.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    found = by_name(open_checkpoint(tmp_path / "a.pt"))
    assert all(weight.geometry.assumed for weight in found.values())
    norms = {
        key: spectral_norm(one.geometry.operator(one.read().astype("f8")))
        for key, one in found.items()
        if one.geometry.operator
    }
    assert list(norms) == ["0.weight", "1.weight", "2.weight"]
    conv = net[0](torch.eye(2 * 49).reshape(-1, 2, 7, 7)).reshape(98, -1).detach().double().numpy()
    assert np.linalg.svd(conv, compute_uv=False)[0] <= norms["0.weight"].upper
    norm = net[1].eval()(torch.eye(3).reshape(3, 3, 1, 1)).reshape(3, 3) - net[1](torch.zeros(1, 3, 1, 1)).reshape(1, 3)
    assert norms["1.weight"].upper == pytest.approx(norm.abs().max().item(), rel=1e-5)  # PyTorch's float32
    truth = np.linalg.svd(net[2].weight.detach().double().numpy(), compute_uv=False)[0]
    assert norms["2.weight"].lower == pytest.approx(truth, rel=1e-9)


NAMES = [
    ("encoder.layer.0.attention.query.weight", (8, 8), "Linear"),
    ("model.embed_tokens.weight", (30, 8), "Embedding"),
    ("transformer.wte.weight", (30, 8), "Embedding"),
    ("rnn.weight_hh_l0", (32, 8), "RNN"),
    ("base.q_proj.lora_A.weight", (2, 8), "LoRA"),
    ("params.Dense_0.kernel", (8, 4), "Dense"),
    ("features.0.weight", (4, 3, 3, 3), "Conv"),
    ("params.Conv_0.kernel", (3, 3, 3, 4), "Conv"),
]


@pytest.mark.parametrize(("name", "shape", "kind"), NAMES)
def test_a_name_and_a_shape_tell_the_kind_of_a_tensor(tmp_path, name, shape, kind):
    save_file({name: torch.randn(shape)}, tmp_path / "a.safetensors")
    (weight,) = open_checkpoint(tmp_path / "a.safetensors").weights
    assert (weight.geometry.kind, weight.geometry.assumed) == (kind, True)
    array = weight.read().astype("f8")
    outputs = -1 if name.endswith("kernel") else 0
    stacked = np.linalg.svd(np.moveaxis(array, outputs, 0).reshape(array.shape[outputs], -1), compute_uv=False)[0]
    bounds = spectral_norm(weight.geometry.operator(array))
    assert bounds.upper >= stacked * (1 - 1e-9) if kind == "Conv" else bounds.lower == pytest.approx(stacked, rel=1e-9)


REASONS = [
    ("layer.bias", (4,), "a bias is added"),
    ("norm.weight", (4,), "normalized"),
    ("bn.num_batches_tracked", (), "counter"),
    ("bn.running_mean", (4,), "mean is subtracted"),
    ("optimizer.exp_avg", (4, 4), "optimizer state"),
    ("position_ids", (1, 4), "integers"),
    ("logit_scale", (), "single number"),
    ("layers.0.mixer.A_log", (8, 4), "logarithms"),
    ("attn.relative_position_bias_table", (9, 2), "added"),
    ("odd", (2, 2, 2, 2, 2, 2), "6 axes"),
]


@pytest.mark.parametrize(("name", "shape", "reason"), REASONS)
def test_what_is_no_map_says_why(tmp_path, name, shape, reason):
    tensor = torch.ones(shape).to(torch.int64 if "ids" in name else torch.float32)
    save_file({name: tensor}, tmp_path / "a.safetensors")
    (weight,) = open_checkpoint(tmp_path / "a.safetensors").weights
    assert weight.geometry.operator is None
    assert reason in weight.geometry.reason


def test_a_keras_archive_is_read_by_its_config(tmp_path):
    found = open_checkpoint(keras_file(tmp_path / "a.keras"))
    weights = by_name(found)
    assert {name: weight.geometry.text for name, weight in weights.items()} == {
        "first/kernel": "convolution, strides 2, padding same",
        "last/kernel": "matrix (in, out)",
        "last/bias": "no linear map",
    }
    for name, array in (("first/kernel", KERNEL), ("last/kernel", MATRIX), ("last/bias", BIAS)):
        np.testing.assert_array_equal(weights[name].read(), array)
    assert weights["last/kernel"].constraint == {"class_name": "MaxNorm", "config": {"max_value": 2}}
    assert [(node.name, node.inputs, list(node.weights)) for node in found.graph.nodes] == [
        ("first", ("image",), ["kernel"]),
        ("last", ("first",), ["kernel", "bias"]),
    ]
    assert (found.graph.inputs, found.graph.outputs) == (("image",), ("last",))


def test_layers_whose_groups_carry_no_name_are_matched_by_class_and_order(tmp_path):
    """As Keras 2.12 to 3.5 wrote them."""
    layers = {"dense": ("", [MATRIX]), "dense_1": ("", [MATRIX + 1])}
    config = functional([layer("Dense", "z"), layer("Dense", "a")], [], [])
    found = by_name(open_checkpoint(keras_file(tmp_path / "a.keras", config, layers)))
    np.testing.assert_array_equal(found["z/kernel"].read(), MATRIX)
    np.testing.assert_array_equal(found["a/kernel"].read(), MATRIX + 1)


def test_lambdas_and_foreign_classes_are_named_and_never_taken_for_keras_own(tmp_path):
    foreign = {
        "class_name": "Dense",
        "module": "elsewhere",
        "registered_name": "mine>Dense",
        "config": {"name": "last"},
    }
    config = functional([layer("Lambda", "scale"), foreign], [], [])
    found = open_checkpoint(keras_file(tmp_path / "a.keras", config))
    assert found.notes[0] == "Lambda layer 'scale' is named, not run"
    assert "mine>Dense 'last'" in found.notes[1]
    assert all(weight.geometry.unknown for weight in found.weights if weight.name.startswith("last"))


@pytest.mark.parametrize("module", [None, "elsewhere", "keras.layers"])
@pytest.mark.parametrize("registered", ["mine>Dense", "Custom>Dense", "other", None])
@pytest.mark.parametrize("kind", ["Dense", "Conv2D", "BatchNormalization", "Embedding"])
def test_a_custom_class_with_the_name_of_one_of_keras_is_not_proved_as_that(tmp_path, kind, registered, module):
    """Its call may be ten times Keras's: only Keras's module, or no module and no registration, make it Keras's."""
    entry = {"class_name": kind, "config": {"name": "l"}, "module": module, "registered_name": registered}
    own = (module == "keras.layers" and registered in (None, "other")) or (registered, module) == (None, None)
    arrays = {"Conv2D": [KERNEL], "BatchNormalization": [BIAS, BIAS, BIAS, BIAS**2]}.get(kind, [MATRIX])
    path = keras_file(tmp_path / "a.keras", functional([entry], [], []), {snake(kind): ("l", arrays)})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(functional([entry], [], []))
        for i, array in enumerate(arrays):
            file[f"model_weights/l/{roles(Layer(kind, 'l', {'use_bias': False}), len(arrays))[i]}"] = array
    for name in (path, tmp_path / "a.h5"):
        weights = open_checkpoint(name).weights
        assert len(weights) == len(arrays)
        assert any(weight.geometry.operator for weight in weights) == own
        assert any(weight.geometry.unknown for weight in weights) != own


def test_keras_legacy_files_are_read_by_layer_and_weight_names(tmp_path):
    found = open_checkpoint(legacy_file(tmp_path / "a.h5"))
    weights = by_name(found)
    assert list(weights) == ["first/kernel", "last/kernel", "last/bias"]
    np.testing.assert_array_equal(weights["last/kernel"].read(), MATRIX)
    assert not any(weight.geometry.assumed for weight in found.weights)
    assert [node.name for node in found.graph.nodes] == ["first", "last"]


def test_a_graph_in_the_notation_of_keras_2_is_read(tmp_path):
    """There a nested model's first call has number 1, and tensors may stand among the keywords."""

    def old(kind, name, nodes, **config):
        return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}

    inner = [{"class_name": "InputLayer", "config": {"name": "i"}}, {"class_name": "Dense", "config": {"name": "d"}}]
    layers = [
        old("InputLayer", "x", []),
        old("Sequential", "inner", [[["x", 0, 0, {}]], [["inner", 1, 0, {}]]], layers=inner),
        old("TFOpLambda", "plus", [["inner", 2, 0, {"y": ["x", 0, 0], "name": None}]]),
    ]
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [["plus", 0, 0]]}
    config = {"class_name": "Functional", "config": {"name": "m", "layers": layers, **ends}}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file["model_weights/inner/d/kernel:0"] = MATRIX
    found = open_checkpoint(tmp_path / "a.h5")
    assert [(node.name, node.inputs, list(node.weights)) for node in found.graph.nodes] == [
        ("inner/d", ("x",), ["kernel"]),
        ("inner/d#1", ("inner/d",), ["kernel"]),
        ("plus", ("inner/d#1", "x"), []),
    ]
    assert found.graph.outputs == ("plus",)


def test_bfloat16_of_keras_files_is_told_from_opaque_bytes(tmp_path):
    array = MATRIX.astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file.create_dataset("layers/dense/vars/0", data=array.view("V2")).attrs["dtype"] = "bfloat16"
    (weight,) = open_checkpoint(tmp_path / "a.weights.h5").weights
    assert (weight.dtype, weight.geometry.kind) == ("bfloat16", "Dense")
    assert bits(weight.read()) == bits(array)


def test_a_layer_inside_opnorms_wrapper_is_read_as_itself(tmp_path):
    inner = layer("Conv2D", "conv", strides=[2, 2], padding="same")
    wrapper = {"class_name": "SpectralNormalization", "module": "opnorm.wrappers", "name": "sn"}
    wrapper |= {"registered_name": "opnorm>SpectralNormalization", "config": {"name": "sn", "layer": inner}}
    layers = {"spectral_normalization": ("sn", [BIAS]), "spectral_normalization/layer": ("conv", [KERNEL])}
    found = open_checkpoint(keras_file(tmp_path / "a.keras", functional([wrapper], [], []), layers))
    weights = by_name(found)
    assert weights["sn/conv/kernel"].geometry.text == "convolution, strides 2, padding same"
    assert spectral_norm(weights["sn/conv/kernel"].geometry.readings[0].operator(KERNEL)).upper == 1  # as applied
    assert weights["sn/0"].geometry.operator is None
    assert found.notes == ()


@pytest.mark.parametrize("kind", ["Addons>WeightNormalization", "mine>SpectralNorm", "deel-lip>LipschitzWrapper"])
def test_a_kernel_that_a_foreign_wrapper_may_change_is_unknown(tmp_path, kind):
    wrapper = layer(kind.split(">")[1], "w", layer=layer("Dense", "d")) | {"module": "m", "registered_name": kind}
    layers = {snake(kind): ("w", [MATRIX]), f"{snake(kind)}/layer": ("d", [MATRIX, BIAS])}
    found = open_checkpoint(keras_file(tmp_path / "a.keras", functional([wrapper], [], []), layers))
    matrices = [weight for weight in found.weights if weight.shape == MATRIX.shape]
    assert len(matrices) == 2
    for weight in matrices:
        assert weight.geometry.unknown
        assert "may change it in each call" in weight.geometry.reason


def test_a_name_that_is_taken_gets_the_next_number():
    taken = set()
    assert [unique("w", taken) for _ in range(40)] == ["w", *(f"w#{i}" for i in range(1, 40))]
    assert len({unique(name, taken) for name in ["a#2", "a#1", "a", "a", "a", "a#1", "a#1#1"]}) == 7


@pytest.mark.parametrize(
    ("module", "layer", "known"),
    [
        ("embed_tokens", torch.nn.Embedding(9, 4), True),
        ("embeddings.word_embeddings", torch.nn.Embedding(3, 4), True),
        ("embedding", torch.nn.Embedding(9, 4), True),
        ("emb", torch.nn.Embedding(9, 4), True),
        ("shared", torch.nn.Embedding(9, 4), True),
        ("bond_embedding", torch.nn.Linear(3, 9, bias=False), False),
        ("bond_embedding", torch.nn.Linear(3, 9), True),
        ("encoder.embedding_hidden_mapping_in", torch.nn.Linear(3, 9), True),
        ("time_embedding.linear_1", torch.nn.Linear(9, 3), True),
        ("patch_embed.proj", torch.nn.Linear(9, 3, bias=False), False),
    ],
)
def test_which_axis_of_an_embedding_is_the_inputs_is_never_guessed_wrongly(tmp_path, module, layer, known):
    save_file(
        {f"{module}.{name}": tensor.detach() for name, tensor in layer.named_parameters()}, tmp_path / "a.safetensors"
    )
    row = next(row for row in audit(tmp_path / "a.safetensors").rows if len(row.shape) == 2)
    inputs, outputs = row.shape if isinstance(layer, torch.nn.Embedding) else row.shape[::-1]
    truth = np.linalg.norm(layer.weight.detach().double().numpy(), 2)
    assert row.lower <= truth * (1 + 1e-9) <= row.upper * (1 + 1e-9)
    assert (row.rms_norm is not None) == known
    assert row.rms_norm is None or row.rms_norm == pytest.approx(truth * np.sqrt(inputs / outputs), rel=1e-5)
