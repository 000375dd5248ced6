"""Small files of every format, written by the libraries that own the formats, without Keras."""

import io
import json
import warnings
import zipfile

import gguf
import h5py
import msgpack
import numpy as np
import onnx
import tensor_bundles
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tflite_files import Operator, Tensor, tflite_model

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 3, 2, 4)).astype("float32")
MATRIX = RNG.standard_normal((4, 3)).astype("float32")
BIAS = RNG.standard_normal(3).astype("float32")
TABLE = np.arange(32, dtype="float32").reshape(4, 8)


def layer(kind, name, feeds=(), **config):
    """Return a layer as Keras 3 writes it into a functional config."""
    calls = [{"class_name": "__keras_tensor__", "config": {"shape": [None], "keras_history": [f, 0, 0]}} for f in feeds]
    nodes = [{"args": calls if len(calls) < 2 else [calls], "kwargs": {}}] if calls else []
    entry = {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}
    return {**entry, "name": name, "inbound_nodes": nodes}


def functional(layers, inputs, outputs):
    ends = [[[name, 0, 0] for name in names] for names in (inputs, outputs)]
    config = {"name": "model", "layers": layers, "input_layers": ends[0], "output_layers": ends[1]}
    return {"module": "keras.src.models.functional", "class_name": "Functional", "config": config}


CONFIG = functional(
    [
        layer("InputLayer", "image"),
        layer("Conv2D", "first", ["image"], strides=[2, 2], padding="same", dilation_rate=[1, 1], groups=1),
        layer("Dense", "last", ["first"], kernel_constraint={"class_name": "MaxNorm", "config": {"max_value": 2}}),
    ],
    ["image"],
    ["last"],
)


def weights_h5(layers, **settings):
    """Return the bytes of a Keras 3 weights file: `layers` is {group: (name, arrays)}."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for group, (name, arrays) in layers.items():
            variables = file.create_group(f"layers/{group}/vars")
            variables.attrs["name"] = name
            for i, array in enumerate(arrays):
                variables.create_dataset(str(i), data=array, **settings)
    return buffer.getvalue()


LAYERS = {"conv2d": ("first", [KERNEL]), "dense": ("last", [MATRIX, BIAS])}


def keras_file(path, config=CONFIG, layers=LAYERS, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights_h5(layers))
    return path


def legacy_file(path):
    with h5py.File(path, "w") as file:
        entries = [
            {"class_name": "Conv2D", "config": {"name": "first", "strides": [1, 1], "padding": "same"}},
            {"class_name": "Dense", "config": {"name": "last"}},
        ]
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"name": "m", "layers": entries}}
        )
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = np.array([b"first", b"last"])
        for name, arrays in (("first", {"kernel": KERNEL}), ("last", {"bias": BIAS, "kernel": MATRIX})):
            group = weights.create_group(name)
            group.attrs["weight_names"] = np.array([f"{name}/{role}:0".encode() for role in arrays])
            for role, array in arrays.items():
                group[f"{name}/{role}:0"] = array
    return path


def h5_file(path):
    path.write_bytes(weights_h5(LAYERS))
    return path


def safetensors_file(path):
    save_file({"linear.weight": MATRIX, "linear.bias": BIAS, "conv.weight": KERNEL.T.copy()}, path)
    return path


def npz_file(path):
    np.savez(path, kernel=MATRIX, bias=BIAS)
    return path


def npy_file(path):
    np.save(path, MATRIX)
    return path


def torch_file(path, **settings):
    torch.save({"linear.weight": torch.from_numpy(MATRIX), "linear.bias": torch.from_numpy(BIAS)}, path, **settings)
    return path


def old_torch_file(path):
    return torch_file(path, _use_new_zipfile_serialization=False)


def torch_index_file(path):
    """Write the index of two shards, one of them from before PyTorch 1.6."""
    torch_file(path.with_name("shard-1.bin"), _use_new_zipfile_serialization=False)
    torch.save({"last.weight": torch.from_numpy(MATRIX)}, path.with_name("shard-2.bin"))
    places = {"linear.weight": "shard-1.bin", "linear.bias": "shard-1.bin", "last.weight": "shard-2.bin"}
    path.write_text(json.dumps({"metadata": {"total_size": 108}, "weight_map": places}))
    return path


def onnx_model(nodes, tensors, inputs=("x",), outputs=("y",), **settings):
    """Return a model whose open tensors have no known shape."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names] for names in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "graph", *ends, initializer=constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, **settings)


def onnx_file(path):
    nodes = [helper.make_node("MatMul", ["x", "kernel"], ["m"]), helper.make_node("Add", ["m", "bias"], ["y"])]
    onnx.save(onnx_model(nodes, {"kernel": RNG.standard_normal((40, 30)).astype("float32"), "bias": BIAS}), path)
    return path


def tensorflow_file(path, arrays=None):
    arrays = {"conv/kernel": KERNEL, "dense/kernel": MATRIX} if arrays is None else arrays
    pairs, at = [], 0
    for name, array in sorted(arrays.items()):
        pairs.append((0, name.encode(), tensor_bundles.entry(array.shape, array.nbytes, at)))
        at += array.nbytes
    data = b"".join(array.tobytes() for _, array in sorted(arrays.items()))
    return tensor_bundles.write(path.parent, pairs, data=data, name=path.name.removesuffix(".index"))


def flax_array(array):
    """Return an array as flax writes it."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def flax_file(path, tree=None):
    layers = {"Dense_0": {"kernel": MATRIX, "bias": BIAS}, "Conv_0": {"kernel": KERNEL}}
    tree = {"params": layers, "step": 3, "none": None} if tree is None else tree
    path.write_bytes(msgpack.packb(tree, default=flax_array))
    return path


def distributed_file(path, state=None):
    from torch.distributed import checkpoint

    if state is None:
        state = {"model": {"linear.weight": torch.from_numpy(MATRIX), "linear.bias": torch.from_numpy(BIAS)}, "step": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it assumes one process, which it is told
        checkpoint.save(state, checkpoint_id=path.parent, no_dist=True)
    return path


def tflite_file(path):
    tensors = [
        Tensor("x", (1, 9, 9, 2)),
        Tensor("kernel", (4, 3, 3, 2), KERNEL.transpose(3, 0, 1, 2).copy()),
        Tensor("m", (1, 4)),
        Tensor("w", (3, 4), MATRIX.T.copy()),
        Tensor("bias", (3,), BIAS),
        Tensor("y", (1, 3)),
    ]
    options = ("Conv2DOptions", {"Padding": 0, "StrideH": 2, "StrideW": 2})
    operators = [Operator("CONV_2D", (0, 1, -1), (2,), options), Operator("FULLY_CONNECTED", (2, 3, 4), (5,))]
    path.write_bytes(tflite_model(tensors, operators))
    return path


def gguf_file(path, arrays=None, architecture="llama", **settings):
    """Write arrays by name, those of bytes as (bytes, type) of GGML's."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_token_list(["a", "b", "c"])
    for key, value in settings.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key.replace("__", "."), value)
    few = {"blk.0.attn_q.weight": MATRIX, "output_norm.weight": BIAS, "token_embd.weight": TABLE}  # the last unpadded
    arrays = few if arrays is None else arrays
    for name, array in arrays.items():
        values, kind = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FILES = {
    "a.keras": keras_file,
    "a.weights.h5": h5_file,
    "a.h5": legacy_file,
    "a.safetensors": safetensors_file,
    "a.npz": npz_file,
    "a.npy": npy_file,
    "a.pt": torch_file,
    "a.bin": old_torch_file,
    "a.bin.index.json": torch_index_file,
    "a.onnx": onnx_file,
    "a.index": tensorflow_file,
    "a.msgpack": flax_file,
    ".metadata": distributed_file,
    "a.tflite": tflite_file,
    "a.gguf": gguf_file,
}
