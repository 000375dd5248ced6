"""Checkpoints and SavedModels that Keras 3 writes on TensorFlow: every kernel has its row, whatever its key says."""

import keras
import numpy as np
import pytest
from scipy.linalg import svdvals

import opnorm

L = keras.layers
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own formats")


def trained():
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(4, name="first"), L.BatchNormalization(), L.Dense(3, name="last")]
    )
    model.compile("adam", "mse")
    model.fit(np.ones((4, 6)), np.ones((4, 3)), verbose=0)
    return model


def norms(model):
    return {
        layer.name: svdvals(layer.kernel.numpy().astype("f8"))[0] for layer in model.layers if "norm" not in layer.name
    }


def test_a_checkpoint_has_the_kernels_though_their_keys_are_the_optimizers(tmp_path):
    import tensorflow as tf

    model = trained()
    for objects in ({"model": model, "optimizer": model.optimizer}, {"optimizer": model.optimizer}, {"model": model}):
        prefix = tf.train.Checkpoint(**objects).write(str(tmp_path / "ck"))
        rows = [row for row in opnorm.audit(prefix).rows if row.status == "bounded" and len(row.shape) == 2]
        found = {row.name.split("/")[-2]: row for row in rows}
        for name, norm in norms(model).items():
            assert found[name].lower <= norm <= found[name].upper
        assert len(rows) == 2


def test_an_exported_model_has_the_kernels(tmp_path):
    model = trained()
    model.export(tmp_path / "m", verbose=False)
    rows = [row for row in opnorm.audit(tmp_path / "m").rows if row.status == "bounded" and len(row.shape) == 2]
    for name, norm in norms(model).items():
        of_layer = [row for row in rows if f"/{name}/" in row.name]
        assert of_layer
        for row in of_layer:
            assert row.lower <= norm <= row.upper
