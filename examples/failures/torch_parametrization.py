"""`torch.nn.utils.parametrizations.spectral_norm`: nan for a zero weight, and a `u` that outlives its weight.

The estimate of sigma is divided by, so a layer that starts at zero (the last one of a residual branch, say) is nan from
the first forward pass. When the weight is replaced, `u` and `v` stay those of the old one: until training has turned
them, the "normalized" weight has another norm, and in evaluation for good.
opnorm leaves a zero kernel at zero and constrains it once it is not, and warms `u` up again wherever sigma jumps.

Run: python examples/failures/torch_parametrization.py
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from _common import measured, show, true_sigma
from torch.nn.utils.parametrizations import spectral_norm

import opnorm


def draw(seed):
    """Return random weights, 64 outputs and 64 inputs."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((64, 64)).astype("float32"))


def parametrized(weight):
    """Return a PyTorch layer with this weight, and PyTorch's spectral normalization, in evaluation."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 64, bias=False)
    linear.weight.data = weight
    return spectral_norm(linear).eval()


def constrained(weight):
    """Return a Keras layer with this kernel and opnorm's constraint, and its optimizer."""
    layer = keras.layers.Dense(64, use_bias=False, kernel_constraint=opnorm.SpectralNorm(seed=0))
    layer.build((None, 64))
    layer.kernel.assign(weight)
    optimizer = keras.optimizers.SGD(1e-3)
    optimizer.build(layer.trainable_variables)
    return layer, optimizer


def zero_in_torch():
    """Run a zero weight."""
    weight = parametrized(torch.zeros(64, 64)).weight.detach()
    share = float(weight.isnan().float().mean())
    return f"zero weight: {share:.0%} of the normalized weight is nan", true_sigma(weight), share


def zero_in_opnorm():
    """Update a zero kernel by a zero gradient, then by another."""
    layer, optimizer = constrained(torch.zeros(64, 64))
    optimizer.apply([torch.zeros(64, 64)], [layer.kernel])
    share = float(layer.kernel.value.isnan().float().mean())
    optimizer.apply([draw(1)], [layer.kernel])
    return f"zero kernel: {share:.0%} nan; sigma is that of the next update", true_sigma(layer.kernel), share


def replaced_in_torch(steps):
    """Replace the weight, then run so many forward passes in training mode."""
    linear = parametrized(draw(1))
    with torch.no_grad():
        linear.weight = draw(2)
        linear.train()
        for _ in range(steps):
            linear(torch.ones(1, 64))
        linear.eval()
        return f"weight replaced, {steps} training steps since", true_sigma(linear.weight)


def replaced_in_opnorm():
    """Replace the kernel, then make one update."""
    layer, optimizer = constrained(draw(1))
    optimizer.apply([torch.zeros(64, 64)], [layer.kernel])
    layer.kernel.assign(draw(2))
    optimizer.apply([torch.zeros(64, 64)], [layer.kernel])
    return "kernel replaced, 1 training step since", true_sigma(layer.kernel)


def rows():
    """Return the rows, PyTorch's before opnorm's."""
    return [
        measured("torch: zero weight", zero_in_torch),
        measured("opnorm: zero kernel", zero_in_opnorm),
        measured("torch: replaced weight, evaluated", lambda: replaced_in_torch(0)),
        measured("torch: replaced weight, trained", lambda: replaced_in_torch(1)),
        measured("opnorm: replaced kernel, trained", replaced_in_opnorm),
    ]


if __name__ == "__main__":
    show("torch.nn.utils.parametrizations.spectral_norm", rows())
