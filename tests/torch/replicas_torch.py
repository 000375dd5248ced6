"""One of several processes that train one model, each on its part of the batch; run by `test_torch_distributed.py`."""

import sys

import torch
import torch.distributed as dist
from modules import batches, mlp, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from opnorm.torch import SpectralNorm, constrain, spectral_normalization

STEPS = 20


def train(kind, rank=0, count=1):
    """Return the kernels and the vectors after training on every `count`-th example from `rank` on."""
    model = mlp()
    torch.manual_seed(rank)  # vectors must not depend on it
    if kind == "normalized":
        for part in model[::2]:
            spectral_normalization(part)
    parallel = DistributedDataParallel(model) if count > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    if kind == "constrained":
        constrain(model, optimizer, SpectralNorm())
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(images[rank::count]), labels[rank::count]).backward()
        optimizer.step()
    if kind == "constrained":
        return [*weights(model), *(optimizer.state[one]["spectral_vectors"] for one in weights(model))]
    kept = [part.parametrizations.weight for part in model[::2]]
    return [*(part.original for part in kept), *(part[0].vectors for part in kept)]


if __name__ == "__main__":
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    trained = {kind: [one.detach() for one in train(kind, rank, count)] for kind in ("constrained", "normalized")}
    torch.save(trained, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
