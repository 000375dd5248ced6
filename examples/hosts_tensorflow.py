"""Keras on several hosts: when one dies, all begin again at the checkpoint, and only the steps since then are lost.

On TensorFlow, by `MultiWorkerMirroredStrategy`. The vectors of the constraint are variables of the optimizer, so
whatever saves that saves them: after a restart each step gives, bit for bit, what it gave before. Each process prints
the norms of the kernels and a digest of all variables.

Run, on each host, with its own index: TF_CONFIG='{"cluster": {"worker": ["HOST0:12345", "HOST1:12345"]},
"task": {"type": "worker", "index": 0}}' python examples/hosts_tensorflow.py run
TensorFlow starts no process again: let Kubernetes, Slurm or a shell's loop end all when one has died, and start them
anew. The folder must be on a file system that all share.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
import typer

import opnorm

BATCH = 64  # of all processes together


def network():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(units, activation, kernel_constraint=opnorm.SpectralNorm())
        for units, activation in ((64, "relu"), (64, "relu"), (4, None))
    ]
    model = keras.Sequential([keras.Input((16,)), *layers])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)  # a checkpoint needs a place for its variables
    return model


def batch(step):
    """Return the batch of a step, the same whenever the step is made."""
    images = tf.random.stateless_normal((BATCH, 16), (0, step))
    return images, tf.argmax(images[:, :4], 1)


def array(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))


def report(step, rank, model):
    """Print the norm of each kernel, and a digest that agrees where all variables do."""
    norms = " ".join(f"{np.linalg.norm(np.float64(array(layer.kernel)), 2):.5f}" for layer in model.layers)
    variables = *model.variables, *model.optimizer.variables
    digest = hashlib.sha256(b"".join(array(one).tobytes() for one in variables)).hexdigest()[:16]
    print(f"rank {rank} step {step} norms {norms} state {digest}", flush=True)


class Checkpoints(keras.callbacks.Callback):
    """Reports each step; the first process writes a checkpoint now and then."""

    def __init__(self, path, rank, every):
        super().__init__()
        self.path, self.rank, self.every = path, rank, every

    def on_train_batch_end(self, _, logs=None):
        """Report the step, and save if it is time."""
        step = int(array(self.model.optimizer.iterations))
        report(step, self.rank, self.model)
        if step % self.every == 0 and self.rank == 0:
            # Whoever dies while writing leaves the last checkpoint as it was.
            unfinished = self.path.with_name("unfinished.weights.h5")
            self.model.save_weights(unfinished)  # of the optimizer too
            os.replace(unfinished, self.path)


def train(path, steps, every):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # reads TF_CONFIG
    with strategy.scope():
        model = network()
    if path.exists():
        model.load_weights(path)
    data = tf.data.Dataset.range(int(array(model.optimizer.iterations)) + 1, steps + 1).map(batch)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA  # each takes a part
    rank = strategy.cluster_resolver.task_id
    model.fit(data.with_options(options), callbacks=[Checkpoints(path, rank, every)], verbose=0)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint is.")],
    steps: Annotated[int, typer.Option(help="How many in all.")] = 40,
    every: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.")] = 10,
) -> None:
    """Train, from the checkpoint on if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    train(folder / "checkpoint.weights.h5", steps, every)


if __name__ == "__main__":
    typer.run(main)
