"""One of several processes that train one model, each on its part of the batch; run by `test_torch_distributed.py`."""

import sys

import torch
import torch.distributed as dist
from modules import batches, mlp, weights
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from opnorm.torch import SpectralClip, SpectralNorm, constrain, monitor, spectral_normalization

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


class Sent(TorchDispatchMode):
    """Notes how many numbers each collective takes of this process."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(hasattr(kind, "device_mesh") for kind in types):
            return NotImplemented  # a DTensor: what it is made of is seen next
        if func.namespace.startswith(("c10d", "_c10d")) and "wait" not in func.__name__:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def shard(axis, rank, count):
    """Return the whole kernels after training on shards along an axis, and the collectives of the last update."""
    model, mesh = mlp(), init_device_mesh("cpu", (count,))
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(axis) if p.ndim == 2 else None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    rows = constrain(model, optimizer, SpectralNorm())
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rank::count]), labels[rank::count]).backward()
        with Sent() as sent:
            optimizer.step()
    norms = monitor(model, proved=True)
    rows.remove()
    try:
        constrain(model, optimizer, SpectralClip())
    except ValueError as error:
        said = str(error)
    return {"kernels": [one.full_tensor() for one in weights(model)], "sizes": sent.sizes, "norms": norms, "said": said}


if __name__ == "__main__":
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    trained = {kind: [one.detach() for one in train(kind, rank, count)] for kind in ("constrained", "normalized")}
    trained |= {f"shards {axis}": shard(axis, rank, count) for axis in (0, 1)}
    torch.save(trained, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
