"""One of several processes that train one model, each on its part of the batch; run by `test_torch_distributed.py`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from modules import batches, mlp, weights
from torch import nn
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from opnorm.torch import (
    MaxSpectralNorm,
    Orthogonal,
    SpectralClip,
    SpectralNorm,
    constrain,
    monitor,
    project,
    spectral_normalization,
)

STEPS = 20
RULES = {
    "constrained": SpectralNorm(),
    "clipped": SpectralClip(),
    "clipped with a margin": SpectralClip(margin=0.1),
    "orthogonal": Orthogonal(),
}


def train(kind, rank=0, count=1):
    """Return the kernels and the vectors after training on every `count`-th example from `rank` on."""
    model = mlp()
    torch.manual_seed(rank)  # vectors must not depend on it
    if kind == "normalized":
        for part in model[::2]:
            spectral_normalization(part)
    parallel = DistributedDataParallel(model) if count > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    if kind in RULES:
        constrain(model, optimizer, RULES[kind])
    for images, labels in batches(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(images[rank::count]), labels[rank::count]).backward()
        optimizer.step()
    if kind in RULES:
        vectors = [optimizer.state[one].get("spectral_vectors") for one in weights(model)]
        return [*weights(model), *(one for one in vectors if one is not None)]
    kept = [part.parametrizations.weight for part in model[::2]]
    return [*(part.original for part in kept), *(part[0].vectors for part in kept)]


class Sent(TorchDispatchMode):
    """Notes the collectives, and how many numbers each takes of this process."""

    def __init__(self):
        super().__init__()
        self.sizes, self.kinds = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(hasattr(kind, "device_mesh") for kind in types):
            return NotImplemented  # a DTensor: what it is made of is seen next
        if func.namespace.startswith(("c10d", "_c10d")) and "wait" not in func.__name__:
            self.sizes.append(args[0].numel())
            self.kinds.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def sharded(axis, count):
    """Return a model that is sharded along an axis of its kernels, and its optimizer."""
    model, mesh = mlp(), init_device_mesh("cpu", (count,))
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(axis) if p.ndim == 2 else None)
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def stepped(model, optimizer, rank, count, steps=STEPS, seed=1):
    """Train, and return the collectives of the last update."""
    for images, labels in batches(steps, seed):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rank::count]), labels[rank::count]).backward()
        with Sent() as sent:
            optimizer.step()
    return sent


def wholes(model):
    return [one.full_tensor().detach().clone() for one in weights(model)]


def shard(axis, rank, count):
    """Return the whole kernels after training on shards along an axis, and the collectives of the last update."""
    model, optimizer = sharded(axis, count)
    constrain(model, optimizer, SpectralNorm())
    sent = stepped(model, optimizer, rank, count)
    norms = monitor(model, proved=True)
    return {"kernels": wholes(model), "sizes": sent.sizes, "kinds": sent.kinds, "norms": norms}


def projected(kind, axis, rank, count):
    """Return the whole kernels after training with a rule that changes more than the size of shards."""
    model, optimizer = sharded(axis, count)
    constrain(model, optimizer, RULES[kind])
    stepped(model, optimizer, rank, count)
    return wholes(model)


def alone(count):
    """Return what a tall layer, split over its longer side, sends in an update that clips it, and what that leaves."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 97)  # shards of two sizes
    start = layer.weight.detach().clone()
    fully_shard(layer, mesh=init_device_mesh("cpu", (count,)))
    optimizer = torch.optim.SGD(layer.parameters(), 0.0)
    constrain(layer, optimizer, SpectralClip(0.7))
    layer(torch.ones(1, 16)).sum().backward()
    with Sent() as sent:
        optimizer.step()
    return {"start": start, "kernel": layer.weight.full_tensor().detach(), "sizes": sent.sizes, "kinds": sent.kinds}


def single(count):
    """Return the only entry of a kernel that one of the processes holds, after it was clipped."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, -3.0)
    fully_shard(layer, mesh=init_device_mesh("cpu", (count,)))
    project(layer, SpectralClip())
    return layer.weight.full_tensor().item()


def refused(count):
    """Return what is said to a rule of kernels that are several matrices."""
    several = nn.MultiheadAttention(8, 2)
    fully_shard(several, mesh=init_device_mesh("cpu", (count,)))
    try:
        constrain(several, torch.optim.SGD(several.parameters(), 0.1), MaxSpectralNorm())
    except ValueError as error:
        return str(error)


def state(model, optimizer):
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def resumed(axis, rank, count, folder):
    """Return the kernels of a run without an end, of one from its checkpoint, and of one that has lost the vectors."""
    rule = SpectralNorm(warmup_iterations=0)  # found anew, they would not be as good
    model, optimizer = sharded(axis, count)
    constrain(model, optimizer, rule)
    stepped(model, optimizer, rank, count)
    save(state(model, optimizer), checkpoint_id=f"{folder}/checkpoint{axis}")
    stepped(model, optimizer, rank, count, steps=1, seed=2)
    ends = [wholes(model)]
    for kept in (True, False):
        model, optimizer = sharded(axis, count)
        constrain(model, optimizer, rule)
        parts = state(model, optimizer)
        load(parts, checkpoint_id=f"{folder}/checkpoint{axis}")
        set_state_dict(model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
        for one in weights(model) if not kept else ():
            del optimizer.state[one]["spectral_vectors"]
        stepped(model, optimizer, rank, count, steps=1, seed=2)
        ends.append(wholes(model))
    return ends


if __name__ == "__main__":
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    trained = {kind: [one.detach() for one in train(kind, rank, count)] for kind in ("constrained", "normalized")}
    trained |= {"alone": alone(count), "single": single(count), "refused": refused(count)}
    for axis in (0, 1):
        trained[f"shards {axis}"] = shard(axis, rank, count)
        trained[f"resumed {axis}"] = resumed(axis, rank, count, Path(folder))
        trained |= {f"{kind} {axis}": projected(kind, axis, rank, count) for kind in list(RULES)[1:]}
    torch.save(trained, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
