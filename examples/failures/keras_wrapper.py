"""`keras.layers.SpectralNormalization` on eight jobs, each beside opnorm's constraint.

The wrapper writes the normalized kernel in the forward pass. The update that follows leaves the unit ball, and what is
evaluated and saved is that kernel. JAX's training step drops the write altogether, and on PyTorch with mixed precision
it goes to a copy: the kernel that is evaluated was never normalized. The write also acts on frozen layers, breaks
PyTorch's backward pass where the layer is called twice, and overflows in half precision. The outputs of an
Embedding are cast to its inputs' integers; a depthwise kernel is taken for one column; an LSTM is refused.
opnorm's constraint acts after the update, in float32, on trainable kernels alone.

Run: python examples/failures/keras_wrapper.py
"""

from _common import data, kernel_of, measured, network, on_each_backend, show, train, true_sigma, worst_sigma

if __name__ == "__main__":
    on_each_backend(__file__)

import keras
import numpy as np
from keras import layers, ops

import opnorm


CONSTRAINTS = {layers.Embedding: "embeddings_constraint", layers.DepthwiseConv2D: "depthwise_constraint"}


def wrapped(kind, *args, **options):
    """Return the layer in Keras's wrapper."""
    return layers.SpectralNormalization(kind(*args, **options))


def constrained(kind, *args, **options):
    """Return the layer with opnorm's constraint; for a depthwise kernel of three channels, by its geometry."""
    geometry = {"axis": (-2, -1), "groups": 3} if kind is layers.DepthwiseConv2D else {}
    return kind(*args, **options, **{CONSTRAINTS.get(kind, "kernel_constraint"): opnorm.SpectralNorm(**geometry)})


def step(layer, inputs):
    """Return the outputs of one training step whose gradient is zero: a forward pass, then the optimizer's update."""
    outputs = layer(inputs, training=True)
    variables = layer.trainable_variables
    keras.optimizers.SGD().apply([ops.zeros(v.shape) for v in variables], variables)
    return outputs


def fit_and_evaluate(make):
    """Train, then evaluate on the same data."""
    model = network(lambda: make(layers.Dense, 32, activation="relu"))
    fit = train(model)
    evaluate = model.evaluate(*data(), verbose=0)
    return f"last loss of fit {fit:.2f}, evaluate {evaluate:.2f}", worst_sigma(model), fit, evaluate


def in_mixed_precision(make):
    """Do the same with bfloat16 activations."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return fit_and_evaluate(make)
    finally:
        keras.config.set_dtype_policy("float32")


def critic(make):
    """Train critic(real) - critic(fake): each layer is called twice in one step."""
    keras.utils.set_random_seed(0)
    body = keras.Sequential([make(layers.Dense, 32, activation="relu") for _ in range(2)])
    real, fake = keras.Input((20,)), keras.Input((20,))
    head = layers.Dense(4)
    model = keras.Model([real, fake], head(body(real)) - head(body(fake)))
    model.compile("adam", loss="mse")
    x, y = data()
    model.fit([x, x[::-1]], y, batch_size=64, epochs=3, verbose=0)
    return "trains", max(true_sigma(kernel_of(layer)) for layer in body.layers)


def frozen(make):
    """Run a frozen layer whose kernel has norm 1."""
    layer = make(layers.Dense, 32)
    layer.build((None, 20))
    kernel = kernel_of(layer)
    kernel.assign(kernel / true_sigma(kernel))
    layer.trainable = False
    before = ops.convert_to_numpy(kernel).copy()
    step(layer, data()[0])
    moved = float(np.abs(ops.convert_to_numpy(kernel) - before).max())
    return f"a frozen kernel moves by {moved:.2f}", true_sigma(kernel), moved


def large(make):
    """Run a layer in mixed_float16 whose kernel has norm 300."""
    layer = make(layers.Dense, 32, dtype="mixed_float16")
    layer.build((None, 20))
    kernel = kernel_of(layer)
    kernel.assign(kernel * (300 / true_sigma(kernel)))
    step(layer, data()[0])
    return "a kernel of norm 300 in mixed_float16", true_sigma(kernel)


def embedding(make):
    """Look up the ten rows of an embedding."""
    layer = make(layers.Embedding, 10, 4)
    outputs = step(layer, np.arange(10))
    return f"outputs are {keras.backend.standardize_dtype(outputs.dtype)}", true_sigma(kernel_of(layer))


def depthwise(make):
    """Normalize a depthwise convolution; its norm is the largest of its channels'."""
    layer = make(layers.DepthwiseConv2D, 3)
    for _ in range(20):  # one is not enough for either to settle
        step(layer, np.ones((2, 8, 8, 3), "float32"))
    channels = np.asarray(ops.convert_to_numpy(kernel_of(layer)), "float64").reshape(9, 3)
    return "the norm is the largest channel's", float(np.linalg.norm(channels, axis=0).max())


def recurrent(make):
    """Normalize the kernel of an LSTM."""
    layer = make(layers.LSTM, 4)
    step(layer, np.ones((2, 5, 3), "float32"))
    return "trains", true_sigma(layer.cell.kernel)


JOBS = [fit_and_evaluate, in_mixed_precision, critic, frozen, large, embedding, depthwise, recurrent]


def rows():
    """Return two rows for each job, the wrapper's and opnorm's."""
    makers = [("wrapper", wrapped), ("opnorm", constrained)]
    return [
        measured(f"{name}: {job.__name__.replace('_', ' ')}", lambda job=job, make=make: job(make))
        for job in JOBS
        for name, make in makers
    ]


if __name__ == "__main__":
    show(f"keras.layers.SpectralNormalization, {keras.backend.backend()}", rows())
