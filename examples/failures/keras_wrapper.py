"""`keras.layers.SpectralNormalization` in training, beside opnorm's constraint.

The wrapper writes the normalized kernel in the forward pass. The update that follows leaves the unit ball, and what is
evaluated and saved is that kernel. JAX's training step drops the write altogether, and on PyTorch with mixed precision
it goes to a copy: there the kernel that is evaluated was never normalized. Where a layer is called twice in a step,
as in a critic, the second write changes what PyTorch's backward pass of the first one needs.
opnorm's constraint acts after the update, and never writes in a forward pass.

Run: python examples/failures/keras_wrapper.py
"""

from _common import data, kernel_of, measured, network, on_each_backend, show, train, true_sigma, worst_sigma

if __name__ == "__main__":
    on_each_backend(__file__)

import keras
from keras import layers

import opnorm

CONSTRAINTS = {layers.Embedding: "embeddings_constraint", layers.DepthwiseConv2D: "depthwise_constraint"}


def wrapped(kind, *args, **options):
    """Return the layer in Keras's wrapper."""
    return layers.SpectralNormalization(kind(*args, **options))


def constrained(kind, *args, **options):
    """Return the layer with opnorm's constraint; for a depthwise kernel of three channels, by its geometry."""
    geometry = {"axis": (-2, -1), "groups": 3} if kind is layers.DepthwiseConv2D else {}
    return kind(*args, **options, **{CONSTRAINTS.get(kind, "kernel_constraint"): opnorm.SpectralNorm(**geometry)})


def fit_and_evaluate(make):
    """Train, then evaluate on the same data."""
    model = network(lambda: make(layers.Dense, 32, activation="relu"), keras.optimizers.Adam(1e-2))
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
    """Train on the difference of real and fake: each layer is called twice in one step."""
    body = keras.Sequential([make(layers.Dense, 32, activation="relu") for _ in range(2)])
    real, fake = keras.Input((20,)), keras.Input((20,))
    head = layers.Dense(4)
    model = keras.Model([real, fake], head(body(real)) - head(body(fake)))
    model.compile("adam", loss="mse")
    x, y = data()
    model.fit([x, x[::-1]], y, batch_size=64, epochs=3, verbose=0)
    return "trains", max(true_sigma(kernel_of(layer)) for layer in body.layers)


JOBS = [fit_and_evaluate, in_mixed_precision, critic]


def seeded(job, make):
    """Do the job from the same random numbers as every other."""
    keras.utils.set_random_seed(0)
    return job(make)


def both(jobs):
    """Return two rows for each job, the wrapper's and opnorm's."""
    makers = [("wrapper", wrapped), ("opnorm", constrained)]
    return [
        measured(f"{name}: {job.__name__.replace('_', ' ')}", lambda job=job, make=make: seeded(job, make))
        for job in jobs
        for name, make in makers
    ]


def rows():
    """Return the rows of the jobs above."""
    return both(JOBS)


if __name__ == "__main__":
    show(f"keras.layers.SpectralNormalization, {keras.backend.backend()}", rows())
