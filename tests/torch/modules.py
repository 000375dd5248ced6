"""Modules of every kind, with the matrices that they make of their kernels, cut by hand: the truth in float64."""

import numpy as np
import torch
from torch import nn


def array(tensor):
    return tensor.detach().double().numpy()


def norm(matrix):
    return float(np.linalg.svd(array(matrix), compute_uv=False)[0])


def whole(weight):
    """Return the matrix (out, rest) of a parameter that has its outputs first."""
    return [weight.flatten(1)]


def grouped(groups):
    return lambda weight: [part.flatten(1) for part in weight.chunk(groups)]


def transposed(groups):
    """Return the matrices (out / groups, rest) of (in, out / groups, *spatial)."""
    return lambda weight: [part.transpose(0, 1).flatten(1) for part in weight.chunk(groups)]


def stacked(count):
    return lambda weight: list(weight.chunk(count))


def experts(weight):
    return list(weight)


# A module, its kernels and the blocks of each. The norm is the largest of the blocks', or each has its own.
MODULES = {
    "linear": (lambda: nn.Linear(12, 7), {"weight": whole}),
    "wide": (lambda: nn.Linear(5, 40, bias=False), {"weight": whole}),
    "bilinear": (lambda: nn.Bilinear(4, 5, 6), {"weight": whole}),
    "embedding": (lambda: nn.Embedding(20, 6), {"weight": whole}),
    "bag": (lambda: nn.EmbeddingBag(20, 6, mode="sum"), {"weight": whole}),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), {"weight": whole}),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, dilation=2), {"weight": whole}),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), {"weight": grouped(2)}),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), {"weight": grouped(4)}),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), {"weight": whole}),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), {"weight": transposed(1)}),
    "transposed, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), {"weight": transposed(2)}),
    "unfused": (
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=5),
        {"q_proj_weight": whole, "k_proj_weight": whole, "v_proj_weight": whole, "out_proj.weight": whole},
    ),
    "lstm": (
        lambda: nn.LSTM(5, 4, proj_size=3, bidirectional=True),
        {f"weight_{kind}_l0{way}": whole for kind in ("ih", "hh", "hr") for way in ("", "_reverse")},
    ),
    "gru cell": (lambda: nn.GRUCell(5, 4), {"weight_ih": whole, "weight_hh": whole}),
}
SEPARATE = {  # blocks that have a norm each
    "attention": (
        lambda: nn.MultiheadAttention(8, 2),
        {"in_proj_weight": stacked(3), "out_proj.weight": whole},
        {},
    ),
    "heads": (lambda: nn.MultiheadAttention(8, 2), {"in_proj_weight": stacked(6)}, {"blockwise": True}),
    "gates": (
        lambda: nn.LSTM(5, 4),
        {"weight_ih_l0": stacked(4), "weight_hh_l0": stacked(4)},
        {"blockwise": True},
    ),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), {"weight": grouped(2)}, {"blockwise": True}),
}
SLIDING = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (3, 24)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 16, 16)),
    "dilated and strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, dilation=2, padding=2), (2, 16, 16)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 12, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (3, 8, 8)),
    "transposed, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), (4, 24)),
}


def explicit_norm(module, shape):
    """Return the norm of the matrix that a module without bias multiplies a flattened input of `shape` with."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    plain = type(module).__call__
    bias, module.bias = module.bias, None
    with torch.no_grad():
        columns = plain(module.double(), basis).flatten(1)
    module.float()
    module.bias = bias
    return norm(columns)


def step_without_change(module):
    """Return an optimizer of the module's parameters, all of whose gradients are zero."""
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return torch.optim.SGD(module.parameters(), 0.1)


def mlp(seed=0, width=24):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))


def weights(model):
    return [part.weight for part in model.modules() if isinstance(part, nn.Linear)]


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(32, 16, generator=generator), torch.randint(4, (32,), generator=generator)


def train(model, optimizer, steps=5, seed=1):
    """Train a classifier, and yield after each step."""
    for images, labels in batches(steps, seed):

        def closure(images=images, labels=labels):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        yield


def trained(model, optimizer, steps=5, seed=1):
    for _ in train(model, optimizer, steps, seed):
        pass
