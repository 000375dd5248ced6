"""The examples in the docstrings of Keras's names run, and every one of them has one."""

import docstrings
import keras
import numpy as np
import pytest

import opnorm

WITHOUT = {"Bounds", "Certificate", "Diagonal", "DiffReport", "KernelGeometry", "NetworkBound", "Report"}  # records
FILES = {"BlockDiagonal", "Convolution", "audit", "diff", "spectral_norm"}  # run by tests/house/test_docstrings.py


class MyDense(keras.layers.Layer):
    """A layer that opnorm does not know."""


@pytest.mark.parametrize("name", sorted(set(opnorm.__all__) - WITHOUT - FILES))
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.Model, "export", lambda model, folder: None)  # tests/keras/test_export.py exports
    monkeypatch.chdir(tmp_path)
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2, name="logits")])
    model.compile("sgd", "mse")
    x, labels = np.ones((8, 3), "float32"), np.zeros(8, "int64")
    names = {"x": x, "y": np.zeros((8, 2)), "x_test": x, "y_test": labels, "layer": layer, "model": model}
    assert docstrings.examples(getattr(opnorm, name))
    docstrings.run(getattr(opnorm, name), {"opnorm": opnorm, "keras": keras, "np": np, "MyDense": MyDense} | names)
