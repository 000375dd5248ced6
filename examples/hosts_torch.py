"""PyTorch on several hosts: when one dies, all begin again at the checkpoint, and only the steps since then are lost.

The vectors of the constraint are in the optimizer's state, so whatever saves that saves them: after a restart each step
gives, bit for bit, what it gave before. Each process prints the norms of the kernels and a digest of kernels and
vectors.

Run, on one host: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
torchrun --standalone --nproc-per-node 2 --max-restarts 3 examples/hosts_torch.py run
On each of two: torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --max-restarts 3 ... run
`torchrun` starts all processes again when one has died; without that variable those of PyTorch 2.13 look for the dead
(PyTorch's issues 135712 and 167288). The folder must be on a file system that all share.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import opnorm.torch

BATCH = 64  # of all processes together


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def batch(step):
    """Return the batch of a step, the same whenever the step is made."""
    images = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(step))
    return images, images[:, :4].argmax(1)


def report(step, model, optimizer):
    """Print the norm of each kernel, and a digest that agrees where all kernels and vectors do."""
    kernels = [part.weight.detach() for part in model if isinstance(part, nn.Linear)]
    vectors = [optimizer.state[part.weight]["spectral_vectors"] for part in model if isinstance(part, nn.Linear)]
    norms = " ".join(f"{torch.linalg.matrix_norm(one.double(), 2):.5f}" for one in kernels)
    digest = hashlib.sha256(b"".join(one.numpy().tobytes() for one in [*kernels, *vectors])).hexdigest()[:16]
    print(f"rank {dist.get_rank()} step {step} norms {norms} state {digest}", flush=True)


def save(path, step, model, optimizer):
    """Write a checkpoint; whoever dies while writing leaves the last one as it was."""
    unfinished = path.with_suffix(".unfinished")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, unfinished)
    os.replace(unfinished, path)


def restore(path, model, optimizer):
    """Return the step of the last checkpoint, which is loaded; 0 where there is none."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"]


def train(path, steps, every):
    rank, count, model = dist.get_rank(), dist.get_world_size(), network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    opnorm.torch.constrain(model, optimizer, opnorm.torch.SpectralNorm())
    begun = restore(path, model, optimizer)
    parallel = DistributedDataParallel(model)
    for step in range(begun + 1, steps + 1):
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(images[rank::count]), labels[rank::count]).backward()
        optimizer.step()
        report(step, model, optimizer)
        if step % every == 0 and rank == 0:
            save(path, step, model, optimizer)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint is.")],
    steps: Annotated[int, typer.Option(help="How many in all.")] = 40,
    every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = 10,
) -> None:
    """Train, from the checkpoint on if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("gloo")  # "nccl" on GPUs
    train(folder / "checkpoint.pt", steps, every)
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
