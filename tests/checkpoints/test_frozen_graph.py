"""Frozen graphs: each constant as TensorFlow reads it, kernels by the operations that read them; hostile ones."""

import random

import numpy as np
import pytest
import tensorflow as tf
from bracketed import brackets, weights
from explicit import norm
from readers import fails, refused
from tensor_bundles import FLOAT, field, shape_of
from tensorflow.core.framework.graph_pb2 import GraphDef

from opnorm.auditing.audits import audit
from opnorm.checkpoints.opening import open_checkpoint

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 3, 2, 4)).astype("f4")
MATRIX = RNG.standard_normal((4, 3)).astype("f4")


def constant(graph, name, values, **settings):
    node = graph.node.add(name=name, op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values, **settings))
    return name


def read(graph, name, kind, *inputs):
    node = graph.node.add(name=name, op=kind, input=inputs)
    if kind == "Conv2D":
        node.attr["strides"].list.i.extend([1, 2, 2, 1])
        node.attr["padding"].s = b"SAME"
    return name


def network():
    graph = GraphDef()
    read(graph, "x", "Placeholder")
    read(graph, "conv", "Conv2D", "x", read(graph, "k/read", "Identity", constant(graph, "k", KERNEL)))
    read(graph, "pad", "Pad", "conv", constant(graph, "paddings", [[0, 0], [1, 1], [1, 1], [0, 0]]))
    read(graph, "dense", "MatMul", "pad:0", constant(graph, "w", MATRIX), "^conv")
    function = graph.library.function.add()
    function.signature.name = "inner"
    node = function.node_def.add(name="w", op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(MATRIX * 2))
    function.node_def.add(name="y", op="MatMul", input=["a", "w"])
    function.signature.input_arg.add(name="a")
    return graph


def write(path, graph):
    path.write_bytes(graph.SerializeToString())
    return path


def test_kernels_are_what_their_operations_make_of_them(tmp_path):
    found = weights(write(tmp_path / "a.pb", network()))
    assert set(found) == {"k", "paddings", "w", "inner/w"}
    np.testing.assert_array_equal(found["k"].read(), KERNEL)
    assert found["k"].geometry.text == "convolution, strides 2, padding same"
    for name, array in (("w", MATRIX), ("inner/w", MATRIX * 2)):
        np.testing.assert_array_equal(found[name].read(), array)
        assert brackets(found[name])[0].lower == pytest.approx(norm(array.astype("f8")), rel=2e-6)
    assert not found["w"].geometry.assumed
    assert found["inner/w"].geometry.assumed  # nothing calls the function
    assert found["paddings"].geometry.reason == "settings of an operation"


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int32", "int64", "uint8", "bool", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 3), (0, 3), ()])
def test_every_dtype_is_read_bit_by_bit_or_has_a_reason(tmp_path, kind, shape):
    graph = GraphDef()
    constant(graph, "w", tf.zeros(shape, kind).numpy() + np.ones(shape, bool).astype(tf.as_dtype(kind).as_numpy_dtype))
    (weight,) = open_checkpoint(write(tmp_path / "a.pb", graph)).weights
    tensor = graph.node[0].attr["value"].tensor
    truth = tf.make_ndarray(tensor)
    assert (weight.shape, weight.dtype) == (truth.shape, kind)
    if tensor.tensor_content or kind in ("float32", "float64") or truth.size == 0:  # else a list of other numbers
        values = weight.read()
        assert (values.dtype, values.tobytes()) == (truth.dtype, truth.tobytes())


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_last_of_a_list_stands_for_all_that_follow(tmp_path, kind, count):
    graph, name = GraphDef(), {"float32": "float_val", "float64": "double_val"}[kind]
    constant(graph, "w", np.zeros((4, 3), kind))
    tensor = graph.node[0].attr["value"].tensor
    tensor.ClearField("tensor_content")
    getattr(tensor, name).extend(range(1, count + 1))
    (weight,) = open_checkpoint(write(tmp_path / "a.pb", graph)).weights
    np.testing.assert_array_equal(weight.read(), tf.make_ndarray(tensor))


def test_texts_are_no_kernels(tmp_path):
    graph = GraphDef()
    constant(graph, "s", [b"a", b"b"])
    constant(graph, "w", MATRIX)
    assert {row.name: row.status for row in audit(write(tmp_path / "a.pb", graph)).rows} == {
        "s": "skipped",
        "w": "bounded",
    }


def graph_of(tensor):
    value = field(1, b"value") + field(2, field(8, tensor))
    return field(1, field(1, b"w") + field(2, b"Const") + field(5, value))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (field(1, 1) + field(2, b""), "of a SavedModel name the folder"),
        (b"\xff" * 30, "no protocol buffer"),
        (field(1, field(1, b"w" * 2000) + field(2, b"Const")), None),
        (field(1, field(2, b"C" * 2000)), "name of 2000 bytes"),
        (graph_of(field(1, FLOAT) + field(2, shape_of((-1, 3))) + field(4, bytes(12))), "has the shape"),
        (graph_of(field(1, FLOAT) + field(2, shape_of((2**40, 2**30))) + field(5, bytes(4))), "says that it takes"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(tmp_path, data, match):
    (tmp_path / "a.pb").write_bytes(data)
    if match:
        refused(tmp_path / "a.pb", match)
    else:
        assert open_checkpoint(tmp_path / "a.pb").weights == ()


@pytest.mark.parametrize("content", [bytes(8), bytes(7), b""])
def test_a_constant_of_another_size_has_a_reason(tmp_path, content):
    (tmp_path / "a.pb").write_bytes(graph_of(field(1, FLOAT) + field(2, shape_of((2, 3))) + field(4, content)))
    (weight,) = open_checkpoint(tmp_path / "a.pb").weights
    assert weight.geometry.unknown


def test_a_graph_with_bytes_changed_or_cut_off_is_read_or_refused(tmp_path):
    data = network().SerializeToString()
    failures = 0
    for seed in range(200):
        chance, broken = random.Random(seed), bytearray(data)
        for _ in range(chance.choice([1, 4, 30])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        (tmp_path / "a.pb").write_bytes(broken[: len(broken) - (seed % 3) * 20])
        failures += fails(tmp_path / "a.pb")
    assert failures > 100
