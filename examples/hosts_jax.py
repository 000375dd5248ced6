"""JAX on several hosts: when one dies, all begin again at the checkpoint, and only the steps since then are lost.

The vectors of the constraint are leaves of the optimizer's state, so whatever saves that saves them: after a restart
each step gives, bit for bit, what it gave before. Each process prints the norms of the kernels and a digest of
parameters and vectors.

Run, on each host: python examples/hosts_jax.py run --coordinator HOST:1234 --processes 2 --process 0   (and 1)
JAX starts no process again: let Slurm, Kubernetes or a shell's loop end all when one has died, and start them anew. The
folder must be on a file system that all share.
"""

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import opnorm.jax

BATCH, SIZES = 64, (16, 64, 64, 4)  # the batch is that of all processes together
OPTIMIZER = optax.chain(optax.adam(1e-3), opnorm.jax.constrain(opnorm.jax.SpectralNorm()))


def start():
    """Return the first state: parameters, the optimizer's state, the number of steps made."""
    rng = np.random.default_rng(0)
    params = {
        f"layer{i}": {"kernel": rng.standard_normal(pair, "float32"), "bias": np.zeros(pair[1], "float32")}
        for i, pair in enumerate(pairwise(SIZES))
    }
    return {"params": params, "optimizer": OPTIMIZER.init(params), "step": np.zeros((), "int32")}


def batch(step):
    """Return the batch of a step, the same whenever the step is made."""
    images = np.random.default_rng(step).standard_normal((BATCH, SIZES[0]), "float32")
    return images, images[:, : SIZES[-1]].argmax(1)


def loss(params, images, labels):
    for name, layer in params.items():
        images = images @ layer["kernel"] + layer["bias"]
        images = images if name == list(params)[-1] else jax.nn.relu(images)
    return optax.softmax_cross_entropy_with_integer_labels(images, labels).mean()


@jax.jit
def stepped(state, images, labels):
    gradient = jax.grad(loss)(state["params"], images, labels)
    updates, optimizer = OPTIMIZER.update(gradient, state["optimizer"], state["params"])
    return {
        "params": optax.apply_updates(state["params"], updates),
        "optimizer": optimizer,
        "step": state["step"] + jnp.int32(1),
    }


def report(step, state):
    """Print the norm of each kernel, and a digest that agrees where all parameters and vectors do."""
    norms = [np.linalg.norm(np.float64(layer["kernel"]), 2) for layer in state["params"].values()]
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))).hexdigest()[:16]
    told = " ".join(f"{norm:.5f}" for norm in norms)
    print(f"rank {jax.process_index()} step {step} norms {told} state {digest}", flush=True)


def save(path, state):
    """Write a checkpoint; whoever dies while writing leaves the last one as it was."""
    unfinished = path.with_suffix(".unfinished.npz")
    np.savez(unfinished, *jax.tree.leaves(state))
    os.replace(unfinished, path)


def restore(path, state):
    """Return the state of the last checkpoint; the one that is given where there is none."""
    if not path.exists():
        return state
    with np.load(path) as file:
        return jax.tree.unflatten(jax.tree.structure(state), [file[name] for name in file.files])


def train(path, steps, every):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    place = jax.make_array_from_process_local_data
    state = jax.tree.map(lambda leaf: place(everywhere, np.asarray(leaf)), restore(path, start()))
    own = slice(jax.process_index(), None, jax.process_count())
    for step in range(int(state["step"]) + 1, steps + 1):
        state = stepped(state, *(place(split, part[own]) for part in batch(step)))
        report(step, state)
        if step % every == 0 and jax.process_index() == 0:
            save(path, state)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint is.")],
    coordinator: Annotated[str, typer.Option(help="HOST:PORT of process 0.")],
    processes: Annotated[int, typer.Option(help="How many there are.")],
    process: Annotated[int, typer.Option(help="Which of them this is.")],
    steps: Annotated[int, typer.Option(help="How many in all.")] = 40,
    every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = 10,
) -> None:
    """Train, from the checkpoint on if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPUs; GPUs and TPUs have their own
    jax.distributed.initialize(coordinator, processes, process)
    train(folder / "checkpoint.npz", steps, every)
    jax.distributed.shutdown()


if __name__ == "__main__":
    typer.run(main)
