"""The good files that `fuzz_readers.py` damages: those of the tests, and for some formats a file with more in it."""

import io
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from samples import FILES, functional, keras_file, layer, onnx_model

RNG = np.random.default_rng(1)


def numbers(*shape):
    return RNG.standard_normal(shape).astype("float32")


def torch_file(path):
    """Write tensors of every kind that a file of PyTorch's may hold."""
    sparse = torch.sparse_coo_tensor([[0, 1]], [1.0, 2.0], (2,), check_invariants=True)
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    quantized = torch.quantize_per_channel(torch.ones(2, 2), scales, zeros, 0, torch.qint8)
    state = {"a.weight": torch.ones(3, 2), "s": sparse, "q": quantized, "n": np.ones((2, 3)), "l": [{1: "x"}]}
    state |= {"c.weight_g": torch.ones(2, 1, 1), "c.weight_v": torch.ones(2, 3, 3), "d.weight": torch.ones(4, 2).t()}
    torch.save(state, path)
    return path


def safetensors_file(path):
    """Write codes with scales, and weights of several tensors."""
    tensors = {"l.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(2, 2)}
    tensors |= {"w_orig": torch.ones(2, 3), "weight_g": torch.ones(2, 1), "weight_v": torch.ones(2, 3)}
    tensors |= {"b.weight": torch.ones(3), "b.running_var": torch.ones(3), "conv.weight": torch.ones(4, 2, 3, 3)}
    save_file(tensors, path)
    return path


def keras_network(path):
    """Write a network with branches, pooling, normalization, a wrapper and a model inside."""
    inner = functional([layer("InputLayer", "i"), layer("Dense", "d", ["i"], activation="gelu")], ["i"], ["d"])
    layers = [
        layer("InputLayer", "image", batch_shape=[None, 8, 8, 2]),
        layer("SeparableConv2D", "first", ["image"], strides=[1, 1], padding="same", activation="relu"),
        layer("BatchNormalization", "norm", ["first"], epsilon=1e-3, axis=-1),
        layer("AveragePooling2D", "pool", ["norm"], pool_size=[2, 2], strides=[2, 2], padding="valid"),
        layer("UpSampling2D", "up", ["pool"], size=[2, 2], interpolation="bilinear"),
        layer("Add", "sum", ["up", "norm"]),
        layer("GlobalAveragePooling2D", "mean", ["sum"]),
        {**layer("Functional", "inner", ["mean"]), "config": {**inner["config"], "name": "inner"}},
        layer("EinsumDense", "last", ["inner"], equation="ab,bc->ac", activation=None),
    ]
    weights = {
        "separable_conv2d": ("first", [numbers(3, 3, 2, 1), numbers(1, 1, 2, 4), numbers(4)]),
        "batch_normalization": ("norm", [*map(np.abs, (numbers(4),) * 4)]),
        "functional/layers/dense": ("d", [numbers(4, 3), numbers(3)]),
        "einsum_dense": ("last", [numbers(3, 2)]),
    }
    return keras_file(path, functional(layers, ["image"], ["last"]), weights, zipfile.ZIP_DEFLATED)


def plain_h5(path):
    """Write datasets of other layouts: in chunks, packed, of other types, as soft links."""
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "model_weights/a/kernel", data=numbers(8, 6), chunks=(4, 3), compression="gzip", shuffle=True
        )
        file["model_weights/a/bias"] = numbers(6)
        file["b/kernel"] = numbers(3, 3, 2, 4).astype("float16")
        file["texts"] = [b"one", b"two"]
        file["pairs"] = np.zeros(3, [("x", "f4"), ("y", "i8")])
        file["again"] = h5py.SoftLink("/b/kernel")
        file.attrs["keras_version"] = "2.4.0"
    return path


def network_onnx(path):
    """Write a network with a function, a branch, quantized weights and ones that are computed."""
    step = helper.make_function(
        "own", "Step", ["a", "w"], ["b"], [helper.make_node("MatMul", ["a", "w"], ["b"])], [helper.make_opsetid("", 21)]
    )
    ends = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    branch = helper.make_graph([helper.make_node("MatMul", ["v", "w2"], ["t"])], "branch", [], ends)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["k"], axis=0),
        helper.make_node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Sigmoid", ["p"], ["g"]),
        helper.make_node("Mul", ["g", "p"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["r"], axes=[2, 3], keepdims=0),
        helper.make_node("Transpose", ["w1"], ["w1t"], perm=[1, 0]),
        helper.make_node("Step", ["r", "w1t"], ["v"], domain="own"),
        helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch),
    ]
    tensors = {
        "q": RNG.integers(-9, 9, (4, 2, 3, 3)).astype("int8"), "s": np.abs(numbers(4)), "z": np.zeros(4, "int8"),
        "w1": numbers(3, 4), "w2": numbers(3, 3), "condition": np.array([True]),
    }  # fmt: skip
    model = onnx_model(nodes, tensors, functions=[step])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2, 8, 8]))
    onnx.save(model, path)
    return path


def old_torch_file(path):
    buffer = io.BytesIO()
    shared = torch.ones(6)
    torch.save(
        {"a": shared[:3], "b": shared[3:], "t": {"k": torch.ones(2, 2).t()}},
        buffer,
        _use_new_zipfile_serialization=False,
    )
    path.write_bytes(buffer.getvalue())
    return path


_FULLER = {
    "a.keras": keras_network,
    "a.h5": plain_h5,
    "a.safetensors": safetensors_file,
    "a.pt": torch_file,
    "a.bin": old_torch_file,
    "a.onnx": network_onnx,
}


def good_files(name, folder):
    """Write the good files of one format into `folder`, and return their paths, the test's first."""
    makers = [FILES[name], *([_FULLER[name]] if name in _FULLER else [])]
    paths = []
    for i, make in enumerate(makers):
        (folder / str(i)).mkdir(parents=True)
        paths.append(make(folder / str(i) / name))
    return paths
