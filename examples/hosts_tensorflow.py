"""Keras on several hosts: when one dies, all begin again at the checkpoint, and only the steps since then are lost.

On TensorFlow, by `MultiWorkerMirroredStrategy`, under which `fit` of Keras 3.15 fails of itself: hence a loop. The
vectors of the constraint are variables of the optimizer, so whatever saves that saves them: after a restart each step
gives, bit for bit, what it gave before. Each process prints the norms of the kernels and a digest of all variables.

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
    model.compile(keras.optimizers.Adam(1e-3))  # so that its weights are saved with the model's
    model.optimizer.build(model.trainable_variables)  # a checkpoint needs a place for them
    return model


def batch(step):
    """Return the batch of a step, the same whenever the step is made."""
    images = np.random.default_rng(step).standard_normal((BATCH, 16), "float32")
    return images, images[:, :4].argmax(1)


def array(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))


def report(step, rank, model):
    """Print the norm of each kernel, and a digest that agrees where all variables do."""
    norms = " ".join(f"{np.linalg.norm(np.float64(array(layer.kernel)), 2):.5f}" for layer in model.layers)
    variables = *model.variables, *model.optimizer.variables
    digest = hashlib.sha256(b"".join(array(one).tobytes() for one in variables)).hexdigest()[:16]
    print(f"rank {rank} step {step} norms {norms} state {digest}", flush=True)


def save(path, model):
    """Write a checkpoint; whoever dies while writing leaves the last one as it was."""
    unfinished = path.with_name("unfinished.weights.h5")
    model.save_weights(unfinished)
    os.replace(unfinished, path)


def train(path, steps, every):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # reads TF_CONFIG
    rank, count = strategy.cluster_resolver.task_id, strategy.num_replicas_in_sync
    with strategy.scope():
        model = network()
    if path.exists():
        model.load_weights(path)

    def update(images, labels):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(labels, model(images, training=True), True)
            loss = tf.reduce_mean(losses) / count  # the optimizer adds up the gradients of all
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables))

    stepped = tf.function(lambda images, labels: strategy.run(update, (images, labels)))
    for step in range(int(array(model.optimizer.iterations)) + 1, steps + 1):
        images, labels = batch(step)
        stepped(tf.constant(images[rank::count]), tf.constant(labels[rank::count]))
        report(step, rank, model)
        if step % every == 0 and rank == 0:
            save(path, model)


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
