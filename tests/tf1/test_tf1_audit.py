"""Files of Keras 2, as tf_keras writes them: every tensor has a row, and bounds hold of what tf_keras computes."""

from contextlib import nullcontext

import numpy as np
import pytest
import tensorflow as tf
from hdf5_files import all_read, visited

import opnorm

L = tf.keras.layers
FORMATS = ["a.h5", "a.keras", "a.weights.h5"]


def dense_network():
    return tf.keras.Sequential(
        [L.Input((5,)), L.Dense(6, activation="hard_sigmoid"), L.BatchNormalization(), L.LeakyReLU(), L.Dense(3)]
    )


def hard_identity():
    model = tf.keras.Sequential([L.Input((3,)), L.Dense(3, activation="hard_sigmoid", use_bias=False)])
    model.set_weights([np.eye(3)])
    return model


def image_network():
    inputs = L.Input((8, 8, 2))
    x = L.SeparableConv2D(4, 3, padding="same", activation="hard_sigmoid")(inputs)
    x = L.DepthwiseConv2D(3, padding="same")(x)
    x = L.AveragePooling2D(2)(L.Conv2DTranspose(3, 3, padding="same")(x))
    return tf.keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def nested_network():
    inputs = L.Input((4, 5))
    x = L.TimeDistributed(L.Dense(3, activation="relu"))(inputs)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True))(x)
    x = L.MultiHeadAttention(2, 3)(x, x)
    x = tf.keras.Sequential([L.Conv1D(3, 2), L.LocallyConnected1D(2, 2), L.LayerNormalization()])(x)
    return tf.keras.Model(inputs, L.Embedding(7, 2)(tf.keras.layers.Flatten()(x)))


NETWORKS = [dense_network, hard_identity, image_network, nested_network]


def saved(network, path):
    model = network()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        with pytest.warns(UserWarning, match="HDF5") if path.suffix == ".h5" else nullcontext():
            model.save(path)
    return model


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_tensor_has_a_row_and_no_matrix_is_skipped_but_optimizer_state(tmp_path, network, form):
    saved(network, tmp_path / form)
    assert all_read(tmp_path / form) == visited(tmp_path / form)
    rows = opnorm.audit(tmp_path / form).rows
    assert len(rows) == visited(tmp_path / form).total()
    for row in rows:
        harmless = len(row.shape) < 2 or row.reason in ("optimizer state", "a bias is added, not multiplied")
        assert row.status != "skipped" or harmless


@pytest.mark.parametrize("form", FORMATS[:2])
@pytest.mark.parametrize("network", NETWORKS[:3])
def test_the_bound_of_a_network_holds_of_its_own_keras(tmp_path, network, form):
    model = saved(network, tmp_path / form)
    upper = opnorm.audit(tmp_path / form).network["upper"]
    rng = np.random.default_rng(0)
    points = tf.constant(rng.standard_normal((20, *model.input_shape[1:])), "float32")
    with tf.GradientTape() as tape:
        tape.watch(points)
        outputs = model(points)
    jacobians = tape.batch_jacobian(outputs, points).numpy().reshape(20, outputs.shape[-1], -1)
    truth = max(np.linalg.norm(one.astype("f8"), 2) for one in jacobians)
    assert truth <= upper * (1 + 1e-6)
    if network is hard_identity:
        assert truth == pytest.approx(upper, rel=1e-6)
        assert upper == pytest.approx(0.2, rel=1e-6)
