"""SavedModel folders: rows by what Keras noted of its layers, else by name and shape; no graph is run."""

import random
import shutil

import numpy as np
import pytest
import tensorflow as tf
from bracketed import between, brackets, weights
from explicit import norm
from readers import fails, refused
from tensor_bundles import field
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from opnorm.auditing.audits import audit
from opnorm.checkpoints.opening import open_checkpoint
from opnorm.checkpoints.saved_model import read_saved_model

keras = pytest.importorskip("tf_keras")
SavedMetadata = pytest.importorskip("tf_keras.protobuf.saved_metadata_pb2").SavedMetadata
L = keras.layers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*HDF5:UserWarning")


def network():
    inputs = L.Input((8, 8, 2))
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="strided")(inputs)
    x = L.DepthwiseConv2D(3, padding="same", name="apart")(x)
    x = L.BatchNormalization(epsilon=0.1, name="norm")(x)
    x = keras.Sequential([L.Conv2D(3, 1, name="point")], name="inner")(x)
    return keras.Model(inputs, L.Dense(3, name="last")(L.Flatten()(x)))


def wrapped():
    inputs = L.Input((4, 5))
    x = L.TimeDistributed(L.Dense(3), name="each")(inputs)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(x)
    return keras.Model(inputs, L.MultiHeadAttention(2, 3, name="heads")(x, x))


def saved(model, path, *, compiled=False):
    if compiled:
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
    model.save(path, save_format="tf", save_traces=False)
    return path


def applied(layer, shape):
    """Return the matrix of a layer without its bias."""
    basis = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    rows = layer(basis) - layer(np.zeros((1, *shape), "float32"))
    return np.reshape(rows, (len(basis), -1)).astype("f8")


def test_what_keras_noted_of_its_layers_is_what_they_apply(tmp_path):
    model = network()
    model.get_layer("norm").moving_variance.assign([0.5, 1, 2, 3])
    model.get_layer("strided").activation = None
    found = weights(saved(model, tmp_path / "m"))
    cases = {"strided/kernel": (16, 16, 2), "apart/depthwise_kernel": (12, 12, 4), "last/kernel": (48,)}
    cases["norm/gamma"] = (1, 1, 4)
    for name, shape in cases.items():
        assert not found[name].geometry.assumed
        truth = norm(applied(model.get_layer(name.split("/")[0]), shape))
        lower, upper = between(found[name])
        assert truth <= upper * (1 + 1e-6)  # TensorFlow's float32
        exact = name in ("last/kernel", "norm/gamma")
        assert upper <= truth * (1 + 1e-5 if exact else 1.3)  # of a convolution on every image, and on this one
        assert lower <= upper
    assert "strides 2" in found["strided/kernel"].geometry.text
    assert found["point/kernel"].geometry.kind == "Conv2D"


@pytest.mark.parametrize("build", [network, wrapped])
def test_a_saved_model_has_the_rows_and_the_network_of_the_same_models_h5(tmp_path, build):
    model = build()
    folder = saved(model, tmp_path / "m", compiled=True)
    model.save(tmp_path / "m.h5")
    ours, theirs = audit(folder), audit(tmp_path / "m.h5")
    ends = [
        sorted((row.shape, row.status, row.upper or 0) for row in report.rows if row.reason != "optimizer state")
        for report in (ours, theirs)
    ]
    assert ends[0] == ends[1]
    assert ours.network["upper"] == theirs.network["upper"]


def test_notes_in_the_graph_of_objects_are_read_too(tmp_path):
    """As TensorFlow 2.0 to 2.4 wrote them: by the object, and not by its path."""
    new, old = saved(network(), tmp_path / "new"), tmp_path / "old"
    shutil.copytree(new, old)
    noted = SavedMetadata.FromString((old / "keras_metadata.pb").read_bytes())
    model = SavedModel.FromString((old / "saved_model.pb").read_bytes())
    for node in noted.nodes:
        model.meta_graphs[0].object_graph_def.nodes[node.node_id].user_object.metadata = node.metadata
    (old / "keras_metadata.pb").unlink()
    assert weights(old)["strided/kernel"].geometry.assumed
    (old / "saved_model.pb").write_bytes(model.SerializeToString())
    for name, weight in weights(new).items():
        assert weights(old)[name].geometry.text == weight.geometry.text
        assert not weights(old)[name].geometry.assumed


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_graph_that_is_cut_off_is_refused(tmp_path, kept):
    file = saved(network(), tmp_path / "m") / "saved_model.pb"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data))])
    refused(file.parent, "Cannot read")


def test_a_graph_with_bytes_changed_is_read_or_refused(tmp_path):
    folder = saved(keras.Sequential([L.Input((3,)), L.Dense(3)]), tmp_path / "m")
    for name in ("saved_model.pb", "keras_metadata.pb"):
        data = (folder / name).read_bytes()
        for seed in range(40):
            chance, broken = random.Random(seed), bytearray(data)
            for _ in range(chance.choice([1, 4, 30])):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            (folder / name).write_bytes(broken)
            fails(folder)
        (folder / name).write_bytes(data)


def test_values_agree_with_tensorflow(tmp_path):
    folder = saved(network(), tmp_path / "m", compiled=True)
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    truth = sorted(
        reader.get_tensor(name).tobytes()
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    )
    for path in (folder, folder / "saved_model.pb", folder / "variables"):
        assert sorted(weight.read().tobytes() for weight in open_checkpoint(path).weights) == truth


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.eye(3, dtype="float32") * 2, name="layer/kernel")

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def __call__(self, x):
        return x @ self.w


def test_a_saved_model_of_no_keras_is_read_by_its_variables(tmp_path):
    tf.saved_model.save(Net(), str(tmp_path / "m"))
    found = open_checkpoint(tmp_path / "m")
    (weight,) = found.weights
    assert (found.format, weight.name, weight.geometry.kind) == ("savedmodel", "layer/kernel", "MatMul")
    assert brackets(weight)[0].lower == pytest.approx(2)
    assert "was not run" in found.notes[0]


def test_a_saved_model_of_tensorflow_1_is_read_by_its_names(tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as sess:
        x = v1.placeholder(tf.float32, (None, 3))
        w = v1.get_variable("d/kernel", initializer=tf.eye(3) * 3)
        sess.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "m"))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": x @ w})
        builder.add_meta_graph_and_variables(sess, ["serve"], {"y": signature})
        builder.save()
    (weight,) = open_checkpoint(tmp_path / "m").weights
    assert (weight.name, brackets(weight)[0].lower) == ("d/kernel", pytest.approx(3))


def test_a_class_that_is_not_keras_own_is_unknown(tmp_path):
    @keras.utils.register_keras_serializable("mine")
    class Dense(L.Dense):
        def call(self, inputs):
            return 10 * super().call(inputs)

    model = keras.Sequential([L.Input((3,)), Dense(3, name="d")])
    found = weights(saved(model, tmp_path / "m"))
    assert found["d/kernel"].geometry.unknown
    assert "mine>Dense" in found["d/kernel"].geometry.reason


def test_a_graph_without_variables_says_so(tmp_path):
    folder = saved(keras.Sequential([L.Input((3,)), L.Dense(3)]), tmp_path / "m")
    shutil.rmtree(folder / "variables")
    refused(folder, "a SavedModel without variables/variables.index")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, field(1, field(3, b"root") + field(5, b"[" * 10_000)), field(1, 7)]
)
def test_notes_that_make_no_sense_are_refused_or_ignored(tmp_path, content):
    folder = saved(keras.Sequential([L.Input((3,)), L.Dense(3)]), tmp_path / "m")
    (folder / "keras_metadata.pb").write_bytes(content)
    if content:
        refused(folder, "Cannot read")
    else:
        assert len(read_saved_model(folder).weights) == 2


class Constants(tf.Module):
    """A network whose kernels are constants, but for one variable."""

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(0).standard_normal
        self.arrays = [draw(shape).astype("f4") for shape in ((4, 5), (5, 6), (6, 7), (3, 4), (7, 2), (9, 8))]
        self.captured, self.added, self.scale = (tf.constant(self.arrays[i]) for i in (0, 3, 5))
        self.w = tf.Variable(np.eye(5, dtype="f4"), name="w")

    @tf.function(input_signature=[tf.TensorSpec((3, 4))])
    def __call__(self, x):
        y = (x + self.added) @ self.captured @ self.w @ tf.constant(self.arrays[1])
        y = y @ tf.transpose(tf.transpose(tf.constant(self.arrays[2]))) @ tf.constant(self.arrays[4])
        return tf.reduce_sum(y) * self.scale


def test_constants_of_the_graph_have_rows_with_what_its_operations_do(tmp_path):
    model = Constants()
    tf.saved_model.save(model, str(tmp_path / "m"))
    rows = {row.shape: row for row in audit(tmp_path / "m").rows}
    assert len(rows) == 7
    for array in (model.arrays[0], model.arrays[1], model.arrays[4]):
        row, truth = rows[array.shape], np.linalg.norm(array.astype("f8"), 2)
        assert row.lower <= truth * (1 + 1e-9) <= row.upper * (1 + 2e-9)
        assert not row.assumed
    assert rows[3, 4].status == "skipped"
    assert [rows[shape].status for shape in ((6, 7), (9, 8))] == ["failed", "failed"]
    assert "Transpose" in rows[6, 7].reason
    assert "Mul" in rows[9, 8].reason
