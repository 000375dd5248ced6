"""`keras.layers.SpectralNormalization` on single layers, beside opnorm's constraint.

The wrapper writes a frozen kernel too. It casts outputs to the dtype of the inputs, which for an Embedding is an
integer. It takes a depthwise kernel for one column, so that its norm is that of all channels together; and it refuses
an LSTM, which has its kernel in a cell.
opnorm's constraint acts in the update, so on trainable kernels alone, and on the geometry that it is given.

Run: python examples/failures/keras_wrapper_layers.py
"""

from _common import data, kernel_of, on_each_backend, show, true_sigma

if __name__ == "__main__":
    on_each_backend(__file__)

import keras
import numpy as np
from keras import layers, ops
from keras_wrapper import both


def steps(layer, inputs, times=3):
    """Return the outputs of training steps without gradient: a forward pass, then the optimizer's update."""
    optimizer = keras.optimizers.SGD()
    for _ in range(times):  # three, that a small kernel has settled under either
        outputs = layer(inputs, training=True)
        variables = layer.trainable_variables
        optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
    return outputs


def frozen(make):
    """Run a frozen layer whose kernel has norm 1."""
    layer = make(layers.Dense, 32)
    layer.build((None, 20))
    kernel = kernel_of(layer)
    kernel.assign(kernel / true_sigma(kernel))
    layer.trainable = False
    before = ops.convert_to_numpy(kernel).copy()
    steps(layer, data()[0], times=1)
    moved = float(np.abs(ops.convert_to_numpy(kernel) - before).max())
    return f"a frozen kernel moves by {moved:.2f}", true_sigma(kernel), moved


def embedding(make):
    """Look up the ten rows of an embedding."""
    layer = make(layers.Embedding, 10, 4)
    outputs = steps(layer, np.arange(10))
    return f"outputs are {keras.backend.standardize_dtype(outputs.dtype)}", true_sigma(kernel_of(layer))


def depthwise(make):
    """Normalize a depthwise convolution; its norm is the largest of its channels'."""
    layer = make(layers.DepthwiseConv2D, 3)
    steps(layer, np.ones((2, 8, 8, 3), "float32"))
    channels = np.asarray(ops.convert_to_numpy(kernel_of(layer)), "float64").reshape(9, 3)
    return "the norm is the largest channel's", float(np.linalg.norm(channels, axis=0).max())


def recurrent(make):
    """Normalize the kernel of an LSTM."""
    layer = make(layers.LSTM, 4)
    steps(layer, np.ones((2, 5, 3), "float32"))
    return "trains", true_sigma(layer.cell.kernel)


def rows():
    """Return the rows of the jobs above."""
    return both([frozen, embedding, depthwise, recurrent])


if __name__ == "__main__":
    show(f"keras.layers.SpectralNormalization, {keras.backend.backend()}", rows())
