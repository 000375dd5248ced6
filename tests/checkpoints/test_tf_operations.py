"""What the operations in a `.meta` file or a SavedModel say of kernels, against what TensorFlow computes."""

from time import monotonic

import numpy as np
import pytest
import tensorflow as tf
from bracketed import between, weights
from explicit import norm
from readers import fails
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.saved_objects import read_saved
from opnorm.checkpoints.tf_graph import Body, Operation
from opnorm.checkpoints.tf_uses import uses

v1 = tf.compat.v1
VARIABLE = Operation("VarHandleOp", (), {})
RNG = np.random.default_rng(0)


def conv(strides, padding="SAME", dilations=1):
    return lambda x, k: tf.nn.conv2d(x, k, strides, padding, dilations=dilations)


def up(x, k):
    size = x.shape[1] * 2
    return tf.nn.conv2d_transpose(x, k, tf.stack([tf.shape(x)[0], size, size, k.shape[2]]), 2)


def apart(x, k):
    return tf.nn.depthwise_conv2d(x, k, (1, 2, 2, 1), "SAME")


CASES = {  # the kernel's shape, an input without its batch, and what is done
    "conv/kernel": ((3, 3, 2, 4), (13, 13, 2), conv(2)),
    "valid/w": ((4, 4, 2, 3), (13, 13, 2), conv(3, "VALID")),
    "dilated/kernel": ((3, 3, 2, 3), (14, 14, 2), conv(1, dilations=2)),
    "up/kernel": ((3, 3, 3, 2), (8, 8, 2), up),
    "layer/depth": ((3, 3, 4, 2), (12, 12, 4), apart),
    "fc/weights": ((5, 7), (5,), lambda x, k: x @ k),
    "tied/w": ((7, 5), (5,), lambda x, k: tf.matmul(x, k, transpose_b=True)),
}


def truth(name, kernel):
    """Return the norm of what is done, on inputs of one size."""
    _, shape, layer = CASES[name]
    basis = np.eye(int(np.prod(shape)), dtype="f4").reshape(-1, *shape)
    return norm(np.reshape(layer(tf.constant(basis), tf.constant(kernel)), (len(basis), -1)).astype("f8"))


def known(weight, name, kernel):
    found, exact = between(weight), len(kernel.shape) == 2
    value = truth(name, kernel)
    assert value <= found[1] * (1 + 1e-6)  # TensorFlow's float32
    assert found[1] <= value * (1 + 1e-5 if exact else 1.25)  # of images of every size, and of this one
    assert weight.geometry.assumed == (weight.geometry.kind == "Conv")  # whose groups the operation counts itself


def saved(tmp_path, build):
    with tf.Graph().as_default(), v1.Session() as sess:
        build()
        sess.run(v1.global_variables_initializer())
        return v1.train.Saver().save(sess, str(tmp_path / "model.ckpt"), global_step=3)


def kernels():
    return {name: RNG.standard_normal(shape).astype("f4") for name, (shape, _, _) in CASES.items()}


@pytest.mark.parametrize("resource", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_meta_file_tells_what_is_done_with_a_kernel(tmp_path, resource, trained):
    arrays = kernels()

    def build():
        results = []
        for name, (_, shape, layer) in CASES.items():
            kernel = v1.get_variable(name, initializer=arrays[name], use_resource=resource)
            results.append(tf.reduce_sum(layer(v1.placeholder(tf.float32, (None, *shape)), kernel)))
        if trained:
            v1.train.AdamOptimizer().minimize(tf.add_n(results))

    found = weights(saved(tmp_path, build))
    for name, kernel in arrays.items():
        known(found[name], name, kernel)
    assert "strides 2" in found["conv/kernel"].geometry.text


@pytest.mark.parametrize("way", ["divided", "squared", "averaged", "two strides"])
def test_a_kernel_that_is_read_in_other_ways_too_is_not_known(tmp_path, way):
    kernel = RNG.standard_normal((3, 3, 2, 4)).astype("f4")

    def build():
        x = v1.placeholder(tf.float32, (None, 8, 8, 2))
        w = v1.get_variable("layer/kernel", initializer=kernel)
        conv(2)(x, w / tf.norm(w) if way == "divided" else w)
        if way == "squared":
            tf.reduce_sum(w**2)
        elif way == "averaged":
            tf.train.ExponentialMovingAverage(0.9).apply([w])
        elif way == "two strides":
            conv(3)(x, w)

    weight = weights(saved(tmp_path, build))["layer/kernel"]
    assert weight.geometry.assumed
    assert len(weight.geometry.readings) >= 1


class Net(tf.Module):
    """A network whose layers are functions inside functions."""

    def __init__(self, arrays):
        super().__init__()
        self.kernels = {name.replace("/", "_"): tf.Variable(array, name=name) for name, array in arrays.items()}

    @tf.function
    def layer(self, x, name):
        return CASES[name][2](x, self.kernels[name.replace("/", "_")])

    @tf.function(input_signature=[{n: tf.TensorSpec((None, *shape)) for n, (_, shape, _) in CASES.items()}])
    def __call__(self, inputs):
        return {name: self.layer(x, name) for name, x in inputs.items()}


def test_the_functions_of_a_saved_model_tell_it_too(tmp_path):
    arrays = kernels()
    tf.saved_model.save(Net(arrays), str(tmp_path / "m"))
    found = weights(tmp_path / "m")
    assert set(found) == set(arrays)
    for name, kernel in arrays.items():
        known(found[name], name, kernel)


def test_functions_that_call_themselves_come_to_an_end(tmp_path):
    model = SavedModel()
    graph = model.meta_graphs.add()
    graph.graph_def.node.add(name="v", op="VarHandleOp")
    for i in range(3):
        function = graph.graph_def.library.function.add()
        function.signature.name = f"f{i}"
        function.signature.input_arg.add(name="a")
        function.signature.input_arg.add(name="b")
        for j in range(3):
            call = function.node_def.add(
                name=f"c{j}", op="StatefulPartitionedCall", input=["b", "a"] if j else ["a", "a"]
            )
            call.attr["f"].func.name = f"f{(i + j) % 3}"
    start = graph.graph_def.node.add(name="c", op="StatefulPartitionedCall", input=["v", "x"])
    start.attr["f"].func.name = "f0"
    graph.graph_def.node.add(name="x", op="Identity", input=["y"])
    graph.graph_def.node.add(name="y", op="Identity", input=["x"])
    graph.graph_def.node.add(name="m", op="MatMul", input=["x", "v"])
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    found = read_saved(tmp_path / "saved_model.pb")
    assert len(found.bodies) == 4
    assert set(uses(found.bodies, {"f1": ("key", ""), "f2": ("key",) * 9, "none": ("key",)})) == {"v"}


def test_a_graph_that_is_too_large_to_look_at_tells_nothing():
    body = Body(("a",), {str(i): Operation("MatMul", ("x", "v"), {}) for i in range(1000)} | {"v": VARIABLE})
    assert set(uses({"": body}, {})) == {"v"}
    assert uses({str(i): body for i in range(1000)}, {str(i): ("w",) for i in range(1000)}) == {}


def test_objects_one_below_the_other_take_no_more_than_their_number(tmp_path):
    model = SavedModel()
    objects = model.meta_graphs.add().object_graph_def
    for i in range(50_000):
        objects.nodes.add().children.add(node_id=i + 1, local_name="a")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    begin = monotonic()
    assert fails(tmp_path)  # it has no variables
    assert len(read_saved(tmp_path / "saved_model.pb").objects) == 50_000
    assert monotonic() - begin < 20  # two seconds; shared machines


def test_a_meta_file_that_is_damaged_is_noted(tmp_path):
    prefix = saved(tmp_path, lambda: v1.get_variable("w", (2, 3)) @ v1.get_variable("v", (3, 2)))
    assert MetaGraphDef.FromString((tmp_path / "model.ckpt-3.meta").read_bytes()).graph_def.node
    data = (tmp_path / "model.ckpt-3.meta").read_bytes()
    for kept in (0, 1, 100, len(data) - 1):
        (tmp_path / "model.ckpt-3.meta").write_bytes(data[:kept])
        found = open_checkpoint(prefix)
        assert len(found.weights) == 2
        assert "were looked at" in found.notes[0] or "are not understood" in found.notes[0]
