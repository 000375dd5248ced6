"""Checkpoints of TensorFlow's as TensorFlow reads them, and what its variables are taken for."""

import random

import numpy as np
import pytest
import tensorflow as tf
from bracketed import between, brackets, weights
from explicit import norm
from readers import fails, refused

from opnorm.auditing.audits import audit
from opnorm.checkpoints import geometry as g
from opnorm.checkpoints.opening import open_checkpoint

v1 = tf.compat.v1
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
DTYPES = [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int8, tf.int32, tf.int64, tf.uint8, tf.bool, tf.complex64]
DTYPES += [tf.dtypes.experimental.float8_e5m2, tf.dtypes.experimental.float8_e4m3fn]
MATRIX = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")


def saved(tmp_path, name="ck", **objects):
    """Return the prefix of what `tf.train.Checkpoint` writes."""
    return tf.train.Checkpoint(**objects).write(str(tmp_path / name))


def session(tmp_path, build, step=1000):
    """Return the prefix of what a TF1 `Saver` writes of the graph that `build` makes."""
    with tf.Graph().as_default(), v1.Session() as sess:
        build()
        sess.run(v1.global_variables_initializer())
        return v1.train.Saver().save(sess, str(tmp_path / "model.ckpt"), global_step=step)


def variable(name, shape, **settings):
    return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(seed=len(name)), **settings)


def agree(found, prefix, key=lambda name: name):
    reader = tf.train.load_checkpoint(prefix)
    names = {name for name in reader.get_variable_to_shape_map() if name != "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert {key(name) for name in found} == names
    for name, weight in found.items():
        truth = reader.get_tensor(key(name))
        values = weight.read()
        assert (values.shape, str(values.dtype)) == (truth.shape, str(truth.dtype)) == (weight.shape, weight.dtype)
        assert values.tobytes() == truth.tobytes()


def test_every_dtype_is_read_bit_by_bit(tmp_path):
    plain = {str(kind.name): tf.Variable(tf.cast(MATRIX * 4, kind)) for kind in DTYPES}
    prefix = saved(tmp_path, **plain, none=tf.Variable(tf.zeros((0, 3))), one=tf.Variable(2.5))
    agree(weights(prefix), prefix, lambda name: name + VALUE)


@pytest.mark.parametrize("way", ["ck-1", "ck-1.index", "ck-1.data-00000-of-00001", "."])
def test_a_checkpoint_is_opened_by_prefix_index_shard_and_folder(tmp_path, way):
    tf.train.Checkpoint(w=tf.Variable(MATRIX)).save(str(tmp_path / "ck"))
    found = open_checkpoint(tmp_path / way)
    assert found.format == "tensorflow"
    assert {weight.name for weight in found.weights} == {"w", "save_counter"}
    np.testing.assert_array_equal(weights(tmp_path / way)["w"].read(), MATRIX)


def test_of_a_folder_the_newest_is_read_wherever_it_was_written(tmp_path):
    checkpoint = tf.train.Checkpoint(w=tf.Variable(MATRIX))
    for _ in range(3):
        checkpoint.w.assign_add(tf.ones_like(MATRIX))
        checkpoint.save(str(tmp_path / "ck"))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/home/someone/run/ck-2"\n')
    np.testing.assert_array_equal(weights(tmp_path)["w"].read(), MATRIX + 2)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ck-9"\n')
    refused(tmp_path, r"holds 3 checkpoints and its `checkpoint` names 'ck-9', .* name one: .*'ck-3\.index'")
    (tmp_path / "checkpoint").unlink()
    refused(tmp_path, "holds 3 checkpoints and it has no file `checkpoint`")


def test_numbers_without_their_index_are_refused(tmp_path):
    prefix = saved(tmp_path, w=tf.Variable(MATRIX))
    (tmp_path / "ck.index").unlink()
    refused(f"{prefix}.data-00000-of-00001", r"'ck\.index', which says whose, is not beside it")


def test_an_index_without_its_numbers_is_refused(tmp_path):
    prefix = saved(tmp_path, w=tf.Variable(MATRIX))
    (tmp_path / "ck.data-00000-of-00001").unlink()
    refused(f"{prefix}.index", r"'ck\.data-00000-of-00001', which is missing")


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    with tf.Graph().as_default(), v1.Session() as sess:
        gan()
        variable("split/kernel", (200, 7), partitioner=v1.fixed_size_partitioner(3, 0))
        v1.get_variable("wide/w", initializer=np.arange(6.0).reshape(2, 3))
        v1.get_variable("i", initializer=tf.constant([1, -2, 3]))
        v1.get_variable("s", initializer=tf.constant(["a"]))
        sess.run(v1.global_variables_initializer())
        saver = v1.train.Saver(write_version=v1.train.SaverDef.V1)
        prefix = saver.save(sess, str(tmp_path / "old.ckpt"), global_step=7)
        parts = sess.run([one for one in v1.global_variables() if one.name.startswith("split/")])
    found = weights(prefix)
    assert not found.pop("s").geometry.unknown
    np.testing.assert_array_equal(found.pop("split/kernel").read(), np.concatenate(parts))  # TensorFlow refuses it
    reader = v1.train.NewCheckpointReader(prefix)
    assert set(found) == set(reader.get_variable_to_shape_map()) - {"s", "split/kernel"}
    for name, weight in found.items():
        np.testing.assert_array_equal(weight.read(), reader.get_tensor(name))
    assert found["discriminator/dense/kernel/D_opt_1"].geometry.reason == g.OPTIMIZER
    data = (tmp_path / "old.ckpt-7").read_bytes()
    for seed in range(100):
        chance, broken = random.Random(seed), bytearray(data)
        for _ in range(chance.choice([1, 4, 30])):
            broken[chance.choice([-1, 1]) * chance.randrange(1, 300)] = chance.randrange(256)
        (tmp_path / "old.ckpt-7").write_bytes(broken)
        fails(tmp_path / "old.ckpt-7")


def gan():
    """A discriminator as TF1's GANs have it, with an optimizer, an average, and a counter."""
    kernel = variable("discriminator/dense/kernel", (6, 4))
    conv = variable("discriminator/conv2d/kernel", (3, 3, 2, 5))
    variable("discriminator/conv2d/bias", (5,))
    variable("bert/embeddings/word_embeddings", (20, 4))
    variable("vgg/fc6/weights", (6, 7))
    step = v1.train.get_or_create_global_step()
    loss = tf.reduce_sum(kernel**2) + tf.reduce_sum(conv**2)
    v1.train.AdamOptimizer(name="D_opt").minimize(loss, step, [kernel])
    v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss, step, [conv])
    tf.train.ExponentialMovingAverage(0.9).apply([kernel])


def test_the_variables_of_tensorflow_1_are_known_by_their_names(tmp_path):
    prefix = session(tmp_path, gan)
    found = weights(prefix)
    agree(found, prefix)
    states = {name for name, weight in found.items() if weight.geometry.reason == g.OPTIMIZER}
    assert states == {
        "discriminator/dense/kernel/D_opt",
        "discriminator/dense/kernel/D_opt_1",
        "discriminator/conv2d/kernel/Momentum",
        "beta1_power",
        "beta2_power",
    }
    assert found["global_step"].geometry.reason == g.COUNTER
    for name in ("discriminator/dense/kernel", "vgg/fc6/weights", "bert/embeddings/word_embeddings"):
        (bounds,) = brackets(found[name])
        assert bounds.lower == pytest.approx(norm(found[name].read().astype("f8")), rel=2e-6)
        assert found[name].geometry.text.startswith("matrix (")
    assert found["discriminator/dense/kernel/ExponentialMovingAverage"].geometry.kind == "Dense"
    assert found["discriminator/conv2d/kernel"].geometry.text.startswith("convolution (*spatial, in, out)")
    assert found["discriminator/conv2d/bias"].geometry.reason == g.BIAS


def test_a_slim_batch_normalization_is_bounded_by_its_variance(tmp_path):
    def build():
        for name in ("beta", "moving_mean", "moving_variance"):
            v1.get_variable(f"net/BatchNorm/{name}", initializer=tf.constant([0.25, 1, 4.0]))

    found = weights(session(tmp_path, build))
    assert brackets(found["net/BatchNorm/moving_variance"])[0].lower == pytest.approx(2, rel=1e-4)
    assert found["net/BatchNorm/moving_mean"].geometry.reason == g.MEAN


@pytest.mark.parametrize(("parts", "axis"), [(3, 0), (2, 1)])
def test_a_partitioned_variable_is_one_row(tmp_path, parts, axis):
    split = v1.fixed_size_partitioner(parts, axis)
    prefix = session(tmp_path, lambda: variable("dense/kernel", (200, 7), partitioner=split))
    assert len(tf.train.load_checkpoint(prefix).get_variable_to_shape_map()) == 1
    agree(weights(prefix), prefix)


def test_texts_have_their_row_and_are_no_kernels(tmp_path):
    prefix = saved(tmp_path, w=tf.Variable(MATRIX), s=tf.Variable(["a", "b"]))
    text = weights(prefix)["s"]
    assert (text.shape, text.dtype, text.geometry.unknown) == ((2,), "string", False)
    assert "no numbers" in text.geometry.reason
    assert [row.status for row in audit(prefix).rows if row.name == "w"] == ["bounded"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_objects_of_a_checkpoint_tell_the_optimizers_state(tmp_path):
    """By keys alone the kernels of Keras 3 would be the optimizer's: `optimizer/_trainable_variables/0`."""
    keras = pytest.importorskip("tf_keras")
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3, name="last")])
    for optimizer in (keras.optimizers.Adam(), keras.optimizers.legacy.Adam()):
        model.compile(optimizer, "mse")
        model.fit(np.ones((2, 4)), np.ones((2, 3)), verbose=0)
        prefix = tf.train.Checkpoint(optimizer=optimizer, model=model).write(str(tmp_path / "ck"))
        found = weights(prefix)
        state = {name for name, weight in found.items() if weight.geometry.reason == g.OPTIMIZER}
        moments = [weight for name, weight in found.items() if weight.shape == (4, 3) and name in state]
        assert (len(moments), {"last/kernel", "last/bias"} & state) == (2, set())
        np.testing.assert_array_equal(found["last/kernel"].read(), model.layers[0].kernel.numpy())
        assert brackets(found["last/kernel"])[0].lower == pytest.approx(
            norm(found["last/kernel"].read().astype("f8")), rel=2e-6
        )


class Trainer(tf.Module):
    """A loop of one's own, whose attributes are called as an optimizer's."""

    def __init__(self):
        super().__init__()
        self.iterations, self.learning_rate = tf.Variable(1), tf.Variable(0.1)
        self.weight = tf.Variable(MATRIX, name="layer/kernel")


def test_no_kernel_is_taken_for_state_because_of_what_stands_beside_it(tmp_path):
    found = weights(saved(tmp_path, root=Trainer()))
    assert found["layer/kernel"].geometry.kind == "Dense"


def test_variables_of_one_name_are_called_by_their_keys(tmp_path):
    both = {key: tf.Variable(MATRIX, name="layer/kernel") for key in ("a", "b")}
    assert set(weights(saved(tmp_path, **both))) == {"a", "b"}
    lists = {key: [tf.Variable(MATRIX, name="layer/kernel")] for key in ("a", "b")}
    assert set(weights(saved(tmp_path, **lists))) == {"a/layer/kernel", "b/layer/kernel"}


@pytest.mark.parametrize("place", ["u", "kernel/u", "kernel/u_var", "sn/u", "kernel/spectral_norm_u"])
@pytest.mark.parametrize("outputs", [True, False])
def test_a_kernel_beside_the_vector_of_a_spectral_normalization_is_read_as_either(tmp_path, place, outputs):
    """As the discriminators of SNGAN in TF1 have it: W / sigma in each call, with one power iteration or with none."""
    rng = np.random.default_rng(1)
    W, u = rng.standard_normal((6, 4)), rng.standard_normal((1, 4 if outputs else 6))

    def build():
        v1.get_variable("d/kernel", initializer=W.astype("f4"))
        v1.get_variable(f"d/{place}", initializer=u.astype("f4"))

    found = weights(session(tmp_path, build))
    weight = found["d/kernel"]
    assert "the vector of a spectral normalization of 'd/kernel'" in found[f"d/{place}"].geometry.reason
    lower, upper = between(weight)
    M = W if outputs else W.T
    v = u @ M.T / np.linalg.norm(u @ M.T)
    for sigma in (np.linalg.norm(v @ M), np.linalg.norm(u @ M.T) / np.linalg.norm(u), 1):
        assert lower * (1 - 1e-6) <= norm(W / sigma) <= upper * (1 + 1e-6)  # the file has float32
    assert weight.geometry.assumed
    assert "divided by its norm" in weight.geometry.text
