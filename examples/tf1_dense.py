"""Spectral normalization as the `kernel_constraint` of `layers.dense`, in a TF1 graph with a Session.

A classifier of handwritten digits whose layers are made in a loop. One constraint object serves them all: each kernel
gets a vector `u` of its own, drawn isotropically and moved by power iteration in every training step.

Run: python examples/tf1_dense.py
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before tensorflow is imported: tf.compat.v1.layers comes from tf_keras

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import opnorm

v1 = tf.compat.v1


def network(images, widths, classes):
    """Return the logits."""
    constraint = opnorm.tf1.SpectralNorm(2.0)
    hidden = images
    for width in widths:
        hidden = v1.layers.dense(hidden, width, activation=tf.nn.relu, kernel_constraint=constraint)
    return v1.layers.dense(hidden, classes, kernel_constraint=constraint)


def batches(images, labels, size, epochs):
    """Yield shuffled batches."""
    generator = np.random.default_rng(0)
    for _ in range(epochs):
        order = generator.permutation(len(images))
        for start in range(0, len(images), size):
            yield images[order[start : start + size]], labels[order[start : start + size]]


def main():
    """Train, print each layer's true norm and the accuracy; return both."""
    digits = load_digits()
    split = train_test_split((digits.data / 16).astype("float32"), digits.target, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    with tf.Graph().as_default():
        v1.set_random_seed(0)
        images, labels = v1.placeholder(tf.float32, [None, 64]), v1.placeholder(tf.int64, [None])
        logits = network(images, widths=(64, 64, 32), classes=10)
        loss = v1.losses.sparse_softmax_cross_entropy(labels, logits)
        update = v1.train.AdamOptimizer(3e-3).minimize(loss)
        accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, axis=1), labels), tf.float32))
        kernels = [v for v in v1.trainable_variables() if v.op.name.endswith("kernel")]
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for some_images, some_labels in batches(train_images, train_labels, size=64, epochs=20):
                session.run(update, {images: some_images, labels: some_labels})
            sigmas = [np.linalg.svd(k.astype("float64"))[1][0] for k in session.run(kernels)]
            score = session.run(accuracy, {images: test_images, labels: test_labels})
    for kernel, sigma in zip(kernels, sigmas, strict=True):
        print(f"{kernel.op.name:<16} {kernel.shape!s:<10} spectral norm {sigma:.5f}  (target 2)")
    print(f"test accuracy {score:.3f}")
    return sigmas, float(score)


if __name__ == "__main__":
    main()
